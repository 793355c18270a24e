"""What a path means: a run directory, a checkpoint, a `latest` or `best` file, an export, a file of weights.

    RUN/config.yaml, metrics.jsonl, …
    RUN/checkpoints/step-00001234/    trainer.json, model.safetensors, config.yaml, …: one checkpoint
    RUN/checkpoints/latest, best      text files that name such a folder
    EXPORT/                           inference.json (Paddle 2: .pdmodel) with inference.pdiparams, or model.onnx
    WEIGHTS                           a file, or a folder that holds one under a usual name
    PREFIX.index, PREFIX.data-…       a TensorFlow checkpoint; a file called checkpoint there names the latest

Standard library only.
"""

import logging
import os
import re
from collections.abc import Iterable
from pathlib import Path

from plsc import remote
from plsc.errors import CheckpointError
from plsc.files import read_json, special_kind

log = logging.getLogger("plsc")

CHECKPOINTS = "checkpoints"  # folder of a run directory
POINTERS = ("latest", "best")
RECIPE = "config.yaml"
EXPORT_DESCRIPTION = "export.json"
PADDLE_MODELS, ONNX_MODEL = ("inference.json", "inference.pdmodel"), "model.onnx"  # what an export has one of

_STEP = re.compile(r"step-(\d{8,})")
_INDEX_ENDING = ".safetensors.index.json"  # of a list of the files that arrays are spread over
_INDEX = f"model{_INDEX_ENDING}"
_INDICES = (_INDEX, "pytorch_model.bin.index.json")
_WEIGHTS = ("model.safetensors", "pytorch_model.bin", "best_model.pdparams", "latest.pdparams")
_TORCH = (".pth", ".pt", ".bin", ".tar", ".ckpt")  # which may hold averaged weights beside the raw ones
_OTHER_WEIGHTS = (".safetensors", ".npz", ".pth")  # whatever their names, where a folder holds one alone
_PADDLE_GRAPHS = (".json", ".pdmodel")
_TENSORFLOW_POINTER, _TENSORFLOW_DATA = "checkpoint", re.compile(r"(.+)\.data-\d{5}-of-\d{5}")


# -- runs and their checkpoints ---------------------------------------------------------------


def step_name(step: int) -> str:
    """The name of a checkpoint's folder."""
    return f"step-{step:08d}"


def step_of(path: Path) -> int | None:
    """The step that the name of a checkpoint's folder says; None where it is no such name."""
    match = _STEP.fullmatch(path.name)
    return int(match[1]) if match else None


def steps(folder: Path) -> list[int]:
    """Steps of the checkpoints in a run's checkpoints folder, rising."""
    if not folder.is_dir():
        return []
    named = (step_of(folder / entry) for entry in os.listdir(folder) if (folder / entry).is_dir())
    return sorted(step for step in named if step is not None)


def find(folder: Path, which: str) -> Path | None:
    """The checkpoint that latest, best or step-… means in a run's checkpoints folder; None where it is missing.

    latest is the newest checkpoint where no file names one that is there.
    """
    name = pointed(folder / which) if which in POINTERS else which
    if _STEP.fullmatch(name) and (folder / name).is_dir():
        return folder / name
    existing = steps(folder)
    return folder / step_name(existing[-1]) if existing and which == "latest" else None


def pointed(pointer: Path) -> str:
    """The first word of a latest or best file, the name of a checkpoint; empty where there is no such file."""
    if not pointer.is_file():
        return ""
    try:
        return (pointer.read_text(encoding="utf-8").split() or [""])[0]
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{pointer}: cannot be read: {error}; name a checkpoint's folder instead, or remove it"
        ) from error


def is_checkpoint(path: str | Path) -> bool:
    """Whether a path is the folder of one checkpoint."""
    return (Path(path) / "trainer.json").is_file()


def checkpoint(path: str | Path, prefer: tuple[str, ...] = ("latest",)) -> Path | None:
    """The checkpoint folder that a path means; None where it means none that is there.

    Args:
        path: a checkpoint folder, a latest or best file, a run directory or its checkpoints folder.
        prefer: which of a run's checkpoints, the first that is there.
    """
    path = Path(path).expanduser()
    if is_checkpoint(path):
        return path
    if path.name in POINTERS and not path.is_dir():
        return find(path.parent, path.name)
    for folder in (path / CHECKPOINTS, path):
        for which in prefer:
            try:
                meant = find(folder, which)
            except CheckpointError as error:
                if which == prefer[-1]:
                    raise
                log.warning("%s; %s is taken instead", error, prefer[-1])
                continue
            if meant is not None:
                return meant
    return None


def run_directory(path: str | Path) -> Path | None:
    """The run that a path belongs to; None where it belongs to none.

    Args:
        path: a run directory, its checkpoints folder, or a checkpoint, a file of one, latest or best in that.
    """
    path = Path(path).expanduser().absolute()
    if steps(path / CHECKPOINTS):
        return path
    if path.name == CHECKPOINTS and steps(path):
        return path.parent
    for inside in (path, path.parent):
        if inside.parent.name == CHECKPOINTS and (inside.name in POINTERS or _STEP.fullmatch(inside.name)):
            return inside.parent.parent
    return None


def recipe(path: str | Path) -> Path | None:
    """The config.yaml of a checkpoint or run directory, or beside a file of weights; None where there is none."""
    path = Path(path).expanduser()
    if path.is_file() and path.name in POINTERS:
        path = checkpoint(path) or path
    file = (path if path.is_dir() else path.parent) / RECIPE
    return file if file.is_file() else None


# -- exports ------------------------------------------------------------------------------------


def exported_model(path: str | Path) -> Path | None:
    """The exported graph that a file, a folder or a name without ending means; None where it is not an export."""
    path = Path(path).expanduser()
    if path.is_dir():
        if any((path / name).is_file() for name in (*_WEIGHTS, *_INDICES)):
            return None  # somebody's weights, with an export of their own beside them
        names = [path / name for name in (*PADDLE_MODELS, ONNX_MODEL)]
        return next(
            filter(_is_graph, [*names, *sorted(path.glob("*.onnx")), *_graphs_of(path.glob("*.pdiparams"))]), None
        )
    candidates = [path, *_graphs_of([path])] if path.suffix == ".pdiparams" else [path, *_graphs_of([path], add=True)]
    return next(filter(_is_graph, candidates), None)


def _graphs_of(files: Iterable[Path], *, add: bool = False) -> list[Path]:
    """The graph files of Paddle that may go with files of parameters, or with names without ending."""
    return [
        file.with_name(file.name + ending) if add else file.with_suffix(ending)
        for file in sorted(files)
        for ending in _PADDLE_GRAPHS
    ]


def _is_graph(file: Path) -> bool:
    if not file.is_file():
        return False
    return file.suffix == ".onnx" or (file.suffix in _PADDLE_GRAPHS and file.with_suffix(".pdiparams").is_file())


# -- weights ------------------------------------------------------------------------------------


def weights_file(path: str | Path, weights: str = "model") -> Path:
    """The file of weights that a path means.

    Args:
        path: a file, a .pdparams or .pdema file without its ending, a folder of plsc, Hugging Face or PLSC, a run
            directory (its best checkpoint, else its latest), a latest or best file, a TensorFlow checkpoint's prefix,
            one of its files, its folder, or the file called checkpoint there (it means the .index file), or a name
            that plsc.remote downloads.
        weights: model, or ema for the averaged ones of a plsc, TensorFlow or torch checkpoint.

    Raises:
        CheckpointError: there is none; the message says what was looked for.
    """
    path = remote.local(path) if remote.is_remote(path) else Path(path).expanduser()
    if path.name in POINTERS and path.is_file():
        named, folder = pointed(path), checkpoint(path)
        if folder is None or folder.name != named:
            raise CheckpointError(f"{path}: names {named or 'nothing'}, which is not there")
        path = folder
    if path.is_file() and weights != "model" and path.name in (_WEIGHTS[0], _INDEX):
        path = path.parent  # the folder shows whether it has the weights asked for
    if path.is_dir():
        return _file_in(path, weights)
    index = _tensorflow_index(path)
    if index is not None:
        return index
    if path.is_file():
        _refuse_export(path)
        own = (f"{weights}.safetensors", f"{weights}{_INDEX_ENDING}")
        if weights != "model" and path.name not in own and path.suffix not in _TORCH:
            raise CheckpointError(
                f"{path}: holds no averaged weights; those are in a plsc checkpoint's {weights}.safetensors"
            )
        return path
    for ending in (".pdparams", ".pdema"):
        if path.with_name(path.name + ending).is_file():
            return path.with_name(path.name + ending)
    _refuse_export(path)
    kind = special_kind(path)
    if kind:
        raise CheckpointError(f"{path}: is {kind}, not a file")
    raise CheckpointError(f"{path}: no such file or folder (looked in {Path.cwd()})")


def _file_in(folder: Path, weights: str) -> Path:
    """The file of weights in a folder: one of plsc, of others, or a run directory's."""
    own = checkpoint(folder, prefer=("best", "latest")) or folder
    if weights != "model":
        for name in (f"{weights}.safetensors", f"{weights}{_INDEX_ENDING}"):
            if (own / name).is_file():
                return own / name
        of_plsc = is_checkpoint(own) or (own / _WEIGHTS[0]).is_file()
        index = None if of_plsc else _tensorflow_index_in(own)
        if index is not None:
            return index
        raise CheckpointError(f"{own}: holds no averaged weights ({weights}.safetensors)")
    for name in (*_WEIGHTS, *_INDICES):
        if (own / name).is_file():
            return own / name
    paddle_files = sorted(own.glob("*.pdparams"))
    if len(paddle_files) == 1:
        return paddle_files[0]
    index = _tensorflow_index_in(own)
    if index is not None:
        return index
    _refuse_export(own)
    others = sorted(file for file in own.iterdir() if file.suffix in _OTHER_WEIGHTS and file.is_file())
    if len(others) == 1 and not paddle_files:
        return others[0]
    if (folder / RECIPE).is_file() and (folder / CHECKPOINTS).is_dir() and not steps(folder / CHECKPOINTS):
        raise CheckpointError(
            f"{folder}: this run has not saved a checkpoint yet; where it has ended, plsc train -c {folder / RECIPE} "
            "-o Global.resume=auto begins it again"
        )
    files = [*paddle_files, *others]
    several = f"; there are {', '.join(file.name for file in files)}: name one" if files else ""
    raise CheckpointError(
        f"{folder}: neither a checkpoint nor a run directory, and none of {', '.join(_WEIGHTS)} is in it{several}"
    )


def _tensorflow_index(path: Path) -> Path | None:
    """The index of the TensorFlow checkpoint that a prefix or a file means; None where it means none."""
    if path.name == _TENSORFLOW_POINTER and path.is_file():
        return _tensorflow_pointed(path)
    data = _TENSORFLOW_DATA.fullmatch(path.name)
    index = path if path.suffix == ".index" else path.with_name(f"{data[1] if data else path.name}.index")
    return index if index.is_file() and (data or not path.is_file() or index == path) else None


def _tensorflow_index_in(folder: Path) -> Path | None:
    """The index of the TensorFlow checkpoint in a folder: the one that its pointer names, or the only one."""
    pointer = folder / _TENSORFLOW_POINTER
    index = _tensorflow_pointed(pointer) if pointer.is_file() else None
    if index is not None:
        return index
    indices = sorted(folder.glob("*.index"))
    if len(indices) > 1:
        names = ", ".join(file.stem for file in indices)
        raise CheckpointError(f"{folder}: holds {len(indices)} TensorFlow checkpoints ({names}); name one of them")
    return indices[0] if indices else None


def _tensorflow_pointed(pointer: Path) -> Path | None:
    """The index that a file called checkpoint names, looked for beside it; None where it is a file of another kind."""
    try:
        with open(pointer, "rb") as file:
            text = file.read(2**16).decode("utf-8", "replace")
    except OSError as error:
        raise CheckpointError(f"{pointer}: cannot be read: {error}") from error
    named = re.match(r'model_checkpoint_path: "([^"\n]+)"', text)
    if named is None:
        return None
    index = pointer.with_name(re.split(r"[/\\]", named[1])[-1] + ".index")  # whatever folder it was written in
    if not index.is_file():
        raise CheckpointError(f"{pointer}: names {named[1]}, but {index.name} is not beside it; name an .index file")
    return index


def _refuse_export(path: Path) -> None:
    """Raise CheckpointError where a path means an exported graph."""
    graph = exported_model(path)
    if graph is None:
        return
    description = read_json(graph.with_name(EXPORT_DESCRIPTION), dict, error=CheckpointError) or {}
    made_of = description.get("origin") or description.get("source")
    named = f"; name the checkpoint that it was made of, {made_of}" if made_of else ", made of a checkpoint; name that"
    raise CheckpointError(f"{path}: is an export, a graph whose weights have no names{named}")
