"""What Precision asks of paddle.amp, with recorders in its place: Paddle has no half precision on CPU."""

import inspect
import json
import logging
from types import SimpleNamespace

import paddle
import pytest

from plsc.config.schema import FP16, LossScaling
from plsc.engine.precision import Precision
from plsc.errors import TrainingError
from tests.helpers import log_texts


class FakeScaler:
    """A GradScaler that keeps a journal; `overflows` says for each step whether its gradients overflow."""

    made = []

    def __init__(self, **arguments):
        self.arguments = arguments
        self.present = arguments["init_loss_scaling"]
        self.journal, self.overflows = [], []
        self._cache_found_inf = None
        FakeScaler.made.append(self)

    def scale(self, loss):
        return loss * self.present

    def unscale_(self, optimizer):
        self.journal.append(("unscale", optimizer))
        for parameter in optimizer.parameters:
            parameter.grad = parameter.grad / self.present

    def step(self, optimizer):
        self.journal.append(("step", optimizer))
        self._cache_found_inf = self.overflows.pop(0) if self.overflows else False

    def set_init_loss_scaling(self, value):
        self.present = value


class Amp:
    """Recorders of decorate and auto_cast that hold each call against Paddle's own signature."""

    def __init__(self):
        self.signatures = {n: inspect.signature(getattr(paddle.amp, n)) for n in ("decorate", "auto_cast")}
        self.calls = {"decorate": [], "auto_cast": []}

    def record(self, name, arguments):
        self.signatures[name].bind(**arguments)  # TypeError for a keyword that Paddle does not have
        self.calls[name].append(arguments)

    def decorate(self, **arguments):
        self.record("decorate", arguments)
        model, optimizer = arguments["models"], arguments.get("optimizers")
        return model if optimizer is None else (model, optimizer)

    def auto_cast(self, **arguments):
        self.record("auto_cast", arguments)
        return "the context"


@pytest.fixture
def amp(monkeypatch):
    recorder = Amp()
    inspect.signature(paddle.amp.GradScaler).bind(enable=True)
    monkeypatch.setattr("plsc.engine.precision._missing", lambda dtype: None)
    monkeypatch.setattr(paddle.amp, "decorate", recorder.decorate)
    monkeypatch.setattr(paddle.amp, "auto_cast", recorder.auto_cast)
    monkeypatch.setattr(paddle.amp, "GradScaler", FakeScaler)
    monkeypatch.setattr(FakeScaler, "made", [])
    return recorder


@pytest.fixture
def warnings():
    with log_texts(logging.WARNING) as texts:
        yield texts


def paddle_optimizer(*parameters):
    """A Paddle optimizer that counts its own steps."""
    inner = SimpleNamespace(parameters=list(parameters), steps=0)

    def step():
        inner.steps += 1

    inner.step = step
    return inner


def optimizer_of(**gradients):
    """As plsc.optim.Optimizer: named parameters and the Paddle optimizer over them."""
    named = [(name, SimpleNamespace(grad=paddle.to_tensor(g))) for name, g in gradients.items()]
    return SimpleNamespace(named=named, paddle_optimizer=paddle_optimizer(*(p for _, p in named)))


# -- decorate and auto_cast ---------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(("master_weight", "master_grad"), [(True, True), (True, False), (False, False)])
def test_o2_decorates_model_and_optimizer(amp, dtype, master_weight, master_grad):
    fp16 = FP16(level="O2", dtype=dtype, master_weight=master_weight, master_grad=master_grad)
    precision = Precision(fp16, on_cpu=False)
    assert precision.active
    assert precision.keeps_masters is master_weight
    model = paddle.nn.Linear(1, 1)
    assert precision.decorate(model, "optimizer") == (model, "optimizer")
    assert amp.calls["decorate"] == [
        dict(
            models=model,
            optimizers="optimizer",
            level="O2",
            dtype=dtype,
            master_weight=master_weight,
            master_grad=master_grad,
        )
    ]


def test_o2_for_evaluation_decorates_the_model_alone(amp):
    precision = Precision(FP16(level="O2", dtype="bfloat16"), on_cpu=False)
    assert precision.decorate("model") == ("model", None)
    assert amp.calls["decorate"] == [dict(models="model", level="O2", dtype="bfloat16")]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_o1_casts_in_operations_only(amp, dtype):
    """The weights stay float32, so there are no masters and nothing is decorated."""
    precision = Precision(FP16(level="O1", dtype=dtype), on_cpu=False)
    assert precision.active
    assert not precision.keeps_masters
    assert precision.decorate("model", "optimizer") == ("model", "optimizer")
    assert amp.calls["decorate"] == []
    assert precision.autocast() == "the context"
    assert amp.calls["auto_cast"] == [
        dict(enable=True, custom_white_list=None, custom_black_list=None, level="O1", dtype=dtype)
    ]


def test_custom_lists_reach_auto_cast(amp):
    fp16 = FP16(level="O2", fp16_custom_white_list=["softmax"], fp16_custom_black_list=["tanh", "gelu"])
    Precision(fp16, on_cpu=False).autocast()
    (call,) = amp.calls["auto_cast"]
    assert set(call["custom_white_list"]) == {"softmax"}
    assert set(call["custom_black_list"]) == {"tanh", "gelu"}
    assert (call["level"], call["dtype"]) == ("O2", "float16")


@pytest.mark.parametrize("fp16", [None, FP16(level="O0")], ids=["none", "O0"])
@pytest.mark.parametrize("on_cpu", [False, True])
def test_float32_asks_nothing_of_amp(amp, warnings, fp16, on_cpu):
    precision = Precision(fp16, on_cpu=on_cpu)
    assert not precision.active
    assert not precision.keeps_masters
    assert precision.decorate("model", "optimizer") == ("model", "optimizer")
    with precision.autocast():
        pass
    assert amp.calls == {"decorate": [], "auto_cast": []}
    assert FakeScaler.made == []
    assert warnings == []
    assert precision.loss_scale is None


@pytest.mark.parametrize("level", ["O1", "O2"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_on_cpu_one_warning_and_float32(amp, warnings, level, dtype):
    precision = Precision(FP16(level=level, dtype=dtype), on_cpu=True)
    assert not precision.active
    assert not precision.keeps_masters
    assert precision.scaler is None
    assert precision.decorate("model", "optimizer") == ("model", "optimizer")
    with precision.autocast():
        pass
    assert amp.calls == {"decorate": [], "auto_cast": []}
    assert FakeScaler.made == []
    (text,) = warnings
    assert dtype in text
    assert level in text
    assert "float32" in text


def test_without_masters_on_cpu_is_still_one_warning(amp, warnings):
    """The weights are float32 there, so nothing is lost for want of masters."""
    Precision(FP16(level="O2", master_weight=False), on_cpu=True)
    assert len(warnings) == 1


def test_without_masters_on_gpu_is_warned_of(amp, warnings):
    Precision(FP16(level="O2", master_weight=False), on_cpu=False)
    (text,) = warnings
    assert "master" in text
    Precision(FP16(level="O2"), on_cpu=False)
    Precision(FP16(level="O1", master_weight=False), on_cpu=False)
    assert len(warnings) == 1


# -- loss scaling -------------------------------------------------------------------------


def test_paddles_scaler_never_changes_the_scale(amp):
    """Its own lowering fails with NumPy 2.4; ours is handed to it."""
    float16(init_loss_scaling=1024.0)
    (scaler,) = FakeScaler.made
    assert scaler.arguments == dict(enable=True, init_loss_scaling=1024.0, use_dynamic_loss_scaling=False)


def test_scaler_arguments_are_paddles():
    """Paddle's own class takes these names, and its step leaves what compat.found_inf reads."""
    names = set(inspect.signature(paddle.amp.GradScaler.__init__).parameters)
    assert {"enable", "init_loss_scaling", "use_dynamic_loss_scaling"} <= names
    assert list(inspect.signature(paddle.amp.GradScaler.set_init_loss_scaling).parameters)[1:]
    assert "_cache_foun" in inspect.getsource(paddle.amp.GradScaler.step)


def test_bfloat16_has_no_loss_scale(amp):
    precision = Precision(FP16(level="O2", dtype="bfloat16"), on_cpu=False)
    optimizer = optimizer_of(w=[2.0])
    loss = paddle.to_tensor([3.0])
    assert FakeScaler.made == []
    assert precision.scale(loss) is loss
    precision.unscale(optimizer)
    assert optimizer.named[0][1].grad.tolist() == [2.0]
    precision.step(optimizer)
    assert optimizer.paddle_optimizer.steps == 1
    assert precision.loss_scale is None
    assert precision.state_dict() == {}
    precision.load_state_dict({})


def float16(**scaling) -> Precision:
    scaling = {"init_loss_scaling": 8.0, **scaling}
    return Precision(FP16(level="O2", GradScaler=LossScaling(**scaling)), on_cpu=False)


def test_loss_is_scaled(amp):
    precision = float16()
    assert precision.scale(paddle.to_tensor([3.0])).tolist() == [24.0]
    assert precision.loss_scale == 8.0


def test_order_of_unscaling_and_step(amp):
    """Unscaled once, before whoever clips; then a step by the scaler, which looks after overflows."""
    precision = float16()
    optimizer = optimizer_of(w=[16.0])
    precision.unscale(optimizer)
    assert optimizer.named[0][1].grad.tolist() == [2.0]
    precision.step(optimizer)
    inner = optimizer.paddle_optimizer
    assert precision.scaler.journal == [("unscale", inner), ("step", inner)]
    assert inner.steps == 0  # the scaler steps it, not we


def test_no_unscale_list_keeps_the_scale(amp):
    """Gradients that it names by a part have the loss scale back before the step; a missing one is no matter."""
    precision = float16(no_unscale_list=["head"])
    optimizer = optimizer_of(**{"blocks.0.weight": [16.0], "head.weight": [24.0]})
    precision.unscale(optimizer)
    assert [p.grad.tolist() for _, p in optimizer.named] == [[2.0], [24.0]]
    assert [what for what, _ in precision.scaler.journal] == ["unscale"]
    optimizer.named.append(("head.bias", SimpleNamespace(grad=None)))
    precision.unscale(optimizer)


def test_skipped_updates_are_counted(amp):
    precision = float16(max_skipped_updates=3)
    optimizer = optimizer_of(w=[1.0])
    precision.scaler.overflows = [True, True, False, True]
    counts = []
    for _ in range(4):
        precision.step(optimizer)
        counts.append((precision.skipped, precision.skipped_in_a_row))
    assert counts == [(1, 1), (2, 2), (2, 0), (3, 1)]


def test_too_many_skipped_updates_end_the_run(amp):
    """The third in a row; the message names the loss scale it came down to."""
    precision = float16(max_skipped_updates=3, decr_every_n_nan_or_inf=1, decr_ratio=0.25)
    optimizer = optimizer_of(w=[1.0])
    precision.scaler.overflows = [True, True, True]
    precision.step(optimizer)
    precision.step(optimizer)
    with pytest.raises(TrainingError, match=r"3 updates.*0\.125"):
        precision.step(optimizer)


def scales(precision, overflows) -> list[float]:
    """The loss scale after each of some updates, as Paddle's scaler has it."""
    optimizer = optimizer_of(w=[1.0])
    precision.scaler.overflows = list(overflows)
    seen = []
    for _ in overflows:
        precision.step(optimizer)
        assert precision.scaler.present == precision.loss_scale
        seen.append(precision.loss_scale)
    return seen


def test_the_scale_is_lowered_after_overflows_in_a_row(amp):
    """Every second one in a row here; one that is alone, or a good update between two, lowers nothing."""
    precision = float16(decr_every_n_nan_or_inf=2, decr_ratio=0.25)
    assert scales(precision, [True, False, True, True, True, True, True]) == [8.0, 8.0, 8.0, 2.0, 2.0, 0.5, 0.5]


def test_the_scale_is_raised_after_good_updates_in_a_row(amp):
    """An overflow begins the count anew; max_loss_scaling holds at once."""
    precision = float16(incr_every_n_steps=2, incr_ratio=3.0, max_loss_scaling=100.0)
    overflows = [False, True, False, False, False, False, False, False]
    assert scales(precision, overflows) == [8.0, 8.0, 8.0, 24.0, 24.0, 72.0, 72.0, 100.0]


def test_a_fixed_scale_stays(amp):
    precision = float16(use_dynamic_loss_scaling=False, incr_every_n_steps=1, decr_every_n_nan_or_inf=1)
    assert scales(precision, [False, True, True, False]) == [8.0] * 4
    assert precision.skipped == 2


def test_max_loss_scaling_bounds_the_first_scale(amp):
    assert float16(init_loss_scaling=64.0, max_loss_scaling=32.0).loss_scale == 32.0
    assert FakeScaler.made[-1].arguments["init_loss_scaling"] == 32.0


def test_state_round_trip(amp):
    """Scale and counts through JSON as in trainer.json: the continued scaler does what the first would have done."""
    settings = dict(decr_every_n_nan_or_inf=2, incr_every_n_steps=3)
    precision, again = float16(**settings), float16(**settings)
    scales(precision, [True, True, True])
    state = json.loads(json.dumps(precision.state_dict()))
    again.load_state_dict(state)
    assert again.loss_scale == again.scaler.present == 4.0
    assert (again.skipped, again.skipped_in_a_row) == (3, 3)
    assert again.state_dict() == state
    rest = [True, False, False, False, True, True]
    assert scales(again, rest) == scales(precision, rest) == [2.0, 2.0, 2.0, 4.0, 4.0, 2.0]


def test_a_state_of_plsc_3_0(amp):
    """That version kept the state of Paddle's scaler; what the configuration says of the scaler holds all the same."""
    scaler = {"scale": [512.0], "incr_ratio": 9.0, "decr_ratio": 0.1, "incr_every_n_steps": 5, "incr_count": 17}
    scaler |= {"decr_every_n_nan_or_inf": 7, "decr_count": 1, "use_dynamic_loss_scaling": False}
    precision = float16(decr_every_n_nan_or_inf=2)
    precision.load_state_dict({"scaler": scaler, "skipped": 3, "skipped_in_a_row": 1})
    assert (precision.loss_scale, precision.skipped) == (512.0, 3)
    assert scales(precision, [True]) == [256.0]


def test_state_between_precisions(amp):
    """A run continued in another precision: what is not there stays as it is."""
    state = float16().state_dict()
    bfloat16 = Precision(FP16(dtype="bfloat16"), on_cpu=False)
    bfloat16.load_state_dict(state)
    assert bfloat16.state_dict() == {}
    precision = float16()
    precision.load_state_dict({})
    assert precision.loss_scale == 8.0
