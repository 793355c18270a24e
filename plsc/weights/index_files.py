"""NAME.safetensors.index.json: which of several .safetensors files holds which array, as Hugging Face writes it.

{"metadata": {"total_size": 343261248}, "weight_map": {"pos_embed": "model-00001-of-00002.safetensors", …}}
"""

import json
from collections.abc import Mapping
from pathlib import Path

from plsc.errors import CheckpointError
from plsc.files import read_json

ENDING = ".index.json"


def read_index(file: Path) -> dict[str, str]:
    """Array → file beside the index. Raises CheckpointError where it is damaged, or names files elsewhere."""
    named = (read_json(file, dict, error=CheckpointError) or {}).get("weight_map")
    if not isinstance(named, dict) or not named or not all(isinstance(name, str) for name in named.values()):
        raise CheckpointError(f"{file}: damaged: it has no weight_map of file names")
    if any(Path(name).name != name or name in ("", ".", "..") for name in named.values()):
        raise CheckpointError(f"{file}: names a file outside its folder")
    return named


def index_text(weight_map: Mapping[str, str], total_size: int) -> str:
    """The content of an index.

    Args:
        weight_map: array → file. total_size: bytes of all arrays.
    """
    content = {"metadata": {"total_size": total_size}, "weight_map": dict(sorted(weight_map.items()))}
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"
