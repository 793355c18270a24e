"""The moving average of the weights: its arithmetic against NumPy, swapping it in, its state."""

import numpy as np
import paddle
import pytest

from plsc.engine.ema import WeightAverage


def layer(seed: int = 0) -> paddle.nn.Layer:
    model = paddle.nn.Linear(3, 2)
    draw(model, seed)
    return model


def draw(model, seed: int) -> None:
    """Give every parameter other values, as an update does."""
    rng = np.random.default_rng(seed)
    for _, parameter in model.named_parameters():
        drawn = paddle.to_tensor(rng.standard_normal(parameter.shape).astype("float32"))
        parameter.set_value(drawn.astype(parameter.dtype))


def weights(model):
    return lambda: dict(model.named_parameters())


def arrays(model) -> dict[str, np.ndarray]:
    return {name: p.numpy() for name, p in model.named_parameters()}


def averages(average: WeightAverage) -> dict[str, np.ndarray]:
    """The arrays of an average's state."""
    return {name: value for name, value in average.state_dict().items() if isinstance(value, np.ndarray)}


@pytest.mark.parametrize(
    ("decay", "ramp"),
    [(0.9, False), (0.9, True), (0.2, True), (0.9999, True)],
)
def test_average_against_numpy(decay, ramp):
    """The decay of update t is min(decay, (1 + t) / (10 + t)) with the ramp: 2/11, 3/12, 4/13, …"""
    model = layer()
    average = WeightAverage(weights(model), decay, ramp)
    expected = {name: w.astype("float64") for name, w in arrays(model).items()}
    for t in range(1, 31):
        draw(model, t)
        average.update()
        d = min(decay, (1 + t) / (10 + t)) if ramp else decay
        expected = {name: d * e + (1 - d) * arrays(model)[name] for name, e in expected.items()}
        for name, actual in averages(average).items():
            assert actual.dtype == np.float32
            np.testing.assert_allclose(actual, expected[name], rtol=1e-5, atol=1e-6)
    assert average.updates == 30


def test_average_begins_at_the_weights():
    """And does not follow them by itself."""
    model = layer()
    before = arrays(model)
    average = WeightAverage(weights(model), 0.9, True)
    draw(model, 1)
    assert all(np.array_equal(actual, before[name]) for name, actual in averages(average).items())


def test_average_of_half_precision_weights_is_float32():
    """Steps of 1/1000 of 1.0 would be lost in bfloat16, whose numbers there are 1/128 apart."""
    model = layer()
    model.to(dtype="bfloat16")
    for parameter in model.parameters():
        parameter.set_value(paddle.ones_like(parameter))
    average = WeightAverage(weights(model), 0.999, False)
    for parameter in model.parameters():
        parameter.set_value(paddle.full_like(parameter, 2.0))
    average.update()
    assert all(np.allclose(entry, 1.001, rtol=1e-6) for entry in averages(average).values())


def test_masters_are_averaged_where_they_appear():
    """The function is asked anew at each update: masters come with the optimizer's first step."""
    model = layer()
    masters = {}
    average = WeightAverage(lambda: {n: masters.get(n, p) for n, p in model.named_parameters()}, 0.5, False)
    before = arrays(model)
    masters["weight"] = paddle.full([3, 2], 7.0)
    average.update()
    state = averages(average)
    np.testing.assert_allclose(state["weight"], 0.5 * before["weight"] + 3.5, rtol=1e-6)
    np.testing.assert_allclose(state["bias"], before["bias"], rtol=1e-6)


def averaged(model) -> WeightAverage:
    average = WeightAverage(weights(model), 0.5, False)
    draw(model, 1)
    average.update()
    return average


def test_applied_swaps_and_restores():
    """Inside the block the model has the averages, after it its own weights, bit for bit."""
    model = layer()
    average = averaged(model)
    own, expected = arrays(model), averages(average)
    with average.applied(model) as swapped:
        assert swapped is model
        assert all(np.array_equal(arrays(model)[name], expected[name]) for name in expected)
        x = np.ones((1, 3), "float32")
        np.testing.assert_allclose(
            model(paddle.to_tensor(x)).numpy(), x @ expected["weight"] + expected["bias"], rtol=1e-5
        )
    assert all(np.array_equal(arrays(model)[name], own[name]) for name in own)
    assert all(np.array_equal(a, expected[name]) for name, a in averages(average).items())
    assert all(not p.stop_gradient for p in model.parameters())


def test_applied_restores_after_an_error():
    model = layer()
    average = averaged(model)
    own = arrays(model)
    with pytest.raises(RuntimeError, match="evaluation failed"), average.applied(model):
        raise RuntimeError("evaluation failed")
    assert all(np.array_equal(arrays(model)[name], own[name]) for name in own)


def test_other_processes_get_each_change_but_none_after_an_error():
    """One that failed would wait in a collective for the others, which are elsewhere, and its error would be lost."""
    model = layer()
    average, sums = averaged(model), []
    average._changed = lambda: sums.append(float(model.weight.sum()))
    own, mean = float(model.weight.sum()), averages(average)["weight"].sum()
    with average.applied(model):
        assert sums == [pytest.approx(mean, rel=1e-5)]
    assert sums[1:] == [pytest.approx(own, rel=1e-5)]
    with pytest.raises(RuntimeError), average.applied(model):
        raise RuntimeError("evaluation failed")
    assert len(sums) == 3


def test_applied_restores_where_other_processes_cannot_be_reached():
    model = layer()
    average, own = averaged(model), arrays(model)

    def fails():
        raise ConnectionError("the other process is gone")

    average._changed = fails
    with pytest.raises(ConnectionError), average.applied(model):
        pytest.fail("evaluated with weights that other processes do not have")
    assert all(np.array_equal(arrays(model)[name], own[name]) for name in own)


def test_applied_keeps_the_type_of_the_weights():
    """bfloat16 weights get the averages rounded, and come back as they were."""
    model = layer()
    model.to(dtype="bfloat16")
    average = averaged(model)
    own = {n: p.astype("float32").numpy() for n, p in model.named_parameters()}
    expected = averages(average)
    with average.applied(model):
        for name, parameter in model.named_parameters():
            assert parameter.dtype == paddle.bfloat16
            np.testing.assert_allclose(parameter.astype("float32").numpy(), expected[name], rtol=1 / 128)
    assert all(np.array_equal(p.astype("float32").numpy(), own[n]) for n, p in model.named_parameters())


def test_frozen_weights_are_left_alone():
    """What is not averaged stays in place inside the block."""
    model = layer()
    average = WeightAverage(lambda: {"weight": model.weight}, 0.5, False)
    draw(model, 1)
    average.update()
    assert set(averages(average)) == {"weight"}
    bias = model.bias.numpy()
    with average.applied(model):
        assert np.array_equal(model.bias.numpy(), bias)


def test_training_goes_on_after_applied():
    """Gradients flow to the restored weights as before."""
    model = layer()
    average = averaged(model)
    with average.applied(model), paddle.no_grad():
        model(paddle.ones([1, 3]))
    model(paddle.ones([1, 3])).sum().backward()
    np.testing.assert_allclose(model.weight.grad.numpy(), 1.0)


@pytest.mark.parametrize("ramp", [False, True])
def test_state_round_trip(ramp):
    """Restored into another average, with the number of updates, the next updates are bit-equal."""
    model = layer()
    average = WeightAverage(weights(model), 0.9, ramp)
    for t in range(1, 4):
        draw(model, t)
        average.update()
    state = {name: np.copy(a) if isinstance(a, np.ndarray) else a for name, a in average.state_dict().items()}

    other = layer(seed=50)
    again = WeightAverage(weights(other), 0.9, ramp)
    again.load_state_dict(state)
    assert again.updates == 3
    assert all(np.array_equal(a, state[name]) for name, a in again.state_dict().items())
    for t in (4, 5):
        draw(model, t)
        draw(other, t)
        average.update()
        again.update()
    final = averages(again)
    assert all(np.array_equal(a, final[name]) for name, a in averages(average).items())
