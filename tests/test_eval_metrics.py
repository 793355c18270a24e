"""Metrics of evaluation against scikit-learn, hand-made counts and second formulas, on one and two processes."""

import itertools
import json
import math

import numpy as np
import paddle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    confusion_matrix,
    f1_score,
    recall_score,
    roc_auc_score,
    top_k_accuracy_score,
)

from plsc import metrics
from plsc.data.datasets import Sample
from plsc.data.sampler import evaluation_batches
from plsc.errors import ConfigError, DataError
from plsc.metrics import ECE, F1, ConfusionMatrix, PerClassAccuracy, PrecisionAt1, RealAcc, TopkAcc
from plsc.targets import Targets


def mAP(activation="sigmoid", **options):
    """Of logits, whose order a sigmoid keeps, unless a test says otherwise."""
    return metrics.mAP(activation=activation, **options)


def AUC(activation="sigmoid", **options):
    return metrics.AUC(activation=activation, **options)


SIZE, CLASSES = 47, 6
RNG = np.random.default_rng(11)
LOGITS = RNG.normal(0, 3, (SIZE, CLASSES)).astype("float32")
LABEL = RNG.integers(0, CLASSES - 1, SIZE)  # nothing of the last class
MULTI = [set(RNG.choice(CLASSES - 1, RNG.integers(0, 4), replace=False).tolist()) for _ in range(SIZE)]
DENSE = np.array([[c in labels for c in range(CLASSES)] for labels in MULTI])
BOTH = pytest.mark.parametrize("world", [1, 2])


class Pictures:
    """A data set of which only length and names matter."""

    class_names, max_labels = None, 1

    def __init__(self, names):
        self._names = list(names)

    def __len__(self):
        return len(self._names)

    def __getitem__(self, index):
        return Sample(b"", 0, self._names[index])


def single(index, label=LABEL) -> Targets:
    return Targets(label=paddle.to_tensor(label[index]), index=paddle.to_tensor(index))


def multi(index, labels=MULTI) -> Targets:
    """Padded lists of classes; a class of weight 0 beside them is none of the sample's."""
    ids = np.full([len(index), 5], -1, "int32")
    weights = np.zeros([len(index), 5], "float32")
    for row, i in enumerate(index):
        actual = sorted(labels[i])
        ids[row, : len(actual)], weights[row, : len(actual)] = actual, 0.5
        ids[row, len(actual)] = CLASSES - 1
    return Targets(
        label_ids=paddle.to_tensor(ids), label_weights=paddle.to_tensor(weights), index=paddle.to_tensor(index)
    )


def fed(metric, logits, targets_of, rank: int, world: int, batch_size: int = 7):
    """The metric of one process after its share of the data; rows that fill up batches are wildly right."""
    size = len(logits)
    if hasattr(metric, "attach") and not isinstance(metric, RealAcc):
        metric.attach(Pictures(["x"] * size))
    for draws in evaluation_batches(size, batch_size, rank, world):
        index = np.array([draw.index for draw in draws])
        valid = np.array([draw.valid for draw in draws])
        rows = logits[index].copy()
        rows[~valid] = 1e4 * (np.arange(logits.shape[1]) == LABEL[size - 1])
        metric.update(paddle.to_tensor(rows), targets_of(index), paddle.to_tensor(valid))
    return metric


def over(world: int, make, logits=LOGITS, targets_of=single):
    """The metric of the first process of `world`, after all have exchanged what they sum; all agree on its figures."""
    sent = []
    for rank in range(world):
        calls = []
        fed(make(), logits, targets_of, rank, world).reduce(
            lambda t, calls=calls: (calls.append(t.numpy().copy()), t)[1]
        )
        sent.append(calls)
    sums = [sum(tensors) for tensors in zip(*sent, strict=True)]  # as many collectives on each process
    metrics = [fed(make(), logits, targets_of, rank, world) for rank in range(world)]
    for metric in metrics:
        left = iter(sums)
        metric.reduce(lambda _, left=left: paddle.to_tensor(next(left)))
    results = [metric.compute() for metric in metrics]
    assert results == [results[0]] * world
    return metrics[0]


# -- classes ------------------------------------------------------------------------------


@BOTH
def test_per_class_accuracy(world):
    metric = over(world, PerClassAccuracy)
    predicted = LOGITS.argmax(axis=1)
    present = np.unique(LABEL)
    expected = recall_score(LABEL, predicted, labels=present, average=None, zero_division=0)
    assert metric.samples.tolist() == np.bincount(LABEL, minlength=CLASSES).tolist()
    np.testing.assert_allclose(metric.right[present] / metric.samples[present], expected)
    assert len(present) == CLASSES - 1
    assert metric.compute() == {
        "mean_class_top1": pytest.approx(
            recall_score(LABEL, predicted, labels=present, average="macro", zero_division=0)
        ),
        "classes": len(present),
    }


def test_mean_of_classes_is_not_the_accuracy_of_samples():
    """Nine of class 0, all right, and one of class 1, wrong: 90 % of the samples, 50 % of the classes."""
    label = np.array([0] * 9 + [1])
    logits = np.tile(np.array([[2.0, 1.0]], "float32"), (10, 1))
    targets = Targets(label=paddle.to_tensor(label))
    metric = PerClassAccuracy()
    metric.update(paddle.to_tensor(logits), targets)
    assert metric.compute()["mean_class_top1"] == balanced_accuracy_score(label, logits.argmax(axis=1)) == 0.5


@BOTH
def test_confusion(world):
    metric = over(world, ConfusionMatrix)
    expected = confusion_matrix(LABEL, LOGITS.argmax(axis=1), labels=range(CLASSES))
    np.testing.assert_array_equal(metric.matrix, expected)
    assert metric.compute() == {} and metric.matrix.sum() == SIZE


@pytest.mark.parametrize("metric", [PerClassAccuracy, ConfusionMatrix])
def test_what_needs_one_label_says_so(metric):
    index = np.arange(4)
    with pytest.raises(ConfigError, match=f"{metric.__name__} needs one label"):
        metric().update(paddle.to_tensor(LOGITS[:4]), multi(index))


def test_too_many_classes_for_a_matrix():
    with pytest.raises(ConfigError, match="at most 5,000 classes, the model has 6,000"):
        ConfusionMatrix().update(paddle.zeros([2, 6000]), Targets(label=paddle.to_tensor([0, 1])))


# -- calibration --------------------------------------------------------------------------


def softmax(logits):
    powers = np.exp(logits.astype("float64") - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def sigmoid(logits):
    return 1 / (1 + np.exp(-logits.astype("float64")))


def direct_ece(confidence, right, bins: int) -> float:
    """Bin by bin, as the paper writes it."""
    total, edges = 0.0, np.linspace(0, 1, bins + 1)
    for low, high in itertools.pairwise(edges):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return total


@BOTH
@pytest.mark.parametrize("bins", [1, 4, 15])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_ece_against_a_loop(world, bins, activation):
    probabilities = softmax(LOGITS) if activation == "softmax" else sigmoid(LOGITS)
    expected = direct_ece(probabilities.max(axis=1), LOGITS.argmax(axis=1) == LABEL, bins)
    actual = over(world, lambda: ECE(bins, activation)).compute()
    assert actual == {"ece": pytest.approx(expected, rel=1e-5)} and expected > 0.01


def test_ece_by_hand():
    """Two samples sure of 0.9, one of them right, and one sure of 0.7, right: gaps of 0.4 and 0.3."""
    logits = np.log(np.array([[0.9, 0.1], [0.9, 0.1], [0.3, 0.7]], "float32"))
    metric = ECE(bins=4)
    metric.update(paddle.to_tensor(logits), Targets(label=paddle.to_tensor([0, 1, 1])))
    assert metric.compute()["ece"] == pytest.approx(2 / 3 * 0.4 + 1 / 3 * 0.3, rel=1e-6)


def test_an_edge_belongs_to_the_bin_below():
    """Sure of exactly 0.5 and right, sure of 0.9 and wrong: two bins, gaps of 0.5 and 0.9."""
    metric = ECE(bins=2)
    logits = np.log(np.array([[0.5, 0.5], [0.1, 0.9]], "float32"))
    metric.update(paddle.to_tensor(logits), Targets(label=paddle.to_tensor([0, 0])))
    assert metric.compute()["ece"] == pytest.approx((0.5 + 0.9) / 2, rel=1e-6)


def test_certainty_falls_into_the_last_bin():
    metric = ECE(bins=10)
    metric.update(paddle.to_tensor([[1000.0, 0.0], [0.0, 1000.0]]), Targets(label=paddle.to_tensor([0, 0])))
    assert metric.compute()["ece"] == pytest.approx(0.5)


def test_ece_of_several_labels_takes_any_of_them():
    actual = over(1, ECE, targets_of=multi).compute()["ece"]
    right = np.array([int(c) in labels for c, labels in zip(LOGITS.argmax(axis=1), MULTI, strict=True)])
    assert actual == pytest.approx(direct_ece(softmax(LOGITS).max(axis=1), right, 15), rel=1e-5)


def test_ece_shows_logits_that_are_not_numbers():
    metric = ECE()
    metric.update(paddle.to_tensor([[float("nan"), 0.0], [1.0, 0.0]]), Targets(label=paddle.to_tensor([0, 0])))
    assert math.isnan(metric.compute()["ece"])


# -- several labels -----------------------------------------------------------------------


@BOTH
def test_precision_at_1(world):
    right = [int(c) in labels for c, labels in zip(LOGITS.argmax(axis=1), MULTI, strict=True)]
    assert 0 < sum(right) < SIZE and any(not labels for labels in MULTI)
    assert over(world, PrecisionAt1, targets_of=multi).compute() == {"precision_at_1": sum(right) / SIZE}


@BOTH
@pytest.mark.parametrize("threshold", [0.5, 0.9])
def test_f1_against_scikit_learn(world, threshold):
    predicted = sigmoid(LOGITS) > threshold
    present = np.flatnonzero(DENSE.any(axis=0))
    actual = over(world, lambda: F1(threshold, "sigmoid"), targets_of=multi).compute()
    assert actual == {
        "f1_macro": pytest.approx(f1_score(DENSE, predicted, labels=present, average="macro", zero_division=0)),
        "f1_micro": pytest.approx(f1_score(DENSE, predicted, average="micro", zero_division=0)),
        "f1_classes": len(present),
    }
    assert len(present) == CLASSES - 1


@BOTH
def test_f1_of_softmax_and_one_label_takes_the_highest_logit(world):
    """However unsure: of many classes none reaches a half."""
    predicted, present = LOGITS.argmax(axis=1), np.unique(LABEL)
    actual = over(world, lambda: F1(0.9, "softmax")).compute()
    assert actual == {
        "f1_macro": pytest.approx(f1_score(LABEL, predicted, labels=present, average="macro", zero_division=0)),
        "f1_micro": pytest.approx(f1_score(LABEL, predicted, average="micro")),
        "f1_classes": len(present),
    }


def test_f1_of_softmax_and_several_labels_asks_for_a_probability():
    predicted = softmax(LOGITS) > 0.3
    actual = over(1, lambda: F1(0.3, "softmax"), targets_of=multi).compute()
    assert actual["f1_micro"] == pytest.approx(f1_score(DENSE, predicted, average="micro", zero_division=0))
    assert predicted.sum() > 0


def average_precision(right, scores) -> float:
    """Mean over the positives of the precision among what scores at least as high; scores are all different."""
    order = np.argsort(-scores)
    hits = right[order]
    return float((np.cumsum(hits) / np.arange(1, len(hits) + 1))[hits].mean())


def area(right, scores) -> float:
    """Share of pairs of a positive and a negative that are in order; half for equal ones."""
    difference = scores[right][:, None] - scores[~right][None, :]
    return float(((difference > 0) + 0.5 * (difference == 0)).mean())


@BOTH
@pytest.mark.parametrize("targets_of", [single, multi])
def test_map_against_ranks(world, targets_of):
    right = DENSE if targets_of is multi else np.eye(CLASSES, dtype=bool)[LABEL]
    expected = [average_precision(right[:, c], LOGITS[:, c]) for c in range(CLASSES - 1)]
    actual = over(world, mAP, targets_of=targets_of).compute()
    assert actual == {"mAP": pytest.approx(np.mean(expected)), "mAP_classes": CLASSES - 1}
    if targets_of is multi:
        assert actual["mAP"] == pytest.approx(average_precision_score(DENSE[:, :-1], LOGITS[:, :-1], average="macro"))


@BOTH
@pytest.mark.parametrize("targets_of", [single, multi])
def test_auc_against_pairs(world, targets_of):
    logits = np.round(LOGITS)  # with many ties
    right = DENSE if targets_of is multi else np.eye(CLASSES, dtype=bool)[LABEL]
    expected = [area(right[:, c], logits[:, c]) for c in range(CLASSES - 1)]
    actual = over(world, AUC, logits=logits, targets_of=targets_of).compute()
    assert actual == {"auc": pytest.approx(np.mean(expected)), "auc_classes": CLASSES - 1}
    if targets_of is multi:
        assert actual["auc"] == pytest.approx(roc_auc_score(DENSE[:, :-1], logits[:, :-1], average="macro"))


def test_a_class_that_every_sample_has_counts_for_map_only():
    labels = [{0, 1} if i % 2 else {0} for i in range(SIZE)]

    def targets_of(index):
        return multi(index, labels)

    assert over(1, mAP, targets_of=targets_of).compute()["mAP_classes"] == 2
    assert over(1, AUC, targets_of=targets_of).compute()["auc_classes"] == 1


@pytest.mark.parametrize("make", [mAP, AUC])
def test_samples_that_could_not_be_read_do_not_rank(make):
    """Rows marked as not valid inside the data, as damaged pictures are."""
    kept = RNG.random(SIZE) < 0.6
    metric = make()
    metric.attach(Pictures(["x"] * SIZE))
    index = np.arange(SIZE)
    metric.update(paddle.to_tensor(LOGITS), single(index), paddle.to_tensor(kept))
    metric.reduce(lambda tensor: tensor)
    score = average_precision if make is mAP else area
    expected = [score(LABEL[kept] == c, LOGITS[kept, c]) for c in np.unique(LABEL[kept])]
    assert metric.compute()[metric.names[0]] == pytest.approx(np.mean(expected))


@pytest.mark.parametrize("make", [mAP, AUC])
def test_ranking_shows_logits_that_are_not_numbers(make):
    logits = LOGITS.copy()
    logits[3, 1] = np.nan
    assert math.isnan(over(1, make, logits=logits).compute()[make().names[0]])


@pytest.mark.parametrize("make", [mAP, AUC])
def test_ranking_refuses_what_memory_cannot_hold(make):
    """47 samples of 6 classes take 1128 bytes."""
    metric = make(max_gib=1000 / 2**30)
    with pytest.raises(ConfigError, match=r"47 samples and 6 classes.*max_gib"):
        fed(metric, LOGITS, single, 0, 1)
    fed(make(max_gib=1200 / 2**30), LOGITS, single, 0, 1)


@pytest.mark.parametrize("make", [mAP, AUC])
def test_ranking_in_several_pieces(make, monkeypatch):
    """Exchanged five rows at a time, the figures stay."""
    whole = over(2, make).compute()
    monkeypatch.setattr("plsc.metrics.ranking._CHUNK_BYTES", 5 * CLASSES * 4)
    assert over(2, make).compute() == whole


@pytest.mark.parametrize("make", [mAP, AUC])
def test_ranking_belongs_in_evaluation(make):
    with pytest.raises(ConfigError, match=r"belongs in Metric\.Eval"):
        make().update(paddle.to_tensor(LOGITS), single(np.arange(SIZE)))


# -- all of them --------------------------------------------------------------------------

ALL = [PerClassAccuracy, ECE, PrecisionAt1, F1, mAP, AUC]


@pytest.mark.parametrize("make", ALL)
def test_reset_forgets(make):
    metric = over(1, make)
    first = metric.compute()
    metric.reset()
    fed(metric, LOGITS, single, 0, 1).reduce(lambda tensor: tensor)
    assert metric.compute() == first


@pytest.mark.parametrize("make", [*ALL, ConfusionMatrix])
def test_without_a_mask_every_row_counts(make):
    metric = make()
    if hasattr(metric, "attach"):
        metric.attach(Pictures(["x"] * SIZE))
    metric.update(paddle.to_tensor(LOGITS), single(np.arange(SIZE)))
    metric.reduce(lambda tensor: tensor)
    assert metric.compute() == pytest.approx(over(1, make).compute())


@pytest.mark.parametrize("make", ALL)
def test_nothing_measured_is_not_a_number(make):
    metric = make()
    if hasattr(metric, "attach"):
        metric.attach(Pictures(["x"] * SIZE))
    metric.update(paddle.to_tensor(LOGITS), single(np.arange(SIZE)), paddle.zeros([SIZE], dtype="bool"))
    metric.reduce(lambda tensor: tensor)
    actual = metric.compute()
    assert all(math.isnan(actual[name]) for name in metric.names or ["ece"])
    assert all(value == 0 for name, value in actual.items() if name.endswith("classes"))


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: ECE(bins=0), r"ECE\.bins"),
        (lambda: F1(threshold=1.0), r"F1\.threshold"),
        (lambda: F1(threshold=0.0), r"F1\.threshold"),
        (lambda: mAP(max_gib=0.0), r"mAP\.max_gib"),
        (lambda: AUC(max_gib=-1.0), r"AUC\.max_gib"),
    ],
)
def test_arguments_without_sense_are_refused(make, expected):
    with pytest.raises(ConfigError, match=expected):
        make()


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_topk_and_f1_like_scikit_learn(data):
    """Any size, any padding: top-k on one label, F1 on several."""
    classes, size = data.draw(st.integers(3, 8)), data.draw(st.integers(1, 12))
    seed, k = data.draw(st.integers(0, 2**32 - 1)), data.draw(st.integers(1, classes - 1))
    rng = np.random.default_rng(seed)
    logits = rng.permuted(np.tile(np.arange(classes) - 1.5, (size, 1)), axis=1).astype("float32")  # no ties
    label = rng.integers(0, classes, size)
    valid = rng.random(size) < data.draw(st.floats(0.1, 1.0))
    valid[0] = True
    inputs = (paddle.to_tensor(logits), Targets(label=paddle.to_tensor(label)), paddle.to_tensor(valid))
    topk = TopkAcc(k)
    topk.update(*inputs)
    expected = top_k_accuracy_score(label[valid], logits[valid], k=k, labels=range(classes))
    assert topk.compute()[f"top{k}"] == pytest.approx(expected)

    right = rng.random((size, classes)) < 0.3
    ids = np.where(right, np.arange(classes), -1).astype("int32")
    several = Targets(label_ids=paddle.to_tensor(ids), label_weights=paddle.ones(ids.shape))
    f1 = F1(activation="sigmoid")
    f1.update(inputs[0], several, inputs[2])
    actual, predicted = f1.compute(), logits[valid] > 0
    present = np.flatnonzero(right[valid].any(axis=0))
    assert actual["f1_classes"] == len(present)
    assert actual["f1_micro"] == pytest.approx(f1_score(right[valid], predicted, average="micro", zero_division=0))
    if len(present):
        macro = f1_score(right[valid], predicted, labels=present, average="macro", zero_division=0)
        assert actual["f1_macro"] == pytest.approx(macro)


# -- ImageNet-ReaL ------------------------------------------------------------------------


def real_file(tmp_path, labels) -> str:
    path = tmp_path / "real.json"
    path.write_text(labels if isinstance(labels, str) else json.dumps(labels))
    return str(path)


def names_of(numbers) -> list[str]:
    return [f"somewhere/n01440764/ILSVRC2012_val_{n:08d}.JPEG" for n in numbers]


def real(tmp_path, labels, names) -> RealAcc:
    metric = RealAcc(real_file(tmp_path, labels))
    metric.attach(Pictures(names))
    return metric


def test_pictures_without_real_labels_are_skipped(tmp_path):
    """The protocol: right is any label of the list; an empty list takes the picture out, right or wrong."""
    labels = [[], [2, 0], [1], [0, 1], []]
    predicted = [0, 2, 0, 1, 1]  # skipped, right, wrong, right, skipped
    logits = np.eye(3, dtype="float32")[predicted]
    original = np.array([0, 1, 1, 2, 1])  # of ImageNet itself: they do not matter here
    metric = real(tmp_path, labels, names_of(range(1, 6)))
    targets = Targets(label=paddle.to_tensor(original), index=paddle.arange(5))
    metric.update(paddle.to_tensor(logits), targets, paddle.ones([5], dtype="bool"))
    assert metric.compute() == {"real_top1": 2 / 3, "real_samples": 3}


@BOTH
def test_real_labels_follow_the_number_in_the_name(world, tmp_path):
    """A part of the pictures, in any order, over processes."""
    labels = [sorted(labels) for labels in MULTI] * 2
    numbers = RNG.permutation(len(labels))[:SIZE] + 1
    actual = over(world, lambda: real(tmp_path, labels, names_of(numbers))).compute()
    mine = [labels[n - 1] for n in numbers]
    right = [int(c) in classes for c, classes in zip(LOGITS.argmax(axis=1), mine, strict=True) if classes]
    assert 0 < sum(right) < len(right) < SIZE
    assert actual == {"real_top1": pytest.approx(sum(right) / len(right)), "real_samples": len(right)}


def test_without_numbers_the_order_tells(tmp_path):
    labels = [sorted(labels) for labels in MULTI]
    by_order = over(1, lambda: real(tmp_path, labels, [f"{i}.png" for i in range(SIZE)])).compute()
    assert by_order == over(1, lambda: real(tmp_path, labels, names_of(range(1, SIZE + 1)))).compute()


def test_damaged_pictures_are_not_asked_for_their_name(tmp_path):
    """A row that is not valid may stand for a file that is gone."""

    class Gone(Pictures):
        def __getitem__(self, index):
            if index == 1:
                raise DataError("no such file")
            return super().__getitem__(index)

    metric = RealAcc(real_file(tmp_path, [[0], [0], [1]]))
    metric.attach(Gone(names_of([1, 2, 3])))
    targets = Targets(label=paddle.zeros([3], "int64"), index=paddle.arange(3))
    metric.update(paddle.to_tensor([[1.0, 0.0]] * 3), targets, paddle.to_tensor([True, False, True]))
    assert metric.compute() == {"real_top1": 0.5, "real_samples": 2}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a.png", "b.png"], "labels of 3 pictures, the data set has 2"),
        ([*names_of([1]), "b.png"], "b.png: its name has no number"),
        (names_of([1, 4]), "00000004.JPEG: its name has no number"),
        (names_of([1, 0]), "00000000.JPEG: its name has no number"),
    ],
)
def test_pictures_that_the_file_does_not_know(names, expected, tmp_path):
    with pytest.raises(DataError, match=expected):
        metric = real(tmp_path, [[0], [1], []], names)
        metric.update(paddle.zeros([2, 3]), Targets(label=paddle.zeros([2], "int64"), index=paddle.arange(2)))


@pytest.mark.parametrize("text", ["{}", "[]", "[[0], 1]", '[["0"]]', "[[-1]]", "[[true]]", "[[0.5]]", "no json"])
def test_a_file_of_another_form_is_refused(text, tmp_path):
    with pytest.raises(DataError, match=r"real\.json: not "):
        RealAcc(real_file(tmp_path, text))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match=r"gone\.json: No such file"):
        RealAcc(str(tmp_path / "gone.json"))


def test_a_model_of_other_classes_has_no_real_accuracy(tmp_path):
    metric = real(tmp_path, [[2], [0]], names_of([1, 2]))
    with pytest.raises(DataError, match="labels up to 2, the model 2 classes"):
        metric.update(paddle.zeros([2, 2]), Targets(label=paddle.zeros([2], "int64"), index=paddle.arange(2)))


def test_real_accuracy_belongs_in_evaluation(tmp_path):
    metric = RealAcc(real_file(tmp_path, [[0]]))
    with pytest.raises(ConfigError, match=r"belongs in Metric\.Eval"):
        metric.update(paddle.zeros([1, 2]), Targets(label=paddle.zeros([1], "int64"), index=paddle.arange(1)))


def test_softmax_models_are_ranked_by_probability():
    """A class's logits order samples otherwise than its probabilities do."""
    from scipy.special import softmax
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(3)
    logits = rng.normal(size=(60, 4)).astype("float32") * 3 + rng.normal(size=(60, 1)).astype("float32") * 5
    labels = rng.integers(0, 4, 60)
    targets = Targets(label=paddle.to_tensor(labels), index=paddle.arange(60, dtype="int64"))
    for make, figure in ((mAP, average_precision_score), (AUC, roc_auc_score)):
        collected = {}
        for activation, scores in (("softmax", softmax(logits, axis=1)), ("sigmoid", logits)):
            metric = make(activation=activation)
            metric.attach(range(60))
            metric.update(paddle.to_tensor(logits), targets)
            metric.reduce(lambda tensor: tensor)
            collected[activation] = metric.compute()[metric.names[0]]
            expected = np.mean([figure(labels == c, scores[:, c]) for c in range(4)])
            assert collected[activation] == pytest.approx(expected, abs=1e-6)
        assert abs(collected["softmax"] - collected["sigmoid"]) > 0.01
