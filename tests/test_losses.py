"""Losses against NumPy, their smoothing, their stability, and the three forms of targets."""

import numpy as np
import paddle
import pytest
from scipy.special import expit, log_expit, log_softmax

from plsc import build
from plsc.config import Config, load
from plsc.errors import ConfigError
from plsc.losses import BCELoss, CELoss, Loss, ViTCELoss, WeightedSum
from plsc.registry import LOSSES
from plsc.targets import Targets
from tests.helpers import tiny_digits

B, C = 4, 5
LOGITS = (3 * np.random.default_rng(0).standard_normal((B, C))).astype("float32")
LABEL = np.array([0, 4, 2, 2])
ONE_HOT = np.eye(C)[LABEL]
SOFT = np.random.default_rng(1).dirichlet(np.ones(C), B).astype("float32")
MULTI = np.array([[1, 0, 0, 1, 0], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0], [1, 1, 1, 0, 0]], "float32")


def hard() -> Targets:
    return Targets(label=paddle.to_tensor(LABEL))


def dense(array) -> Targets:
    return Targets(dense=paddle.to_tensor(np.asarray(array, "float32")))


def value(loss, targets, logits=LOGITS) -> np.ndarray:
    """The loss as computed; always one value a sample."""
    result = loss(paddle.to_tensor(logits), targets)
    assert list(result.shape) == [len(logits)]
    assert result.dtype == paddle.float32
    return result.numpy()


def softmax_ce(y, logits=LOGITS) -> np.ndarray:
    return -(y * log_softmax(logits.astype("float64"), axis=1)).sum(axis=1)


def sigmoid_ce(y, logits=LOGITS) -> np.ndarray:
    """-y log p - (1 - y) log(1 - p) of each class, p = sigmoid(logit); 1 - p is sigmoid(-logit)."""
    logits = logits.astype("float64")
    return -y * log_expit(logits) - (1 - y) * log_expit(-logits)


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=2e-6, atol=1e-6)


# -- softmax cross entropy ----------------------------------------------------------------


def test_ce_of_hard_labels():
    close(value(CELoss(), hard()), softmax_ce(ONE_HOT))


def test_ce_by_hand():
    """Logits (0, log 3): p = (1/4, 3/4), so the losses are log 4 and log 4/3."""
    logits = np.log(np.array([[1.0, 3.0], [1.0, 3.0]], "float32"))
    close(value(CELoss(), Targets(label=paddle.to_tensor([0, 1])), logits), [np.log(4), np.log(4 / 3)])


def test_ce_of_soft_targets():
    close(value(CELoss(), dense(SOFT)), softmax_ce(SOFT))


def test_ce_prefers_mixed_targets():
    """A mixed batch still has its labels; the mixture counts."""
    targets = Targets(label=paddle.to_tensor(LABEL), dense=paddle.to_tensor(SOFT))
    close(value(CELoss(), targets), softmax_ce(SOFT))


@pytest.mark.parametrize(("targets", "y"), [(hard, ONE_HOT), (lambda: dense(SOFT), SOFT)], ids=["hard", "soft"])
def test_ce_with_label_smoothing(targets, y):
    """y (1 - e) + e / C: the targets still sum to one."""
    smoothed = 0.9 * y + 0.1 / C
    np.testing.assert_allclose(smoothed.sum(axis=1), 1.0, rtol=1e-6)
    close(value(CELoss(epsilon=0.1), targets()), softmax_ce(smoothed))


def test_ce_of_several_labels():
    """Padded label ids with weights are their dense form."""
    targets = Targets(
        label_ids=paddle.to_tensor([[0, 3], [4, -1], [2, -1], [1, 0]], dtype="int32"),
        label_weights=paddle.to_tensor([[0.5, 0.5], [1.0, 9.0], [1.0, 9.0], [0.25, 0.75]]),
    )
    y = [[0.5, 0, 0, 0.5, 0], [0, 0, 0, 0, 1], [0, 0, 1, 0, 0], [0.75, 0.25, 0, 0, 0]]
    close(value(CELoss(), targets), softmax_ce(np.array(y)))


# -- ViT's loss ---------------------------------------------------------------------------


def test_vit_sigmoid_is_summed_over_classes():
    close(value(ViTCELoss(), hard()), sigmoid_ce(ONE_HOT).sum(axis=1))
    close(value(ViTCELoss(), dense(MULTI)), sigmoid_ce(MULTI).sum(axis=1))


def test_vit_softmax():
    close(value(ViTCELoss(type="softmax"), hard()), softmax_ce(ONE_HOT))


@pytest.mark.parametrize(("type_", "function"), [("sigmoid", sigmoid_ce), ("softmax", softmax_ce)])
@pytest.mark.parametrize(("smoothing", "floor"), [("towards_one", 0.01), ("towards_half", 0.005)])
def test_vit_smoothing(type_, function, smoothing, floor):
    """PLSC and Google: y (1 - e) + e, which leaves classes at e; Keras and COYO: y (1 - e) + e / 2."""
    y = 0.99 * ONE_HOT + floor
    expected = function(y)
    expected = expected.sum(axis=1) if expected.ndim == 2 else expected
    close(value(ViTCELoss(epsilon=0.01, type=type_, smoothing=smoothing), hard()), expected)


def test_vit_smoothing_is_towards_one_unless_stated():
    y = 0.9 * ONE_HOT + 0.1
    close(value(ViTCELoss(epsilon=0.1), hard()), sigmoid_ce(y).sum(axis=1))


def test_vit_starts_at_bias_minus_ten():
    """Zero weights and bias -10: C - 1 classes cost log(1 + e^-10), the right one 10 + log(1 + e^-10)."""
    logits = np.full((B, C), -10.0, "float32")
    close(value(ViTCELoss(), hard(), logits), C * np.log1p(np.exp(-10.0)) + 10.0)


# -- binary cross entropy -----------------------------------------------------------------


def test_bce_sum_and_mean():
    close(value(BCELoss(), dense(MULTI)), sigmoid_ce(MULTI).sum(axis=1))
    close(value(BCELoss(class_reduction="sum"), dense(MULTI)), sigmoid_ce(MULTI).sum(axis=1))
    close(value(BCELoss(class_reduction="mean"), dense(MULTI)), sigmoid_ce(MULTI).mean(axis=1))


def test_bce_with_thresholded_targets():
    """Above the threshold 1, else 0, then smoothed; of a mixture by halves both classes are right (DeiT III)."""
    y = (SOFT > 0.2).astype("float64")
    assert 0 < y.sum() < y.size
    close(value(BCELoss(target_threshold=0.2, class_reduction="mean"), dense(SOFT)), sigmoid_ce(y).mean(axis=1))
    close(value(BCELoss(target_threshold=0.2, epsilon=0.1), dense(SOFT)), sigmoid_ce(0.9 * y + 0.05).sum(axis=1))
    mixed = 0.3 * ONE_HOT + 0.7 * ONE_HOT[::-1]
    close(value(BCELoss(target_threshold=0.0), dense(mixed)), sigmoid_ce((mixed > 0).astype("float64")).sum(axis=1))
    with pytest.raises(ConfigError, match="target_threshold"):
        LOSSES.get("BCELoss").build({"target_threshold": 1.0})


def test_bce_smoothing_is_towards_half():
    y = 0.8 * MULTI + 0.1
    close(value(BCELoss(epsilon=0.2), dense(MULTI)), sigmoid_ce(y).sum(axis=1))


# -- all of them --------------------------------------------------------------------------

EVERY = {
    "ce": CELoss(),
    "ce_smoothed": CELoss(epsilon=0.1),
    "vit_sigmoid": ViTCELoss(),
    "vit_sigmoid_smoothed": ViTCELoss(epsilon=0.1),
    "vit_softmax": ViTCELoss(type="softmax"),
    "bce": BCELoss(),
    "bce_mean": BCELoss(class_reduction="mean"),
}


@pytest.mark.parametrize("loss", EVERY.values(), ids=EVERY)
def test_gradients_stay_finite_at_extreme_logits(loss):
    """At ±100, where exp overflows float32 and sigmoid is 0 or 1, nothing is infinite or NaN."""
    logits = paddle.to_tensor(np.array([[100.0, -100, 0, -100, 100], [-100.0] * 5, [100.0] * 5], "float32"))
    logits.stop_gradient = False
    result = loss(logits, Targets(label=paddle.to_tensor([1, 0, 4])))
    result.sum().backward()
    assert np.isfinite(result.numpy()).all()
    assert np.isfinite(logits.grad.numpy()).all()
    assert np.abs(logits.grad.numpy()).max() > 0


def test_values_at_extreme_logits():
    """A wrong class at +100 and the right one at -100 cost 200 by softmax, 100 + 100 by sigmoid."""
    logits = np.array([[100.0, -100.0], [-100.0, 100.0]], "float32")
    targets = Targets(label=paddle.to_tensor([1, 1]))
    for loss in (CELoss(), ViTCELoss(), ViTCELoss(type="softmax"), BCELoss()):
        close(value(loss, targets, logits), [200.0, 0.0])


def test_gradient_of_ce():
    """softmax - y."""
    logits = paddle.to_tensor(LOGITS)
    logits.stop_gradient = False
    CELoss()(logits, hard()).sum().backward()
    p = np.exp(log_softmax(LOGITS.astype("float64"), axis=1))
    np.testing.assert_allclose(logits.grad.numpy(), p - ONE_HOT, rtol=1e-4, atol=1e-6)


def test_gradient_of_vit_sigmoid():
    """sigmoid - y, also with targets that are smoothed."""
    logits = paddle.to_tensor(LOGITS)
    logits.stop_gradient = False
    ViTCELoss(epsilon=0.1)(logits, hard()).sum().backward()
    np.testing.assert_allclose(
        logits.grad.numpy(), expit(LOGITS.astype("float64")) - (0.9 * ONE_HOT + 0.1), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("kind", [CELoss, ViTCELoss, BCELoss])
def test_wrong_epsilon_or_weight_is_refused(kind):
    for epsilon in (-0.1, 1.0, 1.5, float("nan")):
        with pytest.raises(ConfigError, match="epsilon"):
            kind(epsilon=epsilon)
    with pytest.raises(ConfigError, match="weight"):
        kind(weight=-1.0)
    assert kind(epsilon=None).epsilon == kind(epsilon=0.0).epsilon == 0.0


def test_weighted_sum():
    """Each loss times its weight, in float32 whatever the logits are."""
    both = WeightedSum([CELoss(weight=0.5), ViTCELoss(weight=2.0)])
    close(value(both, hard()), 0.5 * softmax_ce(ONE_HOT) + 2.0 * sigmoid_ce(ONE_HOT).sum(axis=1))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weighted_sum_computes_in_float32(dtype):
    """Half-precision logits are cast first: the loss is that of their float32 values to float32's precision."""
    logits = paddle.to_tensor(LOGITS).astype(dtype)
    exact = logits.astype("float32").numpy()
    result = WeightedSum([CELoss(), BCELoss()])(logits, hard())
    assert result.dtype == paddle.float32
    close(result.numpy(), softmax_ce(ONE_HOT, exact) + sigmoid_ce(ONE_HOT, exact).sum(axis=1))


# -- targets ------------------------------------------------------------------------------


def padded() -> Targets:
    """Three samples of up to three labels; padding is -1, its weight must not matter."""
    return Targets(
        label_ids=paddle.to_tensor([[2, 0, -1], [-1, -1, -1], [4, 1, 3]], dtype="int32"),
        label_weights=paddle.to_tensor([[1.0, 0.5, 7.0], [7.0, 7.0, 7.0], [1.0, 1.0, 0.25]]),
    )


def test_dense_form_of_labels():
    actual = hard().to_dense(C)
    assert actual.dtype == paddle.float32
    assert np.array_equal(actual.numpy(), ONE_HOT)


def test_dense_form_of_padded_labels():
    actual = padded().to_dense(C)
    assert actual.dtype == paddle.float32
    assert actual.numpy().tolist() == [[0.5, 0, 1, 0, 0], [0, 0, 0, 0, 0], [0, 1, 0, 0.25, 1]]


def test_dense_form_of_mixed_targets():
    assert np.array_equal(dense(SOFT).to_dense(C).numpy(), SOFT)
    mixed = Targets(label=paddle.to_tensor(LABEL), dense=paddle.to_tensor(SOFT))
    assert np.array_equal(mixed.to_dense(C).numpy(), SOFT)


def test_contains_for_labels():
    classes = paddle.to_tensor([[0, 1], [1, 4], [0, 1], [2, 3]])
    assert hard().contains(classes).tolist() == [[True, False], [False, True], [False, False], [True, False]]


def test_contains_for_padded_labels():
    """Any label of positive weight is right; padding is never a class."""
    classes = paddle.to_tensor([[0, 2, 4], [0, 1, 2], [3, 2, 1]])
    expected = [[True, True, False], [False, False, False], [True, False, True]]
    assert padded().contains(classes).tolist() == expected
    without = Targets(label_ids=paddle.to_tensor([[3, 1]], dtype="int32"), label_weights=paddle.to_tensor([[0.0, 1.0]]))
    assert without.contains(paddle.to_tensor([[3, 1]])).tolist() == [[False, True]]


def test_contains_for_mixed_targets():
    """Right is the class with most weight."""
    targets = dense([[0.1, 0.7, 0.2], [0.5, 0.0, 0.5]])
    assert targets.contains(paddle.to_tensor([[1, 2], [2, 0]])).tolist() == [[True, False], [False, True]]


def test_targets_of_a_batch():
    batch = {"image": paddle.zeros([4, 1]), "label": paddle.to_tensor(LABEL), "target": paddle.to_tensor(SOFT)}
    targets = Targets.of(batch)
    assert targets.label is batch["label"]
    assert targets.dense is batch["target"]
    assert targets.label_ids is None
    assert targets.label_weights is None


# -- what makes a loss ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "activation"),
    [(CELoss(), "softmax"), (BCELoss(), "sigmoid"), (ViTCELoss(), "sigmoid"), (ViTCELoss(type="softmax"), "softmax")],
)
def test_a_loss_says_its_activation(loss, activation):
    assert isinstance(loss, Loss) and loss.activation == activation


def test_the_activation_of_several_is_that_of_the_heaviest():
    assert WeightedSum([CELoss(weight=0.5), BCELoss(weight=2.0)]).activation == "sigmoid"
    assert WeightedSum([CELoss(weight=3.0), BCELoss(weight=2.0)]).activation == "softmax"


@pytest.fixture
def own_loss():
    """A registered loss of somebody else's; returns its class."""
    entries = dict(LOSSES._entries)

    @LOSSES.register()
    class OwnLoss:
        weight = 1.0

        def __call__(self, outputs, targets):
            return outputs.mean(axis=-1)

    yield OwnLoss
    LOSSES._entries = entries


def with_own_loss(**metric) -> Config:
    tree = tiny_digits()
    tree["Loss"] = {"Train": [{"OwnLoss": {}}]}
    tree["Metric"] = {"Eval": [{"TopkAcc": {}}, {"ECE": metric}]}
    return load(tree)


def test_a_loss_that_does_not_say_its_activation_is_refused(own_loss):
    for made in (build.activation, lambda config: build.losses(config, "Train")):
        with pytest.raises(ConfigError, match=r"(?s)Loss.Train.0.OwnLoss: OwnLoss lacks activation.*softmax"):
            made(with_own_loss())


def test_a_loss_without_activation_is_never_softmax(own_loss):
    """What needs to know asks for it."""
    own_loss.activation = None
    assert build.activation(with_own_loss()) is None
    with pytest.raises(ConfigError, match=r"Metric.Eval.1.ECE.activation: .*softmax or sigmoid"):
        build.metrics(with_own_loss(), "Eval")
    given = [{"activation": "sigmoid"}, {}], [{}, {"weights_activation": "sigmoid"}]
    for metric, keywords in given:
        assert build.metrics(with_own_loss(**metric), "Eval", **keywords)[1].activation == "sigmoid"
