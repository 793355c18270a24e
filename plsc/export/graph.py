"""The graph's own files: traced by Paddle, converted to ONNX by paddle2onnx."""

from pathlib import Path
from types import ModuleType
from typing import Any

from paddle import nn
from paddle.static import InputSpec

from plsc import compat
from plsc.errors import CheckpointError, DeviceError
from plsc.files import sync
from plsc.places import ONNX_MODEL
from plsc.runtimes import captured_output

_OPSET = 17
_PROBE = 2**16  # bytes, several blocks of a disk


def import_paddle2onnx() -> ModuleType:
    """Raises DeviceError where a library is missing."""
    try:
        with captured_output():
            import paddle2onnx
    except (ImportError, ValueError) as error:  # it refuses Paddle 2 by a ValueError
        raise DeviceError(
            f"--format onnx needs Paddle 3, paddle2onnx and onnxruntime: pip install paddle2onnx onnxruntime ({error})"
        ) from error
    return paddle2onnx


def write_graph(network: nn.Layer, folder: Path, description: dict[str, Any]) -> None:
    """Write the model's files; adds to the description (of export.json) what wrote them.

    Raises:
        OSError: the disk is full.
        DeviceError: paddle2onnx is missing, or cannot convert the model.
    """
    shape = InputSpec(list(description["input_shape"]), "float32", "image")  # it writes into the list
    with captured_output():  # Paddle warns of its own parts
        compat.save_graph(network, str(folder / "inference"), shape)
    _check_space(folder)
    if description["format"] == "paddle":
        return
    paddle2onnx = import_paddle2onnx()
    description["versions"]["paddle2onnx"] = paddle2onnx.__version__
    file = folder / ONNX_MODEL
    with captured_output() as printed:
        try:
            # another optimize_tool would install packages by itself
            paddle2onnx.export(
                str(folder / "inference.json"),
                str(folder / "inference.pdiparams"),
                str(file),
                opset_version=_OPSET,
                optimize_tool="None",
            )
        except Exception as error:  # it logs what went wrong, and then stumbles over the missing result
            _check_space(folder)
            raise DeviceError(f"paddle2onnx cannot convert the model:\n{printed()}") from error
    _check_space(folder)
    _tidy(file, _norm_epsilon(network))
    for left in folder.glob("inference.*"):
        left.unlink()


def _check_space(folder: Path) -> None:
    """Raise OSError on a full disk, where Paddle and paddle2onnx write less than they should and report nothing."""
    probe = folder / "space"
    probe.write_bytes(bytes(_PROBE))
    sync(probe)
    probe.unlink()


def _norm_epsilon(network: nn.Layer) -> float | None:
    """The epsilon of a model's GroupNorms and InstanceNorms; None where it has none.

    Raises:
        CheckpointError: they have several, which paddle2onnx loses.
    """
    kinds = (nn.GroupNorm, nn.InstanceNorm1D, nn.InstanceNorm2D, nn.InstanceNorm3D)
    epsilons = {layer._epsilon for layer in network.sublayers() if isinstance(layer, kinds)}
    if len(epsilons) > 1:
        some = ", ".join(map(str, sorted(epsilons)))
        raise CheckpointError(
            f"its GroupNorms have several epsilons ({some}), which paddle2onnx loses; choose --format paddle"
        )
    return epsilons.pop() if epsilons else None


def _tidy(file: Path, epsilon: float | None) -> None:
    """Name what a user of an ONNX file sees, drop constants that nothing reads, and repair a fault of paddle2onnx.

    Its 2.1.0 gives GroupNorm, which becomes InstanceNormalization, an epsilon from memory that was never written.
    """
    import onnx

    model = onnx.load(file)
    graph = model.graph
    old = graph.output[0].name
    graph.output[0].name = "logits"
    for node in graph.node:
        node.output[:] = ["logits" if name == old else name for name in node.output]
        if node.op_type == "InstanceNormalization":
            del node.attribute[:]
            node.attribute.append(onnx.helper.make_attribute("epsilon", epsilon))
    for value, names in (
        (graph.input[0], ("batch", "channels", "height", "width")),
        (graph.output[0], ("batch", "classes")),
    ):
        for side, name in zip(value.type.tensor_type.shape.dim, names, strict=True):
            if not side.HasField("dim_value"):
                side.dim_param = name
    read = {name for node in graph.node for name in node.input}
    kept = [node for node in graph.node if node.op_type != "Constant" or node.output[0] in read]
    del graph.node[:]
    graph.node.extend(kept)
    del graph.value_info[:]
    onnx.checker.check_model(model)
    onnx.save(model, file)
