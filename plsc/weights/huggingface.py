"""The files beside the arrays in a folder of Hugging Face's: config.json and preprocessor_config.json."""

from pathlib import Path
from typing import Any

from plsc.data.preprocess import Preprocess
from plsc.errors import CheckpointError
from plsc.files import read_json, write_json
from plsc.model_card import ModelCard
from plsc.weights.layouts import HuggingFace, Spec
from plsc.weights.processor import from_processor, to_processor

CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"


def read_config(layout: HuggingFace, folder: Path) -> tuple[dict[str, Any], list[str] | None]:
    """(fields of the spec that config.json states, the classes' names); neither where there is no such file."""
    file = folder / CONFIG
    config = read_json(file, dict, error=CheckpointError) or {}
    tower = config.get("vision_config")  # of CLIP and SigLIP, beside that of their text
    config = {**config, **tower} if isinstance(tower, dict) else config
    stated = {}
    for setting in layout.settings:
        value = config.get(setting.theirs)
        if value is None or not setting.stated:
            continue
        if setting.values is not None:
            if not isinstance(value, str) or value not in setting.values:
                known = ", ".join(map(str, setting.values))
                raise CheckpointError(
                    f"{file}: {setting.theirs} is {value!r}, which the model does not have; it has {known}"
                )
            value = setting.values[value]
        stated[setting.ours] = value
    return stated, _class_names(file, config.get("id2label"))


def _class_names(file: Path, labels: Any) -> list[str] | None:
    labels = labels or {}
    if not isinstance(labels, dict) or not all(isinstance(name, str) for name in labels.values()):
        raise CheckpointError(f"{file}: damaged: id2label is no mapping to names")
    numbered = [labels.get(str(i)) for i in range(len(labels))]
    return numbered if labels and None not in numbered else None


def read_preprocess(folder: Path) -> Preprocess | None:
    """How pictures enter, where preprocessor_config.json says all of it."""
    config = read_json(folder / PROCESSOR, dict, error=CheckpointError)
    fields = from_processor(config) if config else None
    return None if fields is None else Preprocess.from_dict(fields)


def documents(layout: HuggingFace, card: ModelCard, spec: Spec, *, has_head: bool) -> dict[str, Any]:
    """File name → content of what belongs beside the arrays.

    Raises:
        CheckpointError: the preprocessing has something that an image processor lacks.
        KeyError: the spec lacks a field.
    """
    config: dict[str, Any] = {"architectures": [layout.architectures[0 if has_head else 1]], **layout.constants}
    for setting in layout.settings:
        value = spec[setting.ours] if setting.default is None else spec.get(setting.ours, setting.default)
        if setting.values is not None:
            value = next(theirs for theirs, ours in setting.values.items() if ours == value)
        config[setting.theirs] = value
    config.update(layout.derived(spec))
    if has_head:
        names = card.class_names or [f"LABEL_{i}" for i in range(spec["class_num"])]
        config["id2label"] = {str(i): name for i, name in enumerate(names)}
        config["label2id"] = {name: i for i, name in enumerate(names)}
    processor = card.preprocess and to_processor(card.preprocess.to_dict(), dict(spec))
    return {CONFIG: config, **({PROCESSOR: processor} if processor else {})}


def write_documents(folder: Path, contents: dict[str, Any]) -> list[Path]:
    """Write files as JSON; returns their paths."""
    for name, content in contents.items():
        write_json(folder / name, content)
    return [folder / name for name in contents]
