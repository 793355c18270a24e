"""The files beside the arrays in a folder of Hugging Face's: config.json and preprocessor_config.json."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plsc.data.preprocess import Preprocess
from plsc.errors import CheckpointError
from plsc.files import read_json, write_json
from plsc.model_card import ModelCard
from plsc.weights.layouts import HuggingFace, Spec
from plsc.weights.processor import from_processor, to_processor

CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"


# what weights are called where one config.json is that of the whole folder
_USUAL_FILES = re.compile(r"(open_clip_)?(pytorch_)?model(\.fp16)?\.(safetensors|bin|pth|pt)(\.index\.json)?")
_WEIGHTS = frozenset({".safetensors", ".bin", ".pth", ".pt", ".npz", ".pdparams"})


def is_of_folder(path: Path) -> bool:
    """Whether a config.json beside a file of weights is about it: its name is the usual one, or it is the only file."""
    if _USUAL_FILES.fullmatch(path.name):
        return True
    return all(file.name == path.name for file in path.parent.iterdir() if file.suffix in _WEIGHTS)


def config_beside(path: Path) -> dict[str, Any]:
    """The content of the config.json that is about a file; {} where there is none. CheckpointError: it is damaged."""
    if not (path.parent / CONFIG).is_file() or not is_of_folder(path):
        return {}
    config = read_json(path.parent / CONFIG, dict, error=CheckpointError) or {}
    tower = config.get("vision_config")  # of CLIP and SigLIP, beside that of their text
    return {**config, **tower} if isinstance(tower, dict) else config


def read_config(layout: HuggingFace, config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The fields of the spec that config.json states.

    Raises:
        CheckpointError: it states what the model does not have.
    """
    for name, value in layout.required.items():
        if config.get(name, value) != value:
            raise CheckpointError(f"{where}: {name} is {config[name]!r}, which the model does not have; it has {value}")
    return {
        setting.ours: setting.read(config[setting.theirs], where)
        for setting in layout.settings
        if setting.stated and config.get(setting.theirs) is not None
    }


def class_names(config: Mapping[str, Any], where: str) -> list[str] | None:
    """A name for each logit, where config.json numbers them all; transformers' LABEL_0, LABEL_1, … are not names.

    Raises:
        CheckpointError: it is damaged.
    """
    labels = config.get("id2label") or {}
    if not isinstance(labels, dict) or not all(isinstance(name, str) for name in labels.values()):
        raise CheckpointError(f"{where}: damaged: id2label is not a mapping to names")
    numbers = [str(i) for i in range(len(labels))]
    if not labels or not all(number in labels for number in numbers):
        return None
    names = [labels[number] for number in numbers]
    return None if names == [f"LABEL_{number}" for number in numbers] else names


def read_preprocess(path: Path) -> Preprocess | None:
    """How pictures enter, where the preprocessor_config.json that is about a file says all of it."""
    if not (path.parent / PROCESSOR).is_file() or not is_of_folder(path):
        return None
    config = read_json(path.parent / PROCESSOR, dict, error=CheckpointError)
    fields = from_processor(config) if config else None
    return None if fields is None else Preprocess.from_dict(fields)


def documents(layout: HuggingFace, card: ModelCard, spec: Spec, *, has_head: bool) -> dict[str, Any]:
    """File name → content of what belongs beside the arrays.

    Raises:
        CheckpointError: the preprocessing has something that an image processor lacks.
        KeyError: the spec lacks a field.
    """
    config: dict[str, Any] = {"architectures": [layout.architectures[0 if has_head else 1]], **layout.constants}
    settings: dict[str, Any] = {}
    for setting in layout.settings:
        value = spec[setting.ours] if setting.default is None else spec.get(setting.ours, setting.default)
        settings[setting.theirs] = setting.write(value)
    settings.update(layout.derived(spec))
    config.update(settings if layout.tower is None else {layout.tower: settings})
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
