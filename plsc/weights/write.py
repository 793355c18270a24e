"""Weights of a model → files of others, by the tables with which theirs are read.

What a format has no place for, such as the number of heads, travels in plsc's card: metadata of a .safetensors file, or
an array of bytes in .npz and .pdparams. Other readers ignore it.
"""

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from plsc.errors import CheckpointError, ConfigError
from plsc.files import replacing_file
from plsc.model_card import ModelCard
from plsc.weights import huggingface, timm
from plsc.weights.containers import CARD, card_array, open_container, save_safetensors
from plsc.weights.families import Family, families, family_of
from plsc.weights.layouts import Layout, Spec, write_arrays
from plsc.weights.read import Source, foreign
from plsc.weights.tensors import Tensor

_USUAL = "model.safetensors"
_OWN = ("safetensors", "pdparams")  # hold any model, in its own names


def formats() -> list[str]:
    """Names of the formats that can be written, of all families of models."""
    layouts = [layout for family in families() for layout in family.layouts if layout.container]
    return list(dict.fromkeys([*_OWN, *(layout.name for layout in layouts)]))


def write(source: Source, to: str, output: str | Path, *, backbone: bool = False) -> list[Path]:
    """Write weights in another format. Values are not changed: there and back gives the same bits.

    Args:
        to: one of formats(). output: a file; for huggingface a folder, for timm either. What is there is replaced
            when the new file is whole.
        backbone: leave out head and pre-logits.

    Returns:
        The files written.

    Raises:
        CheckpointError: the format has no place for something, or the output cannot be written.
    """
    family, given, output = family_of(source.card.model), output, Path(output).expanduser()
    card = without_head(source.card) if backbone else source.card
    layouts = {layout.name: _layout(family, layout.name, card.spec) for layout in family.layouts if layout.container}
    if to not in (*_OWN, *layouts):
        known = formats()
        if to in known:
            has = ", ".join([*_OWN, *layouts])
            raise CheckpointError(f"{source.path}: a {source.card.model} cannot be written as {to}, only as {has}")
        raise CheckpointError(f"no format is called {to!r}; there are {', '.join(known)}")
    left_out = family.head if backbone else ()
    tensors = {name: Tensor.of(source.read(name)) for name in source.tensors if not name.startswith(left_out)}
    try:
        if family.spec is not None:
            family.spec(**card.spec)  # which its own checks may refuse
        if to == "safetensors":
            return _write_safetensors(tensors, output, {"format": "plsc", **card.to_metadata()})
        text = json.dumps(card.to_dict())
        if to == "pdparams":
            return _write_pdparams(tensors | {CARD: Tensor.of(card_array(text))}, output)
        layout = layouts[to]
        classifiers = family.classifiers or family.head[:1]
        named = write_arrays(layout, tensors, card.spec, is_own=family.is_own, head=classifiers)
        if layout.container == "npz":
            return _write_npz(named | {CARD: Tensor.of(card_array(text))}, output)
        has_head = any(name.startswith(family.head[0]) for name in tensors)
        metadata, contents = {"format": "pt", CARD: text}, _documents(layout, card, given, has_head=has_head)
        if contents is None:
            return _write_safetensors(named, output, metadata)
        return _write_folder(named, contents, output, metadata)
    except (ConfigError, TypeError) as error:
        raise CheckpointError(f"{source.path}: does not describe a {card.model}: {error}") from error
    except KeyError as error:
        raise CheckpointError(f"{source.path}: {to} needs {error}, which is unknown of these weights") from error
    except OSError as error:
        raise CheckpointError(f"{output}: could not be written: {error}") from error


def _layout(family: Family, name: str, spec: Spec) -> Layout:
    """The first layout of a format that can hold a model; where none can, the first, which will say why not."""
    named = [layout for layout in family.layouts if layout.name == name and layout.container]
    return next((layout for layout in named if layout.holds(spec)), named[0])


def without_head(card: ModelCard) -> ModelCard:
    """The card of a model without head and pre-logits."""
    return dataclasses.replace(card, spec={**card.spec, **family_of(card.model).without_head}, class_names=None)


def _is_folder(layout: Layout, output: str | Path) -> bool:
    """Whether config.json goes with the arrays: a folder has one, which files of other names might share."""
    if layout.timm is None:
        return layout.container == "folder"
    path = Path(output).expanduser()
    return str(output).endswith(("/", os.sep)) or path.name == _USUAL


def _documents(layout: Layout, card: ModelCard, output: str | Path, *, has_head: bool) -> dict[str, Any] | None:
    """File name → content of what belongs beside the arrays; None where the format is one file."""
    if not _is_folder(layout, output):
        return None
    if layout.huggingface is not None:
        return huggingface.documents(layout.huggingface, card, card.spec, has_head=has_head)
    assert layout.timm is not None
    config = timm.config_of(layout.timm, card, has_head=has_head)
    return {} if config is None else {huggingface.CONFIG: config}


def unsaid(card: ModelCard, to: str, written: Path) -> list[str]:
    """What others who open a written file have to know from elsewhere: what plsc itself lacks without its card.

    Args:
        card: of the model. to: the format. written: the file of arrays.
    """
    family = family_of(card.model)
    if to == "safetensors":
        return []
    container = open_container(written)
    container.notes.pop(CARD, None)
    try:
        plain = foreign(container).card
    except CheckpointError as error:
        return [f"the model ({error})"]
    layout = next((layout for layout in family.layouts if layout.name == to), None)
    arguments = {s.ours: s.theirs for s in layout.timm.settings} if layout is not None and layout.timm else {}
    parts = []
    for name in (*family.unseen, "img_size"):
        value, other = (_plain(spec.get(name, getattr(family.spec, name, None))) for spec in (card.spec, plain.spec))
        if name in plain.assumed & set(family.needed) or value != other:
            parts.append(f"{name} {value}" + (f" (timm's {arguments[name]})" if name in arguments else ""))
    parts += ["class names"] if card.class_names and card.class_names != plain.class_names else []
    parts += ["preprocessing"] if card.preprocess and card.preprocess != plain.preprocess else []
    return parts


def _plain(value: Any) -> Any:
    """A value that JSON leaves as it is; a square by one side."""
    value = list(value) if isinstance(value, tuple) else value
    return value[0] if isinstance(value, list) and len(value) == 2 and value[0] == value[1] else value


def _replaced(output: Path, save: Callable[[Path], None]) -> list[Path]:
    """Write a file; what was there stays until the new one is whole. It may be the source, mapped into memory."""
    if output.is_dir():
        raise CheckpointError(f"{output}: is a folder; give --output a file, or for timm a folder that ends with /")
    with replacing_file(output) as writing:
        save(writing)
    return [output]


def _arrays(tensors: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: np.ascontiguousarray(tensor.read()) for name, tensor in tensors.items()}


def _write_safetensors(tensors: dict[str, Tensor], output: Path, metadata: dict[str, str]) -> list[Path]:
    return _replaced(output, lambda path: save_safetensors(_arrays(tensors), path, metadata))


def _write_npz(tensors: dict[str, Tensor], output: Path) -> list[Path]:
    def save(path: Path) -> None:
        with open(path, "wb") as file:  # else NumPy appends an ending of its own
            np.savez(file, **_arrays(tensors))  # type: ignore[arg-type]  # its stubs take any for a flag

    return _replaced(output, save)


def _write_pdparams(tensors: dict[str, Tensor], output: Path) -> list[Path]:
    import paddle

    named = {name: paddle.to_tensor(array) for name, array in _arrays(tensors).items()}
    return _replaced(output, lambda path: paddle.save(named, str(path)))


def _write_folder(
    tensors: dict[str, Tensor], documents: dict[str, Any], output: Path, metadata: dict[str, str]
) -> list[Path]:
    folder = output.parent if output.name == _USUAL else output
    if folder.is_file():
        raise CheckpointError(f"{folder}: is a file; what is written is a folder")
    written = _write_safetensors(tensors, folder / _USUAL, metadata)
    return [*written, *huggingface.write_documents(folder, documents)]
