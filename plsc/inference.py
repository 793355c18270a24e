"""A network's forward without learning, on CPU: in dygraph, or in Paddle Inference's graph where that takes less time.

The graph takes half of dygraph's processor time (docs/performance.md), but it is made of one state of the weights. That
takes as long as some pictures do in dygraph.
"""

import copy
import logging
import math
import threading
import time
import warnings
from collections.abc import Callable
from typing import Literal

import numpy as np
import paddle
from paddle.static import InputSpec

from plsc import compat, environment, files, runtimes
from plsc.errors import DeviceError, PlscError
from plsc.models.base import Deployable
from plsc.models.spec import known_flops

log = logging.getLogger("plsc")

Network = Callable[[paddle.Tensor], paddle.Tensor]
Mode = Literal["auto", "graph", "dygraph"]

TOLERANCE = 1e-5  # of outputs, between graph and dygraph, as a fraction of the largest
_CHECKED = 4  # pictures that both compute: fewer than the graph takes, so that one which mixes pictures is found out
_SAVED = 0.4  # of dygraph's time; processor time measured: 0.5 with ViT-Ti, 0.35 with ViT-B
_SPEED = 8e10  # operations a second of dygraph on one core, measured with ViT-Ti
_SECONDS, _SECONDS_A_PARAMETER = 0.4, 1.5e-8  # that making a graph takes, before one was made
_ROWS = 32  # of a thread at a time; fewer take longer a picture (4: a sixth more than 25)


class Inference:
    """How the forward of networks is computed, from one evaluation to the next.

    It begins in dygraph. After `convert` the network's graph is used until `close`; the weights must not change
    meanwhile. Where a model makes no graph, or one that computes something else, the log has the reason, and everything
    stays in dygraph for good; where the machine lacks disk or memory for it, another one is tried later. With Paddle 2
    auto means dygraph.

    Args:
        mode: auto, or graph or dygraph whatever takes longer.
        use: what is computed, for the log.
    """

    def __init__(self, mode: Mode = "auto", *, use: str = "evaluation"):
        self.mode, self._use = mode, use
        self._graph: runtimes.InRows | None = None
        self._shape: list[int] = []  # [C, H, W] that the graph takes
        self._cost: float | None = None  # seconds that the last graph took
        # images, their version, and what the new graph made of them
        self._compared: tuple[paddle.Tensor, int, paddle.Tensor] | None = None
        self._spent = 0.0  # seconds in `answer`, in dygraph
        self._patience = 1  # doubled by each graph that could not be made
        self._possible = mode == "graph" or (mode == "auto" and not compat.IS_PADDLE_2)
        self._making = threading.Lock()

    @property
    def undecided(self) -> bool:
        """Whether there is no graph, but may be one."""
        return self._possible and self._graph is None

    def __call__(self, network: Network, images: paddle.Tensor) -> paddle.Tensor:
        """Images [B, C, H, W] float32 → the network's outputs [B, …].

        In dygraph also where images have another size than the graph takes, or are so few that this takes less time.
        """
        compared, self._compared = self._compared, None
        if compared is not None and compared[0] is images and compared[1] == images.inplace_version:
            return compared[2]
        graph = self._graph
        if graph is None or list(images.shape[1:]) != self._shape or len(images) < graph.rows / 2:
            return network(images)
        return paddle.to_tensor(graph(images.numpy()))

    def answer(self, network: Network, images: paddle.Tensor) -> paddle.Tensor:
        """As a call, of weights that stay as they are and images whose number is unknown; in any thread.

        Once dygraph has taken so long that a graph would have paid, as much again is expected and the graph made: in
        the main thread only, since recording a network stops the dygraph of other threads. In mode graph the first
        images wait for it, in whatever thread they come.
        """
        if self.mode == "graph":
            with self._making:
                if self.undecided:
                    self.convert(network, images)
        if not self.undecided:
            return self(network, images)
        started = time.perf_counter()
        outputs = network(images)
        self._spent += time.perf_counter() - started
        repays = _SAVED * self._spent > self._patience * (self._cost or _expected_seconds(network))
        if repays and threading.current_thread() is threading.main_thread():
            self.convert(network, images)
        return outputs

    def pays(self, network: Network, pictures: int) -> bool:
        """Whether a graph for so many pictures saves more time than it takes, by counts alone.

        No time is measured, so that a run which is repeated or continued computes the same bits. A network whose
        operations plsc cannot count stays in dygraph.
        """
        if self.mode == "graph" or not self.undecided:
            return self.undecided
        operations = known_flops(getattr(network, "spec", None)) or 0  # of one picture
        return _SAVED * pictures * operations / _SPEED > _expected_seconds(network)

    def convert(self, network: Network, images: paddle.Tensor) -> None:
        """Make the graph of a network in evaluation mode, for batches like these images.

        Raises:
            DeviceError: it cannot be made or computes something else, and the mode is graph.
        """
        started = time.perf_counter()
        try:
            graph = _made(network, images)
            outputs = _compared(graph, network, images)
        except Exception as error:  # whatever a model of somebody's own raises where it is traced
            passing = _is_of_the_machine(error)
            self._possible = passing and self.mode == "auto"
            self._patience *= 2
            cause = "no graph can be made now" if passing else "the model makes no graph"
            if isinstance(error, _Differs):
                cause = "the model's graph computes something else"
            text = f"{self._use} stays in dygraph: {cause}: {_reason(error)}"
            if self.mode == "graph":
                raise DeviceError(f"{text}; Global.inference: auto goes on without it") from error
            log.info("%s%s", text, "; it is tried again later" if passing else "")
        else:
            seconds = time.perf_counter() - started
            if self._cost is None:
                log.info("%s runs in Paddle Inference's graph, which was made in %.1f s", self._use, seconds)
            self._cost, self._shape = seconds, list(images.shape[1:])
            self._compared = images, images.inplace_version, outputs
            self._graph = graph  # last: other threads may use it now

    def close(self) -> None:
        """Give up the graph, if there is one."""
        self._graph = self._compared = None


class _Differs(Exception):
    """A graph that does not compute what its network does."""


def _made(network: Network, images: paddle.Tensor) -> runtimes.InRows:
    """The graph of a copy of the network."""
    if compat.IS_PADDLE_2:
        raise DeviceError("graphs are used with Paddle 3 only")
    if not isinstance(network, paddle.nn.Layer):
        raise TypeError(f"{type(network).__name__} is not a paddle.nn.Layer")
    copied = copy.deepcopy(network)
    for layer in copied.sublayers(include_self=True):
        layer.__dict__.pop("forward", None)  # recomputing and compiled blocks, which are for training
    if isinstance(copied, Deployable):
        copied.simplify(dynamic=False, for_onnx=False)
    rows = rows_of(len(images), environment.thread_count())
    with files.temporary_folder("plsc-graph") as folder:
        shape = InputSpec([rows, *images.shape[1:]], "float32", "image")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Paddle's own parts
            compat.save_graph(_AsItIs(copied), str(folder / "inference"), shape)
        del copied
        return runtimes.InRows(folder / "inference.json", rows=rows)


class _AsItIs(paddle.nn.Layer):
    """A network whose Python code runs once and is recorded, without being rewritten as Paddle does for control flow.

    That takes a tenth of the time. A model that looks at values of tensors cannot be recorded so.
    """

    def __init__(self, network: paddle.nn.Layer):
        super().__init__()
        self.network = network

    @paddle.jit.not_to_static
    def forward(self, images: paddle.Tensor) -> paddle.Tensor:
        return self.network(images)


def rows_of(batch: int, threads: int) -> int:
    """Rows that the graph takes at a time: few enough for the threads, and those of a batch in equal parts."""
    return math.ceil(batch / math.ceil(batch / (_ROWS * threads)))


def _compared(graph: runtimes.InRows, network: Network, images: paddle.Tensor) -> paddle.Tensor:
    """What the graph makes of images. Raises _Differs where the network makes something else of the first ones."""
    some = max(1, min(_CHECKED, graph.rows - 1))
    expected, outputs = network(images[:some]).numpy(), graph(images.numpy())
    computed = outputs[:some]
    if computed.shape != expected.shape:
        raise _Differs(f"its outputs have the shape {list(computed.shape)}, those of dygraph {list(expected.shape)}")
    difference, largest = float(np.abs(computed - expected).max()), float(np.abs(expected).max())
    if not difference <= TOLERANCE * largest:  # true for nan, too
        raise _Differs(
            f"its outputs differ by {difference:.1e} from those of dygraph, which are up to {largest:.3g}; "
            f"{TOLERANCE:.0e} of the largest is tolerated"
        )
    return paddle.to_tensor(outputs)


def _expected_seconds(network: Network) -> float:
    """That making a graph takes, by the number of parameters."""
    parameters = network.parameters() if isinstance(network, paddle.nn.Layer) else []
    return _SECONDS + _SECONDS_A_PARAMETER * sum(parameter.size for parameter in parameters)


def _is_of_the_machine(error: Exception) -> bool:
    """Whether disk or memory was lacking, which may pass, and not the model is at fault."""
    return any(isinstance(e, (OSError, MemoryError)) for e in (error, error.__cause__))


def _reason(error: Exception) -> str:
    """What an error says, without Paddle's traces of its own code."""
    if isinstance(error, (_Differs, PlscError)):
        return str(error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1]}" if lines else type(error).__name__
