"""Exported graphs in their runtimes: a file → a function of images [B, C, H, W] float32 → logits [B, classes] float32.

Paddle is imported only for its own exports.
"""

import contextlib
import ctypes
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from plsc import environment, places
from plsc.errors import CheckpointError, DataError, DeviceError

NAMES = {"paddle": "Paddle Inference", "onnx": "onnxruntime"}  # kind of export → what runs it
Forward = Callable[[np.ndarray], np.ndarray]
_CUDA = "CUDAExecutionProvider"


def needs_paddle(path: str | Path) -> bool:
    """Whether loading the path imports Paddle: everything but an ONNX export does."""
    file = places.exported_model(path)
    return file is None or file.suffix != ".onnx"


def in_paddle_inference(file: Path) -> Forward:
    """An export in Paddle Inference, on Paddle's present device."""
    return _Session(file, _paddle_predictor(file))


class InRows:
    """An export of a fixed number of rows in Paddle Inference, run on batches of any size.

    Several threads may call it; one at a time computes, with all of the process's threads. (Several predictors at a
    time gain nothing in one process: Paddle 3.3 holds Python's lock while one runs.)

    Args:
        rows: that the graph takes; batches are cut so, and the last rows filled up.
    """

    def __init__(self, file: Path, *, rows: int):
        self.rows = rows
        self._session = in_paddle_inference(file)
        self._lock = threading.Lock()

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Images [B, C, H, W] → logits [B, classes]."""
        with self._lock:
            return np.concatenate([self._run(images[k : k + self.rows]) for k in range(0, len(images), self.rows)])

    def _run(self, piece: np.ndarray) -> np.ndarray:
        whole = piece if len(piece) == self.rows else np.resize(piece, (self.rows, *piece.shape[1:]))
        return self._session(whole)[: len(piece)]


class _Session:
    """One predictor of Paddle Inference as a function, for one thread at a time."""

    def __init__(self, file: Path, predictor: Any):
        self._file, self._predictor = file, predictor
        self._prints = True  # its first run may print a note, which is left out
        self._entry = predictor.get_input_handle(predictor.get_input_names()[0])
        self._end = predictor.get_output_handle(predictor.get_output_names()[0])

    def __call__(self, images: np.ndarray) -> np.ndarray:
        self._entry.copy_from_cpu(np.ascontiguousarray(images))
        try:
            with _without_note() if self._prints else contextlib.nullcontext():
                self._predictor.run()
        except (RuntimeError, ValueError) as error:
            raise _does_not_run(self._file, images, error) from error
        self._prints = False
        return self._end.copy_to_cpu().astype("float32", copy=False)


def _paddle_predictor(file: Path) -> Any:
    """Paddle Inference's predictor of an export, on Paddle's present device."""
    import paddle
    from paddle import inference

    config = inference.Config(str(file), str(file.with_suffix(".pdiparams")))
    config.disable_glog_info()
    kind, _, number = paddle.get_device().partition(":")
    if kind == "cpu":
        config.set_cpu_math_library_num_threads(environment.thread_count())
        config.delete_pass("conv_activation_onednn_fuse_pass")  # with a leaky ReLU Paddle 3.3 ends the process in it
        if file.suffix == ".pdmodel":
            config.disable_mkldnn()  # Paddle 2's oneDNN cannot add the resized positions of a dynamic export
    elif kind == "gpu":
        config.enable_use_gpu(256, int(number or 0))  # MB to begin with
    elif kind == "xpu":
        config.enable_xpu()
        config.set_xpu_device_id(int(number or 0))
    else:
        config.enable_custom_device(kind, int(number or 0))
    try:
        with _without_note():
            return inference.create_predictor(config)
    except (RuntimeError, ValueError, OSError) as error:
        raise CheckpointError(f"{file}: Paddle Inference cannot load it: {_last_line(error)}") from error


def in_onnxruntime(file: Path, device: str) -> tuple[Forward, list[int | None]]:
    """An export in onnxruntime, and the shape of its input with None for what is free.

    Args:
        device: cpu, gpu, gpu:1, …, or auto, auto:1, …: CUDA where onnxruntime offers it.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise DeviceError(f"{file}: needs onnxruntime: pip install onnxruntime") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = environment.thread_count()
    options.log_severity_level = 4  # errors are raised anyway
    kind, _, number = device.partition(":")
    has_cuda = _CUDA in onnxruntime.get_available_providers()
    if kind not in ("auto", "cpu", "gpu") or (kind == "gpu" and not has_cuda):
        raise DeviceError(f"{file}: the installed onnxruntime has no {kind}; onnxruntime-gpu has CUDA")
    providers = [(_CUDA, {"device_id": int(number or 0)})] if has_cuda and kind != "cpu" else []
    try:
        session = onnxruntime.InferenceSession(str(file), options, providers=[*providers, "CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a class of its own for every kind, straight under Exception
        raise CheckpointError(f"{file}: onnxruntime cannot load it: {_last_line(error)}") from error
    entry = session.get_inputs()[0]

    def forward(images: np.ndarray) -> np.ndarray:
        try:
            return session.run(None, {entry.name: images})[0].astype("float32", copy=False)
        except Exception as error:
            raise _does_not_run(file, images, error) from error

    return forward, [side if isinstance(side, int) else None for side in entry.shape]


def _does_not_run(file: Path, images: np.ndarray, error: Exception) -> DataError:
    return DataError(f"{file}: does not run on images {list(images.shape)}: {_last_line(error)}")


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


_NOTE = b"ReduceMeanCheckIfOneDNNSupport\n"  # which Paddle prints on stdout when it first meets the operation
_REDIRECTING = threading.RLock()  # descriptors are those of the whole process


@contextlib.contextmanager
def captured_output() -> Iterator[Callable[[], str]]:
    """Context in which nothing is printed, also by compiled libraries; yields what reads the text that was.

    What other threads print meanwhile is in it, too. One thread at a time captures; others wait.
    """
    with tempfile.TemporaryFile() as file, _redirected(file, 1, 2):

        def printed() -> str:
            _flush()
            file.seek(0)
            return file.read().decode(errors="replace")

        yield printed


@contextlib.contextmanager
def _without_note() -> Iterator[None]:
    """Context that leaves Paddle's note out of stdout; what else is printed, by any thread, appears at its end."""
    with _REDIRECTING, tempfile.TemporaryFile() as file:
        try:
            with _redirected(file, 1):
                yield
        finally:
            file.seek(0)
            if rest := file.read().replace(_NOTE, b""):
                with open(1, "wb", closefd=False) as stdout:
                    stdout.write(rest)


@contextlib.contextmanager
def _redirected(file: IO[bytes], *descriptors: int) -> Iterator[None]:
    """Context in which the process writes into a file instead; one thread at a time."""
    with _REDIRECTING:
        _flush()
        kept = {number: os.dup(number) for number in descriptors}
        try:
            for number in kept:
                os.dup2(file.fileno(), number)
            yield
        finally:
            _flush()
            for number, descriptor in kept.items():
                os.dup2(descriptor, number)
                os.close(descriptor)


def _flush() -> None:
    """Write out what Python, C and C++ hold back."""
    sys.stdout.flush()
    sys.stderr.flush()
    ctypes.CDLL(None).fflush(None)
