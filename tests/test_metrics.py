"""Streaming metrics: counts against NumPy, masks, several labels, sums over processes."""

import math

import numpy as np
import paddle
import pytest

from plsc.errors import ConfigError
from plsc.metrics import Mean, TopkAcc
from plsc.targets import Targets

RNG = np.random.default_rng(2)
LOGITS = RNG.standard_normal((40, 7)).astype("float32")
LABEL = RNG.integers(0, 7, 40)
VALID = RNG.random(40) < 0.7


def in_top(logits, right, k: int) -> np.ndarray:
    """[B] bool: whether one of the k highest logits is of a right class; `right` holds a set a sample."""
    order = np.argsort(-logits, axis=1)[:, :k]
    return np.array([bool(set(row.tolist()) & classes) for row, classes in zip(order, right, strict=True)])


def labels(array) -> Targets:
    return Targets(label=paddle.to_tensor(array))


def updated(metric: TopkAcc, logits, targets, valid=None) -> TopkAcc:
    metric.update(paddle.to_tensor(logits), targets, None if valid is None else paddle.to_tensor(valid))
    return metric


@pytest.mark.parametrize("valid", [None, VALID], ids=["all", "masked"])
def test_topk_against_numpy(valid):
    """Shares of the samples that count, for each k."""
    mask = np.ones(40, bool) if valid is None else valid
    right = [{int(label)} for label in LABEL]
    expected = {f"top{k}": in_top(LOGITS, right, k)[mask].mean() for k in (1, 3, 5)}
    assert 0 < expected["top1"] < expected["top3"] < expected["top5"] < 1
    assert updated(TopkAcc([1, 3, 5]), LOGITS, labels(LABEL), valid).compute() == pytest.approx(expected)


def test_topk_by_hand():
    logits = np.array([[3.0, 2, 1], [3.0, 2, 1], [3.0, 2, 1], [3.0, 2, 1]], "float32")
    actual = updated(TopkAcc([1, 2]), logits, labels([0, 1, 2, 0])).compute()
    assert actual == {"top1": 0.5, "top2": 0.75}


def test_padded_rows_do_not_count():
    """Rows repeated to fill a batch would be right."""
    logits = np.array([[0.0, 1], [1.0, 0], [1.0, 0], [1.0, 0]], "float32")
    actual = updated(TopkAcc(1), logits, labels([0, 0, 0, 0]), np.array([True, True, False, False]))
    assert actual.compute() == {"top1": 0.5}


def test_fewer_classes_than_k():
    """Top-5 of 3 classes is always right and left out; where it picks the best checkpoint all classes count."""
    logits = RNG.standard_normal((6, 3)).astype("float32")
    label = logits.argsort(axis=1)[:, 0]  # the lowest
    assert updated(TopkAcc([1, 2, 3, 5]), logits, labels(label)).compute() == {"top1": 0.0, "top2": 0.0}
    assert updated(TopkAcc([5, 1]), logits, labels(label)).compute() == {"top5": 1.0, "top1": 0.0}


def test_order_of_k_and_names():
    """The first k picks the best checkpoint, so the order stays."""
    metric = TopkAcc([5, 1])
    assert metric.names == ["top5", "top1"]
    right = [{int(label)} for label in LABEL]
    expected = {"top5": in_top(LOGITS, right, 5).mean(), "top1": in_top(LOGITS, right, 1).mean()}
    assert updated(metric, LOGITS, labels(LABEL)).compute() == pytest.approx(expected)
    assert TopkAcc().names == ["top1", "top5"]
    assert TopkAcc(3).names == ["top3"]


def test_several_labels():
    """Any label of the sample is right; padding and labels of weight 0 are not."""
    ids = np.where(RNG.random((40, 3)) < 0.4, -1, RNG.integers(0, 7, (40, 3))).astype("int32")
    weights = np.where(RNG.random((40, 3)) < 0.2, 0.0, 0.5).astype("float32")
    right = [
        {int(i) for i, w in zip(row, weight, strict=True) if i >= 0 and w > 0}
        for row, weight in zip(ids, weights, strict=True)
    ]
    targets = Targets(label_ids=paddle.to_tensor(ids), label_weights=paddle.to_tensor(weights))
    expected = {f"top{k}": in_top(LOGITS, right, k).mean() for k in (1, 5)}
    assert updated(TopkAcc(), LOGITS, targets).compute() == pytest.approx(expected)


def test_mixed_targets():
    """With mixing the class of most weight is right."""
    soft = RNG.dirichlet(np.ones(7), 40).astype("float32")
    right = [{int(c)} for c in soft.argmax(axis=1)]
    targets = Targets(label=paddle.to_tensor(soft.argmax(axis=1)), dense=paddle.to_tensor(soft))
    expected = {f"top{k}": in_top(LOGITS, right, k).mean() for k in (1, 5)}
    assert updated(TopkAcc(), LOGITS, targets).compute() == pytest.approx(expected)


@pytest.mark.parametrize("valid", [None, VALID], ids=["all", "masked"])
def test_streaming_topk_equals_the_whole(valid):
    """Batches of 1, 16 and 23 samples; an average of averages would differ."""
    whole, parts = updated(TopkAcc(), LOGITS, labels(LABEL), valid), TopkAcc()
    for rows in (slice(0, 1), slice(1, 17), slice(17, 40)):
        updated(parts, LOGITS[rows], labels(LABEL[rows]), None if valid is None else valid[rows])
    assert parts.compute() == whole.compute()


def test_topk_over_processes():
    """reduce sums counts and samples: two equal processes give the shares of one, unequal ones a weighted mean."""
    metric = updated(TopkAcc(), LOGITS, labels(LABEL))
    alone = metric.compute()
    metric.reduce(lambda tensor: tensor * 2)
    assert metric.compute() == alone
    other = np.array([0, 0, 10])  # ten samples of another process, none right
    metric = updated(TopkAcc(), LOGITS, labels(LABEL))
    metric.reduce(lambda tensor: tensor + paddle.to_tensor(other))
    assert metric.compute()["top1"] == pytest.approx(alone["top1"] * 40 / 50)


def test_topk_reset_and_empty():
    metric = updated(TopkAcc(), LOGITS, labels(LABEL))
    metric.reset()
    assert all(math.isnan(share) for share in metric.compute().values())
    updated(metric, LOGITS, labels(LABEL), np.zeros(40, bool))
    assert all(math.isnan(share) for share in metric.compute().values())


@pytest.mark.parametrize("topk", [[], 0, [1, 0], -1])
def test_wrong_k_is_refused(topk):
    with pytest.raises(ConfigError, match="topk"):
        TopkAcc(topk)


# -- mean ---------------------------------------------------------------------------------


def test_mean():
    metric = Mean("loss")
    metric.update(paddle.to_tensor([1.0, 2.0, 6.0]))
    assert metric.compute() == {"loss": 3.0}


def test_mean_leaves_padded_rows_out_whatever_they_hold():
    """Infinity times 0 would be NaN."""
    metric = Mean("loss")
    metric.update(paddle.to_tensor([1.0, math.nan, 2.0, math.inf]), paddle.to_tensor([True, False, True, False]))
    assert metric.compute() == {"loss": 1.5} and metric.samples == 2


def test_mean_shows_nan_of_real_rows():
    metric = Mean("loss")
    metric.update(paddle.to_tensor([1.0, math.nan]), paddle.to_tensor([True, True]))
    assert math.isnan(metric.compute()["loss"])


def test_streaming_mean_equals_the_whole():
    values = RNG.standard_normal(40).astype("float32")
    metric = Mean("x")
    for rows in (slice(0, 3), slice(3, 4), slice(4, 40)):
        metric.update(paddle.to_tensor(values[rows]), paddle.to_tensor(VALID[rows]))
    assert metric.compute()["x"] == pytest.approx(values[VALID].astype("float64").mean(), rel=1e-12)


def test_mean_sums_in_float64():
    """2²⁴ and a hundred ones: float32 would lose every one of them."""
    metric = Mean("x")
    metric.update(paddle.to_tensor([2.0**24]))
    for _ in range(100):
        metric.update(paddle.to_tensor([1.0]))
    assert metric.compute()["x"] == (2**24 + 100) / 101


def test_mean_over_processes():
    """reduce sums sums and counts: doubling both keeps the mean; another process of 3 zeros pulls it down."""
    metric = Mean("x")
    metric.update(paddle.to_tensor([1.0, 3.0]))
    metric.reduce(lambda tensor: tensor * 2)
    assert metric.compute() == {"x": 2.0} and metric.samples == 4
    metric.reset()
    metric.update(paddle.to_tensor([1.0, 4.0]))
    metric.reduce(lambda tensor: tensor + paddle.to_tensor([0.0, 3.0], dtype="float64"))
    assert metric.compute() == {"x": 1.0}


def test_mean_of_nothing_is_nan():
    metric = Mean("x")
    assert math.isnan(metric.compute()["x"]) and metric.samples == 0
    metric.update(paddle.to_tensor([1.0]))
    metric.reset()
    assert math.isnan(metric.compute()["x"])


def test_updates_keep_no_graph():
    """A metric of a loss that needs gradients holds none."""
    values = paddle.to_tensor([1.0, 2.0])
    values.stop_gradient = False
    metric = Mean("x")
    metric.update(values * 3)
    assert metric._sums.stop_gradient
