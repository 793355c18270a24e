"""Weights of a model → files of others, by the tables with which theirs are read."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from plsc.errors import CheckpointError, ConfigError
from plsc.files import replacing_file
from plsc.weights import huggingface
from plsc.weights.containers import save_safetensors
from plsc.weights.families import Family, families, family_of
from plsc.weights.layouts import Layout, Spec, write_arrays
from plsc.weights.read import Source
from plsc.weights.tensors import Tensor

_OWN = ("safetensors", "pdparams")  # hold any model, in its own names


def formats() -> list[str]:
    """Names of the formats that can be written, of all families of models."""
    layouts = [layout for family in families() for layout in family.layouts if layout.container]
    return list(dict.fromkeys([*_OWN, *(layout.name for layout in layouts)]))


def write(source: Source, to: str, output: str | Path, *, backbone: bool = False) -> list[Path]:
    """Write weights in another format. Values are not changed: there and back gives the same bits.

    Args:
        to: one of formats(). output: a file, or a folder for huggingface. What stands there is replaced when the new
            file is whole.
        backbone: leave out head and pre-logits.

    Returns:
        The files written.

    Raises:
        CheckpointError: the format has no place for something, or the output cannot be written.
    """
    family, output = family_of(source.card.model), Path(output).expanduser()
    layouts = {
        layout.name: _layout(family, layout.name, source.card.spec) for layout in family.layouts if layout.container
    }
    if to not in (*_OWN, *layouts):
        known = formats()
        if to in known:
            has = ", ".join([*_OWN, *layouts])
            raise CheckpointError(f"{source.path}: a {source.card.model} cannot be written as {to}, only as {has}")
        raise CheckpointError(f"no format is called {to!r}; there are {', '.join(known)}")
    left_out = family.head if backbone else ()
    tensors = {name: Tensor.of(source.read(name)) for name in source.tensors if not name.startswith(left_out)}
    card = source.card
    if backbone:
        card = dataclasses.replace(card, spec={**card.spec, **family.without_head}, class_names=None)
    try:
        if family.spec is not None:
            family.spec(**card.spec)  # which its own checks may refuse
        if to == "safetensors":
            return _write_safetensors(tensors, output, {"format": "plsc", **card.to_metadata()})
        if to == "pdparams":
            return _write_pdparams(tensors, output)
        layout = layouts[to]
        named = write_arrays(layout, tensors, card.spec, is_own=family.is_own, head=family.head)
        if layout.container == "npz":
            return _write_npz(named, output)
        if layout.huggingface is None:
            return _write_safetensors(named, output, {"format": "pt"})
        has_head = any(name.startswith(family.head[0]) for name in tensors)
        return _write_folder(
            named, huggingface.documents(layout.huggingface, card, card.spec, has_head=has_head), output
        )
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


def _replaced(output: Path, save: Callable[[Path], None]) -> list[Path]:
    """Write a file; what stood there stays until the new one is whole. It may be the source, mapped into memory."""
    if output.is_dir():
        raise CheckpointError(f"{output}: is a folder; give --output a file")
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
            np.savez(file, **_arrays(tensors))

    return _replaced(output, save)


def _write_pdparams(tensors: dict[str, Tensor], output: Path) -> list[Path]:
    import paddle

    named = {name: paddle.to_tensor(array) for name, array in _arrays(tensors).items()}
    return _replaced(output, lambda path: paddle.save(named, str(path)))


def _write_folder(tensors: dict[str, Tensor], documents: dict, folder: Path) -> list[Path]:
    if folder.is_file():
        raise CheckpointError(f"{folder}: is a file; huggingface writes a folder")
    written = _write_safetensors(tensors, folder / "model.safetensors", {"format": "pt"})
    return [*written, *huggingface.write_documents(folder, documents)]
