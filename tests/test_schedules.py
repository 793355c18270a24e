"""Learning-rate schedules at steps worked out by hand, and bounds at any length."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plsc.errors import ConfigError
from plsc.registry import SCHEDULERS

# cosines of the hand-worked points
C45 = 0.5 * (1 + math.sqrt(0.5))  # half a cosine after a quarter of its way: 0.853553
C135 = 0.5 * (1 - math.sqrt(0.5))  # after three quarters: 0.146447


def make(name: str, total: int, per_epoch: int = 1, **arguments):
    """A schedule by its registered name, as the engine builds it."""
    return SCHEDULERS.get(name).build(arguments, total_steps=total, steps_per_epoch=per_epoch)


def check(schedule, expected: dict[int, float]):
    assert {step: schedule(step) for step in expected} == pytest.approx(expected, rel=1e-9, abs=1e-15)


def test_constant():
    """Linear from 0 in 4 steps, then the same for ever."""
    check(make("Constant", 10, learning_rate=0.2), {0: 0.2, 9: 0.2, 99: 0.2})
    check(make("Constant", 10, learning_rate=0.2, warmup_steps=4), {0: 0, 1: 0.05, 3: 0.15, 4: 0.2, 9: 0.2, 99: 0.2})
    check(make("Constant", 10, per_epoch=5, learning_rate=0.2, warmup_epochs=2), {0: 0, 5: 0.1, 9: 0.18, 10: 0.2})


def test_cosine():
    """Warm-up 0.1 → 1.0 in 4 steps, then half a cosine over 8 steps to 0.2."""
    schedule = make("Cosine", 12, learning_rate=1.0, end_lr=0.2, warmup_steps=4, warmup_start_lr=0.1)
    check(schedule, {0: 0.1, 2: 0.55, 3: 0.775, 4: 1.0, 6: 0.2 + 0.8 * C45, 8: 0.6, 10: 0.2 + 0.8 * C135, 12: 0.2})
    check(schedule, {13: 0.2, 10_000: 0.2})
    check(make("Cosine", 8, learning_rate=1.0), {0: 1.0, 2: C45, 4: 0.5, 6: C135, 8: 0.0, 9: 0.0})


def test_cosine_warmup_in_epochs():
    """Half an epoch of 8 steps is 4."""
    check(make("Cosine", 24, per_epoch=8, learning_rate=1.0, warmup_epochs=0.5), {0: 0, 1: 0.25, 4: 1.0, 14: 0.5})


def test_linear():
    schedule = make("Linear", 12, learning_rate=1.0, end_lr=0.2, warmup_steps=2, warmup_start_lr=0.5)
    check(schedule, {0: 0.5, 1: 0.75, 2: 1.0, 7: 0.6, 11: 0.28, 12: 0.2, 13: 0.2, 500: 0.2})
    check(make("Linear", 4, learning_rate=1.0), {0: 1.0, 1: 0.75, 2: 0.5, 3: 0.25, 4: 0.0, 5: 0.0})


def test_vit_cosine():
    """Linear from 0 in 4 steps, then to 0 over 8."""
    schedule = make("ViTLRScheduler", 12, learning_rate=0.1, warmup_steps=4)
    check(schedule, {0: 0, 1: 0.025, 2: 0.05, 3: 0.075, 4: 0.1, 6: 0.1 * C45, 8: 0.05, 10: 0.1 * C135, 12: 0, 40: 0})


def test_vit_linear():
    """To linear_end, which the cosine does not know."""
    schedule = make("ViTLRScheduler", 12, learning_rate=0.1, decay_type="linear", linear_end=0.02, warmup_steps=4)
    check(schedule, {0: 0, 1: 0.025, 3: 0.075, 4: 0.1, 6: 0.08, 8: 0.06, 11: 0.03, 12: 0.02, 40: 0.02})
    default = make("ViTLRScheduler", 10, learning_rate=0.1, decay_type="linear")
    check(default, {0: 0.1, 5: 0.050005, 10: 1e-5})


def test_vit_recipe():
    """ViT-B/16 on ImageNet: 4096 a batch, 312 steps an epoch, 300 epochs, 10,000 steps of warm-up to 3e-3."""
    schedule = make("ViTLRScheduler", 93_600, per_epoch=312, learning_rate=3e-3, warmup_steps=10_000)
    check(schedule, {0: 0, 5_000: 1.5e-3, 10_000: 3e-3, 51_800: 1.5e-3, 30_900: 3e-3 * C45, 93_600: 0})


def test_periodic_cosine_is_pytorchs_cosine_annealing():
    """T_max 8: down in 8 updates, up in 8, whatever the run's length; Pytorch-VIT's run rises four times."""
    schedule = make("PeriodicCosine", 5, learning_rate=1.0, half_period=8, end_lr=0.2)
    check(schedule, {0: 1.0, 2: 0.2 + 0.8 * C45, 4: 0.6, 8: 0.2, 12: 0.6, 14: 0.2 + 0.8 * C45, 16: 1.0, 24: 0.2})
    schedule = make("PeriodicCosine", 5, learning_rate=1.0, half_period=8, warmup_steps=4, warmup_start_lr=0.1)
    check(schedule, {0: 0.1, 2: 0.55, 4: 1.0, 8: 0.5, 12: 0.0, 20: 1.0})
    seed = make("PeriodicCosine", 375_600, learning_rate=1e-3, half_period=80_000)
    check(seed, {0: 1e-3, 40_000: 5e-4, 80_000: 0, 160_000: 1e-3, 320_000: 1e-3})


def test_rsqrt():
    """big_vision's: warm-up 4, timescale 8, cooldown 10 of 100 updates to 0; the decay goes on under the cooldown."""
    schedule = make("RSqrt", 100, learning_rate=1.0, timescale=8, warmup_steps=4, cooldown_steps=10)
    check(schedule, {0: 0, 1: 0.25, 4: 1.0, 12: 1 / math.sqrt(2), 28: 0.5, 90: 1 / math.sqrt(1 + 86 / 8)})
    check(schedule, {95: 0.5 / math.sqrt(1 + 91 / 8), 100: 0, 150: 0})
    by_epoch = make("RSqrt", 100, 10, learning_rate=1.0, timescale=8, warmup_epochs=0.4, cooldown_epochs=1)
    assert [by_epoch(step) for step in range(120)] == [schedule(step) for step in range(120)]
    check(make("RSqrt", 50, learning_rate=1.0, timescale=8), {0: 1.0, 24: 0.5, 72: 1 / math.sqrt(10)})


def test_warmup_stable_decay():
    """Warm-up 4, constant to 12, then 8 updates to 0.2 in a line, or as 1 - sqrt(progress)."""
    options = dict(learning_rate=1.0, end_lr=0.2, warmup_steps=4, cooldown_steps=8)
    check(make("WarmupStableDecay", 20, **options), {0: 0, 2: 0.5, 4: 1, 12: 1, 14: 0.8, 16: 0.6, 20: 0.2, 40: 0.2})
    schedule = make("WarmupStableDecay", 20, cooldown="sqrt", **options)
    check(schedule, {4: 1, 12: 1, 14: 0.6, 16: 1 - 0.8 * math.sqrt(0.5), 18: 1 - 0.8 * math.sqrt(0.75), 20: 0.2})
    longer = make("WarmupStableDecay", 40, **options)  # the same rate until the cooldown begins
    assert all(longer(step) == schedule(step) for step in range(13))
    within_warmup = make("WarmupStableDecay", 6, **options)  # the cooldown waits for the warm-up's end
    check(within_warmup, {3: 0.75, 4: 1.0, 5: 0.6, 6: 0.2})


def test_timm_cosine_by_epoch():
    """8 epochs of 5 steps; the cosine runs from epoch 0 and two epochs of warm-up cover its beginning."""
    schedule = make("TimmCosine", 40, per_epoch=5, learning_rate=1.0, warmup_epoch=2, warmup_start_lr=0.1)
    last = 0.5 * (1 + math.cos(7 * math.pi / 8))
    epochs = [0.1, 0.55, C45, 0.5 * (1 + math.cos(3 * math.pi / 8)), 0.5, 0.5 * (1 - math.cos(3 * math.pi / 8)), C135]
    for epoch, rate in enumerate([*epochs, last]):
        check(schedule, {5 * epoch + i: rate for i in range(5)})
    check(schedule, {40: 0.0, 44: 0.0, 400: 0.0})


def test_timm_cosine_by_epoch_with_prefix():
    """The cosine begins after the warm-up and runs over the other 6 epochs: cos 60° after a third."""
    schedule = make(
        "TimmCosine", 40, per_epoch=5, learning_rate=1.0, warmup_epoch=2, warmup_start_lr=0.1, warmup_prefix=True
    )
    check(schedule, {0: 0.1, 9: 0.55, 10: 1.0, 14: 1.0, 20: 0.75, 25: 0.5, 29: 0.5, 30: 0.25, 40: 0.0, 400: 0.0})


def test_timm_cosine_by_step():
    """Warm-up over 10 steps; without prefix step 10 is a quarter of the whole cosine of 40."""
    schedule = make(
        "TimmCosine", 40, per_epoch=5, learning_rate=1.0, warmup_epoch=2, warmup_start_lr=0.1, decay_unit="step"
    )
    check(schedule, {0: 0.1, 1: 0.19, 5: 0.55, 9: 0.91, 10: C45, 20: 0.5, 30: C135, 40: 0.0, 41: 0.0, 400: 0.0})


def test_timm_cosine_by_step_with_prefix():
    arguments = dict(learning_rate=1.0, eta_min=0.2, warmup_epoch=2, warmup_prefix=True, decay_unit="step")
    schedule = make("TimmCosine", 40, per_epoch=5, **arguments)
    check(schedule, {0: 0.0, 5: 0.5, 10: 1.0, 20: 0.8, 25: 0.6, 30: 0.4, 40: 0.2, 400: 0.2})


def test_timm_cosine_without_warmup():
    """PLSC divided by zero here."""
    check(make("TimmCosine", 4, learning_rate=1.0), {0: 1.0, 1: C45, 2: 0.5, 3: C135, 4: 0.0})
    check(make("TimmCosine", 4, learning_rate=1.0, warmup_prefix=True), {0: 1.0, 2: 0.5, 4: 0.0})


def test_timm_cosine_counts_a_begun_epoch():
    """11 steps of 5 an epoch are 3 epochs: epoch 2 has 0.5 (1 + cos 120°)."""
    check(make("TimmCosine", 11, per_epoch=5, learning_rate=1.0), {0: 1.0, 5: 0.75, 10: 0.25})


def test_step():
    """Values change at the boundaries' epochs, 3 steps each."""
    schedule = make("Step", 18, per_epoch=3, boundaries=[2, 4], values=[1.0, 0.1, 0.01])
    check(schedule, {0: 1.0, 5: 1.0, 6: 0.1, 11: 0.1, 12: 0.01, 17: 0.01, 18: 0.01, 1000: 0.01})


def test_step_warmup():
    """Two epochs from 0.2 to the first value, or to warmup_end_lr."""
    arguments = dict(boundaries=[3], values=[1.0, 0.1], warmup_epochs=2, warmup_start_lr=0.2)
    schedule = make("Step", 18, per_epoch=3, **arguments)
    check(schedule, {0: 0.2, 2: 0.2, 3: 0.6, 5: 0.6, 6: 1.0, 8: 1.0, 9: 0.1, 17: 0.1})
    check(make("Step", 18, per_epoch=3, warmup_end_lr=0.4, **arguments), {0: 0.2, 3: 0.3, 6: 1.0})


def test_step_by_step():
    """Boundaries and warm-up in steps; a warm-up in epochs is worth their steps."""
    arguments = dict(boundaries=[5, 8], values=[1.0, 0.1, 0.01], decay_unit="step")
    check(make("Step", 12, per_epoch=3, **arguments), {0: 1.0, 4: 1.0, 5: 0.1, 7: 0.1, 8: 0.01, 11: 0.01})
    check(make("Step", 12, per_epoch=3, warmup_steps=4, **arguments), {0: 0.0, 1: 0.25, 3: 0.75, 4: 1.0, 5: 0.1})
    check(make("Step", 12, per_epoch=3, warmup_epochs=1, **arguments), {0: 0.0, 1: 1 / 3, 3: 1.0, 5: 0.1})


def test_poly():
    """(1 - epoch / 4)² over 4 epochs of 2 steps."""
    schedule = make("Poly", 8, per_epoch=2, learning_rate=1.0)
    check(schedule, {0: 1.0, 1: 1.0, 2: 0.5625, 3: 0.5625, 4: 0.25, 6: 0.0625, 7: 0.0625, 8: 0.0, 80: 0.0})
    check(make("Poly", 8, per_epoch=2, learning_rate=1.0, power=1.0, end_lr=0.2), {0: 1.0, 4: 0.6, 8: 0.2})


def test_poly_warmup():
    """2 of 6 epochs warm up; the polynomial takes the other 4."""
    schedule = make("Poly", 12, per_epoch=2, learning_rate=1.0, warmup_epochs=2)
    check(schedule, {0: 0.0, 1: 0.0, 2: 0.5, 4: 1.0, 6: 0.5625, 8: 0.25, 10: 0.0625, 12: 0.0})
    arguments = dict(learning_rate=1.0, warmup_steps=2, warmup_start_lr=0.2, warmup_end_lr=0.6, decay_unit="step")
    check(make("Poly", 10, per_epoch=5, **arguments), {0: 0.2, 1: 0.4, 2: 1.0, 6: 0.25, 10: 0.0, 99: 0.0})


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("Constant", dict(learning_rate=1.0, warmup_steps=10), [0.0, 0.1, 0.2]),
        ("Cosine", dict(learning_rate=1.0, warmup_steps=10), [0.0, 0.1, 0.2]),
        ("Cosine", dict(learning_rate=1.0, warmup_steps=3), [0.0, 1 / 3, 2 / 3]),
        ("Linear", dict(learning_rate=1.0, warmup_steps=10), [0.0, 0.1, 0.2]),
        ("ViTLRScheduler", dict(learning_rate=1.0, warmup_steps=10_000), [0.0, 1e-4, 2e-4]),
        ("ViTLRScheduler", dict(learning_rate=1.0, warmup_steps=10, decay_type="linear"), [0.0, 0.1, 0.2]),
        ("TimmCosine", dict(learning_rate=1.0, warmup_epoch=10), [0.0, 0.1, 0.2]),
        ("TimmCosine", dict(learning_rate=1.0, warmup_epoch=10, warmup_prefix=True), [0.0, 0.1, 0.2]),
        ("TimmCosine", dict(learning_rate=1.0, warmup_epoch=3, decay_unit="step"), [0.0, 1 / 3, 2 / 3]),
        ("Step", dict(boundaries=[1], values=[1.0, 0.1], warmup_epochs=10), [0.0, 0.1, 0.2]),
        ("Poly", dict(learning_rate=1.0, warmup_epochs=10), [0.0, 0.1, 0.2]),
        ("Poly", dict(learning_rate=1.0, warmup_epochs=3), [0.0, 1 / 3, 2 / 3]),
    ],
)
def test_a_run_shorter_than_its_warmup_stays_in_it(name, arguments, expected):
    """Three steps, an epoch each: PLSC divided by zero here."""
    assert [make(name, 3, **arguments)(step) for step in range(3)] == pytest.approx(expected)


def test_warmup_is_reported_in_steps():
    """The engine warns with it, whatever unit the schedule counts in."""
    rate = dict(learning_rate=1.0)
    assert make("ViTLRScheduler", 40, per_epoch=5, warmup_steps=7, **rate).warmup == 7
    assert make("Cosine", 40, per_epoch=5, warmup_epochs=2, **rate).warmup == 10
    assert make("TimmCosine", 40, per_epoch=5, warmup_epoch=2, **rate).warmup == 10
    assert make("Poly", 40, per_epoch=5, warmup_epochs=2, **rate).warmup == 10
    assert make("Step", 40, per_epoch=5, warmup_steps=3, decay_unit="step", boundaries=[], values=[1.0]).warmup == 3


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("Constant", dict(learning_rate=-0.1), "learning_rate"),
        ("Cosine", dict(learning_rate=0.1, end_lr=-0.1), "end_lr"),
        ("Cosine", dict(learning_rate=0.1, warmup_steps=3, warmup_epochs=1), "warmup_steps and warmup_epochs"),
        ("Linear", dict(learning_rate=0.1, warmup_steps=-1), "warmup_steps"),
        ("ViTLRScheduler", dict(learning_rate=0.1, linear_end=-1e-5), "linear_end"),
        ("TimmCosine", dict(learning_rate=0.1, eta_min=-1.0), "eta_min"),
        ("Step", dict(boundaries=[1], values=[1.0]), "1 boundaries need 2 values"),
        ("Step", dict(boundaries=[3, 1], values=[1.0, 0.5, 0.1]), "boundaries"),
        ("Step", dict(boundaries=[1], values=[1.0, 0.1], warmup_steps=2), "warmup_steps"),
        ("Poly", dict(learning_rate=0.1, power=0.0), "power"),
        ("Poly", dict(learning_rate=0.1, warmup_steps=2), "decay_unit"),
        ("Cosine", dict(learning_rate=0.1, warmup_start_lr=-0.1), "warmup_start_lr"),
        ("TimmCosine", dict(learning_rate=0.1, warmup_start_lr=-0.1), "warmup_start_lr"),
        ("Poly", dict(learning_rate=0.1, end_lr=-0.1), "end_lr"),
        ("Step", dict(boundaries=[1], values=[1.0, -0.1]), "values"),
        ("PeriodicCosine", dict(learning_rate=0.1, half_period=0), "half_period"),
        ("RSqrt", dict(learning_rate=0.1, timescale=0), "timescale"),
        ("RSqrt", dict(learning_rate=0.1, cooldown_steps=1, cooldown_epochs=1), "cooldown_steps and cooldown_epochs"),
        ("WarmupStableDecay", dict(learning_rate=0.1), "cooldown_steps or cooldown_epochs"),
    ],
)
def test_wrong_arguments_are_refused_by_name(name, arguments, message):
    """A negative rate, a length given twice, lists that do not fit: a ConfigError that names the key."""
    with pytest.raises(ConfigError, match=message):
        make(name, 10, **arguments)


totals = st.integers(1, 5000)
share = st.floats(0.0, 1.0)


@st.composite
def any_schedule(draw):
    """A schedule of any kind with any warm-up and its peak; every other rate is a share of the peak."""
    peak = draw(st.floats(0.0, 10.0))
    low, start = peak * draw(share), peak * draw(share)
    total, per_epoch = draw(totals), draw(st.integers(1, 700))
    warmup = draw(st.one_of(st.just(0), st.integers(0, 6000)))
    unit = draw(st.sampled_from(["step", "epoch"]))
    by_unit = {"warmup_steps" if unit == "step" else "warmup_epochs": warmup, "decay_unit": unit}
    arguments = {
        "Constant": dict(learning_rate=peak, warmup_steps=warmup),
        "Cosine": dict(learning_rate=peak, end_lr=low, warmup_steps=warmup, warmup_start_lr=start),
        "Linear": dict(learning_rate=peak, end_lr=low, warmup_epochs=warmup / 100, warmup_start_lr=start),
        "ViTLRScheduler": dict(
            learning_rate=peak,
            warmup_steps=warmup,
            linear_end=low,
            decay_type=draw(st.sampled_from(["cosine", "linear"])),
        ),
        "TimmCosine": dict(
            learning_rate=peak,
            eta_min=low,
            warmup_epoch=warmup / 100,
            warmup_start_lr=start,
            warmup_prefix=draw(st.booleans()),
            decay_unit=unit,
        ),
        "PeriodicCosine": dict(
            learning_rate=peak, half_period=total, end_lr=low, warmup_steps=warmup, warmup_start_lr=start
        ),
        "RSqrt": dict(learning_rate=peak, timescale=total, warmup_steps=warmup, cooldown_steps=total // 3),
        "WarmupStableDecay": dict(
            learning_rate=peak,
            end_lr=low,
            warmup_steps=warmup,
            cooldown_epochs=2.0,
            cooldown=draw(st.sampled_from(["linear", "sqrt"])),
        ),
        "Step": dict(boundaries=sorted([warmup // 2, total // 2]), values=[peak, low, start], **by_unit),
        "Poly": dict(learning_rate=peak, power=draw(st.floats(0.1, 5.0)), end_lr=low, warmup_start_lr=start, **by_unit),
    }
    name = draw(st.sampled_from(sorted(arguments)))
    return make(name, total, per_epoch, **arguments[name]), peak, total


@settings(max_examples=300, deadline=None)
@given(made=any_schedule(), points=st.lists(share, min_size=1, max_size=20))
def test_any_schedule_stays_between_0_and_its_peak(made, points):
    """Finite and within [0, peak] at steps from 0 to twice the run's length."""
    schedule, peak, total = made
    for step in {0, total - 1, total, *(int(2 * total * p) for p in points)}:
        rate = schedule(step)
        assert math.isfinite(rate)
        assert 0.0 <= rate <= peak * (1 + 1e-12)


@settings(max_examples=100, deadline=None)
@given(total=totals, warmup=st.integers(0, 6000), step=st.integers(0, 10_000))
def test_past_the_end_the_rate_stays(total, warmup, step):
    """What a run longer than its schedule would see is the end value."""
    for name, end in (("Cosine", 0.25), ("Linear", 0.25), ("Poly", 0.25)):
        unit = {"decay_unit": "step"} if name == "Poly" else {}
        schedule = make(name, total, 7, learning_rate=1.0, end_lr=end, warmup_steps=warmup, **unit)
        if total + step >= warmup:
            assert schedule(total + step) == pytest.approx(end)
