"""Exported graphs in their runtimes: a file → a function of images [B, C, H, W] float32 → logits [B, classes] float32.

Paddle is imported only for its own exports.
"""

import contextlib
import ctypes
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

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
        with captured_output():
            predictor = inference.create_predictor(config)
    except (RuntimeError, ValueError, OSError) as error:
        raise CheckpointError(f"{file}: Paddle Inference cannot load it: {_last_line(error)}") from error
    entry = predictor.get_input_handle(predictor.get_input_names()[0])
    end = predictor.get_output_handle(predictor.get_output_names()[0])
    first = True  # oneDNN prints to standard output when it sees some operations first

    def forward(images: np.ndarray) -> np.ndarray:
        nonlocal first
        entry.copy_from_cpu(images)
        try:
            with captured_output() if first else contextlib.nullcontext():
                predictor.run()
        except (RuntimeError, ValueError) as error:
            raise _does_not_run(file, images, error) from error
        first = False
        return end.copy_to_cpu().astype("float32", copy=False)

    return forward


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


@contextlib.contextmanager
def captured_output() -> Iterator[Callable[[], str]]:
    """Context in which nothing is printed, also by compiled libraries; yields what reads the text that was."""
    _flush()
    kept = [os.dup(1), os.dup(2)]
    with tempfile.TemporaryFile() as file:

        def printed() -> str:
            _flush()
            file.seek(0)
            return file.read().decode(errors="replace")

        try:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            yield printed
        finally:
            _flush()
            for number, descriptor in enumerate(kept, start=1):
                os.dup2(descriptor, number)
                os.close(descriptor)


def _flush() -> None:
    """Write out what Python, C and C++ hold back."""
    sys.stdout.flush()
    sys.stderr.flush()
    ctypes.CDLL(None).fflush(None)
