"""Weights of one model → arrays for another of the same family, and a report of what was done."""

from dataclasses import dataclass, field

import numpy as np

from plsc.errors import CheckpointError
from plsc.weights import resample
from plsc.weights.infer import behind_resnet, position_prefix
from plsc.weights.read import LazyArrays, Source

HEAD = ("head.", "head0.")


@dataclass
class Report:
    """What became of each array: names with shapes.

    Attributes:
        loaded: taken as they are. adapted: name → how. initialised: of the model, not in the file.
        ignored: in the file, not in the model.
    """

    loaded: list[str] = field(default_factory=list)
    adapted: dict[str, str] = field(default_factory=dict)
    initialised: dict[str, str] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)
    layout: str = "plsc"

    @property
    def exact(self) -> bool:
        return not (self.adapted or self.initialised or self.ignored)

    def __str__(self) -> str:
        lines = [f"{len(self.loaded)} arrays loaded as they are (names of {self.layout})"]
        for title, entries in (
            ("adapted", self.adapted),
            ("initialised", self.initialised),
            ("ignored", self.ignored),
        ):
            lines += [f"  {title:<12}{name:<32}{how}" for name, how in entries.items()]
        return "\n".join(lines)


def _shown(shape) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"


def adapt(
    source: Source,
    shapes: dict[str, tuple],
    *,
    grid,
    prefix: int,
    reset_head: bool = False,
    strict: bool = False,
    allowed=(),
    class_names: list[str] | None = None,
    position: str = "bicubic",
):
    """Fit a Source to a model.

    Args:
        shapes: the model's parameters, name → shape. grid, prefix: of its position embedding.
        reset_head: leave out head and pre-logits, to be trained anew.
        strict: anything but loading as it is raises CheckpointError, as evaluation asks; names in `allowed`
            may be adapted all the same.
        class_names: of the model's classes; the head's columns are picked by name where the file has names too.
        position: how a position embedding is resized, bicubic or bilinear.

    Returns:
        (arrays to load, read when asked for; Report).
    """
    makers, report = {}, Report(layout=source.layout)
    columns = _columns(source, class_names)
    if strict and columns is not None and not reset_head:
        theirs = [name for name in source.card.class_names if name not in class_names]
        ours = [name for name in class_names if name not in source.card.class_names]
        raise CheckpointError(
            f"{source.path}: has {len(source.card.class_names)} classes, the data set {len(class_names)}"
            + (f"; only in the checkpoint: {', '.join(theirs[:5])}" if theirs else "")
            + (f"; only in the data set: {', '.join(ours[:5])}" if ours else "")
            + ("" if theirs or ours else ", in another order")
        )
    for name, shape in shapes.items():
        shape = tuple(shape)
        tensor = source.tensors.get(name)
        if tensor is None:
            report.initialised[name] = f"{_shown(shape)}, not in the file"
            continue
        found = f"{_shown(tensor.shape)} → {_shown(shape)}"
        if reset_head and name.startswith(HEAD):
            report.initialised[name] = f"{_shown(shape)}, trained anew"
        elif name.startswith("head.") and columns == "other":
            report.initialised[name] = f"{_shown(shape)}, the file has other classes"
        elif name.startswith("head.") and columns is not None and tensor.shape[-1] == len(source.card.class_names):
            makers[name] = lambda n=name: source.read(n)[..., columns]
            report.adapted[name] = f"{found}, classes picked by name"
        elif name.startswith(HEAD) and not _whole_layer_fits(source, name, shapes):
            report.initialised[name] = f"{_shown(shape)}, the file has {_shown(tensor.shape)}"
        elif name == "pos_embed" and _needs_resizing(source, tensor, shape, tuple(grid), prefix):
            makers[name], how = _position(source, tensor, shape, tuple(grid), prefix, position)
            report.adapted[name] = f"{found}, {how}"
        elif tensor.shape == shape:
            makers[name] = lambda n=name: source.read(n)
            report.loaded.append(name)
        elif name == "patch_embed.proj.weight" and tensor.shape[0] == shape[0] and len(tensor.shape) == 4:
            makers[name] = lambda n=name, s=shape: _patch(source.read(n), s)
            report.adapted[name] = f"{found}, patch kernel resampled"
        elif name == "patch_embed.backbone.stem.conv.weight" and tensor.shape[2:] == shape[2:]:
            makers[name] = lambda n=name, s=shape: resample.input_channels(source.read(n), s[1])
            report.adapted[name] = f"{found}, channels"
        else:
            raise CheckpointError(
                f"{source.path}: {name} has shape {_shown(tensor.shape)}, the model {_shown(shape)}; "
                "is Model.name that of the checkpoint?"
            )
    report.ignored = {
        name: f"{_shown(t.shape)}, not in the model" for name, t in source.tensors.items() if name not in shapes
    }
    report.ignored.update({name: f"{_shown(shape)}, unknown name" for name, shape in source.unknown.items()})
    if not report.loaded:
        raise CheckpointError(f"{source.path}: none of its {len(source.tensors)} arrays fits the model")
    if strict and (report.initialised or report.ignored or set(report.adapted) - set(allowed)):
        raise CheckpointError(f"{source.path}: does not fit the model as it is:\n{report}")
    return LazyArrays(makers), report


def _columns(source: Source, class_names):
    """Columns of the file's head in the order of the model's classes; None: as they are; "other": they differ."""
    theirs = source.card.class_names
    if class_names is None or theirs is None or theirs == class_names or len(set(theirs)) != len(theirs):
        return None
    place = {name: i for i, name in enumerate(theirs)}
    if not all(name in place for name in class_names):
        return "other"
    return [place[name] for name in class_names]


def _patch(array, shape) -> np.ndarray:
    if array.shape[1] != shape[1]:
        array = resample.input_channels(array, shape[1])
    return array if array.shape == shape else resample.patch_kernel(array, shape[2:])


def _needs_resizing(source: Source, tensor, shape, grid: tuple, prefix: int) -> bool:
    """Whether the position embedding is of the model's width but another grid, which as many rows can hide."""
    if len(tensor.shape) != 3 or tensor.shape[0] != 1 or tensor.shape[2] != shape[2]:
        return False
    if tensor.shape != shape:
        return True
    return bool(source.card.spec.get("img_size")) and _file_grid(source, tensor, prefix) != (prefix, grid)


def _position(source: Source, tensor, shape, grid: tuple, prefix: int, method: str):
    """A maker of the model's position embedding, and how in words."""
    old_prefix, old_grid = _file_grid(source, tensor, prefix)
    how = [] if old_grid == grid else [f"{method} {old_grid} → {grid}"]
    if old_prefix != prefix:
        how.append(f"{old_prefix} rows before the patches → {prefix}")

    def make():
        array = source.read("pos_embed")
        if old_prefix != prefix:  # rows of tokens the file has not begin at zero
            rows = np.zeros([1, prefix, array.shape[2]], array.dtype)
            rows[:, : min(prefix, old_prefix)] = array[:, : min(prefix, old_prefix)]
            array = np.concatenate([rows, array[:, old_prefix:]], axis=1)
        return array if old_grid == grid else resample.position_embedding(array, prefix, old_grid, grid, method)

    return make, ", ".join(how)


def _file_grid(source: Source, tensor, prefix: int) -> tuple[int, tuple[int, int]]:
    """(prefix rows, (rows, columns)) of the file's position embedding."""
    spec, rows = source.card.spec, tensor.shape[1]
    old_prefix = position_prefix(rows, spec) if "class_token" in spec else prefix
    patches = rows - old_prefix
    size, patch = spec.get("img_size"), spec.get("patch_size")
    if size and patch:
        size, patch = ((v, v) if isinstance(v, int) else tuple(v) for v in (size, patch))
        grid = tuple(behind_resnet(s, spec.get("resnet_layers")) // p for s, p in zip(size, patch, strict=True))
        for candidate in dict.fromkeys((old_prefix, prefix)):
            if grid[0] * grid[1] == rows - candidate:
                return candidate, grid
    side = round(max(patches, 0) ** 0.5)
    if side * side != patches or patches == 0:
        raise CheckpointError(f"{source.path}: its position embedding has {patches} patch rows, not a square grid")
    return old_prefix, (side, side)


def _whole_layer_fits(source: Source, name: str, shapes: dict) -> bool:
    """Whether weight and bias of a layer both fit: half a head is none."""
    layer = name.rpartition(".")[0] + "."
    return all(
        key in source.tensors and source.tensors[key].shape == tuple(shape)
        for key, shape in shapes.items()
        if key.startswith(layer)
    )
