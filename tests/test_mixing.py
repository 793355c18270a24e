"""Mixup and CutMix: what is mixed, in which share, and that continuing a run mixes alike."""

import numpy as np
import paddle
import pytest

from plsc import build
from plsc.config import load
from plsc.data.mixing import Cutmix, Mixup, TransformOpSampler
from plsc.errors import ConfigError
from tests.helpers import metrics, plsc, tiny_digits, write_config


def batch(rows=6, size=8, classes=3):
    """Pictures of one value each, 100 x row, so that a mixture tells its parts; one-hot targets."""
    image = np.broadcast_to(100.0 * np.arange(rows).reshape(-1, 1, 1, 1), (rows, 2, size, size)).astype("float32")
    target = np.eye(classes, dtype="float32")[np.arange(rows) % classes]
    return paddle.to_tensor(image), paddle.to_tensor(target)


def test_mixup_mixes_pictures_and_targets_in_one_share():
    """Both are share x own + (1 - share) x the same partner's."""
    image, target = batch()
    mixed, mixed_target = Mixup(alpha=1.0)(image, target, np.random.default_rng(3))
    rng = np.random.default_rng(3)
    rng.random()
    share, partner = rng.beta(1.0, 1.0), rng.permutation(6)
    expected = share * image.numpy() + (1 - share) * image.numpy()[partner]
    np.testing.assert_allclose(mixed.numpy(), expected, rtol=1e-5)
    expected = share * target.numpy() + (1 - share) * target.numpy()[partner]
    np.testing.assert_allclose(mixed_target.numpy(), expected, rtol=1e-5)


def test_cutmix_pastes_a_box_and_counts_its_pixels():
    """Every pixel is the picture's or one partner's; the target's share is the area that is left."""
    image, target = batch()
    for seed in range(20):
        mixed, mixed_target = Cutmix(alpha=1.0)(image, target, np.random.default_rng(seed))
        mixed = mixed.numpy()[:, 0]
        for row in range(6):
            values = set(np.unique(mixed[row]).tolist())
            assert len(values) <= 2 and values <= {100.0 * k for k in range(6)}
            own = (mixed[row] == 100.0 * row).mean()
            partner = (values - {100.0 * row} or {100.0 * row}).pop() / 100.0
            expected = np.zeros(3)
            expected[row % 3] += own
            expected[int(partner) % 3] += 1.0 - own
            np.testing.assert_allclose(mixed_target.numpy()[row], expected, atol=1e-5)


def test_smoothing_comes_before_mixing():
    _, target = batch()
    _, smooth = Mixup(alpha=1.0, prob=0.0, epsilon=0.3)(*batch(), np.random.default_rng(0))
    np.testing.assert_allclose(smooth.numpy(), target.numpy() * 0.7 + 0.1, rtol=1e-6)


def test_the_sampler_chooses_by_probability(monkeypatch):
    """40 % Mixup, 40 % CutMix, 20 % nothing, over 500 batches within 4 standard deviations."""
    sampler = TransformOpSampler(Mixup={"alpha": 0.8, "prob": 0.4}, Cutmix={"alpha": 1.0, "prob": 0.4})
    image, target = batch(rows=2, size=2)
    calls = {"Mixup": 0, "Cutmix": 0}

    def counted(mixer, image, other, share, rng):
        calls[type(mixer).__name__] += 1
        return image, share

    for mixer in sampler.mixers:
        monkeypatch.setattr(type(mixer), "mix", counted)
    rng = np.random.default_rng(0)
    for _ in range(500):
        sampler(image, target, rng)
    assert abs(calls["Mixup"] - 200) < 44 and abs(calls["Cutmix"] - 200) < 44


# -- elementwise ------------------------------------------------------------------------------


def parts(target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(partner, share) of each sample from targets of one class a sample; a sample's partner may be itself."""
    share = np.diagonal(target)
    others = target * (1 - np.eye(len(target)))
    return np.where(share < 1.0, others.argmax(axis=1), np.arange(len(target))), share


def test_elementwise_mixup_has_a_share_a_sample():
    """The share read from the target is the picture's, and no two samples have the same."""
    image, target = batch(rows=16, classes=16)
    mixed, mixed_target = Mixup(alpha=1.0, mode="elem")(image, target, np.random.default_rng(2))
    partner, share = parts(mixed_target.numpy())
    expected = 100.0 * (share * np.arange(16) + (1 - share) * partner)
    np.testing.assert_allclose(mixed.numpy(), np.broadcast_to(expected[:, None, None, None], mixed.shape), rtol=1e-4)
    np.testing.assert_allclose(mixed_target.numpy().sum(axis=1), 1.0, rtol=1e-5)
    assert len(set(share[share < 1.0])) == (share < 1.0).sum() >= 12
    assert len(set(partner)) == 16  # a permutation


def test_elementwise_cutmix_has_a_box_a_sample():
    """Each sample holds one rectangle of its partner, whose area the target counts; the rectangles differ."""
    image, target = batch(rows=16, size=20, classes=16)
    mixed, mixed_target = Cutmix(alpha=1.0, mode="elem")(image, target, np.random.default_rng(2))
    partner, share = parts(mixed_target.numpy())
    boxes = set()
    for row in range(16):
        pasted = mixed.numpy()[row, 0] != 100.0 * row
        assert set(mixed.numpy()[row][:, pasted].ravel()) <= {100.0 * partner[row]}
        np.testing.assert_allclose(share[row], 1.0 - pasted.mean(), atol=1e-5)
        rows, columns = np.flatnonzero(pasted.any(axis=1)), np.flatnonzero(pasted.any(axis=0))
        assert pasted.sum() == len(rows) * len(columns)
        boxes.add((*rows[[0, -1]], *columns[[0, -1]]) if pasted.any() else None)
    assert len(boxes) >= 12


@pytest.mark.parametrize("kind", [Mixup, Cutmix])
def test_elementwise_mixing_decides_for_each_sample(kind):
    """With prob 0.3, samples stay exactly as they are in 70 % of the cases, beside others that do not."""
    mixer, kept = kind(alpha=5.0, prob=0.3, mode="elem"), 0
    image, target = batch(rows=50, size=8, classes=50)
    for seed in range(20):
        mixed, _ = mixer(image, target, np.random.default_rng(seed))
        same = (mixed.numpy() == image.numpy()).all(axis=(1, 2, 3))
        assert 0 < same.sum() < 50
        kept += same.sum()
    # a partner may be the sample itself, once in 50
    assert abs(kept - 1000 * (0.7 + 0.3 / 50)) < 4.5 * np.sqrt(1000 * 0.7 * 0.3)


@pytest.mark.parametrize("kind", [Mixup, Cutmix])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 7), (9, 4)])
def test_elementwise_mixing_of_narrow_pictures_keeps_sums(kind, height, width):
    """Targets sum to 1 and values stay within the batch's; pictures of one pixel too."""
    image = paddle.to_tensor(np.random.default_rng(0).random((5, 3, height, width), dtype="float32"))
    target = paddle.to_tensor(np.eye(5, dtype="float32"))
    mixed, mixed_target = kind(mode="elem")(image, target, np.random.default_rng(1))
    np.testing.assert_allclose(mixed_target.numpy().sum(axis=1), 1.0, rtol=1e-5)
    assert mixed.shape == image.shape and mixed.dtype == image.dtype
    assert image.numpy().min() - 1e-6 <= mixed.numpy().min() and mixed.numpy().max() <= image.numpy().max() + 1e-6


def test_the_elementwise_sampler_chooses_for_each_sample():
    """40 % blends, 40 % pastes, 20 % nothing, side by side; labels are smoothed by the one chosen."""
    sampler = TransformOpSampler(
        Mixup={"alpha": 5.0, "prob": 0.4, "epsilon": 0.5}, Cutmix={"alpha": 5.0, "prob": 0.4}, mode="elem"
    )
    image, target = batch(rows=50, size=8, classes=50)
    counts = {"blended": 0, "pasted": 0, "kept": 0}
    for seed in range(20):
        mixed, mixed_target = (t.numpy() for t in sampler(image, target, np.random.default_rng(seed)))
        np.testing.assert_allclose(mixed_target.sum(axis=1), 1.0, rtol=1e-5)
        for row in range(50):
            values = np.unique(mixed[row])
            if mixed_target[row].min() > 0:  # smoothed: what Mixup was chosen for
                counts["blended"] += 1
                assert len(values) == 1
                np.testing.assert_allclose(mixed_target[row].min(), 0.5 / 50, rtol=1e-5)
            elif len(values) > 1:
                counts["pasted"] += 1
                assert len(values) == 2 and 100.0 * row in values
            else:
                counts["kept"] += 1
    deviation = 4.5 * np.sqrt(1000 * 0.4 * 0.6)
    assert abs(counts["blended"] - 400) < deviation
    # Cutmix with itself as a partner, or whose box is all or nothing, counts as kept
    assert 400 - deviation - 100 < counts["pasted"] < 400 + deviation
    assert 200 - deviation < counts["kept"] < 300 + deviation


def test_the_same_draws_mix_elementwise_alike():
    image, target = batch(rows=8)
    sampler = TransformOpSampler(Mixup={"prob": 0.5}, Cutmix={"prob": 0.5}, mode="elem")
    first, second = (sampler(image, target, np.random.default_rng(4)) for _ in range(2))
    assert all((a.numpy() == b.numpy()).all() for a, b in zip(first, second, strict=True))


def test_the_mode_is_a_key_of_each(tmp_path):
    """From YAML; another mode is refused with the two there are."""
    tree = tiny_digits()
    items = [
        {"Mixup": {"mode": "elem"}},
        {"CutMix": {}},
        {"TransformOpSampler": {"Mixup": {"prob": 1}, "mode": "elem"}},
    ]
    tree["DataLoader"]["Train"]["dataset"]["batch_transform_ops"] = items
    config = load(str(write_config(tmp_path / "c.yaml", tree)))
    assert [mixer.mode for mixer in build.mixing(config)] == ["elem", "batch", "elem"]
    items[0]["Mixup"]["mode"] = "element"
    with pytest.raises(ConfigError, match="one of batch, elem"):
        load(str(write_config(tmp_path / "c.yaml", tree)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Mixup(alpha=0.0), "alpha"),
        (lambda: Cutmix(prob=1.5), "prob"),
        (lambda: Mixup(epsilon=1.0), "epsilon"),
        (lambda: TransformOpSampler(), "at least one"),
        (
            lambda: TransformOpSampler(Mixup={"prob": 3.0}),
            r"Mixup\.prob: got 3\.0; it should be less",
        ),
        (lambda: TransformOpSampler(Cutmix={"prob": -0.5}), r"Cutmix\.prob: got -0\.5; it should be greater"),
        (lambda: TransformOpSampler(Mixup={"prob": 0.7}, Cutmix={"prob": 0.7}), "at most 1"),
    ],
)
def test_wrong_arguments_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def sampler_config(tmp_path, arguments: dict):
    tree = tiny_digits()
    tree["DataLoader"]["Train"]["dataset"]["batch_transform_ops"] = [{"TransformOpSampler": arguments}]
    return load(str(write_config(tmp_path / "c.yaml", tree)))


def test_the_samplers_arguments_become_what_mixup_and_cutmix_take(tmp_path):
    """A number that YAML 1.1 reads as a text, a key without effect, defaults; the resolved recipe says all."""
    config = sampler_config(
        tmp_path, {"Mixup": {"alpha": "8e-1", "prob": "1/4", "class_num": 10}, "Cutmix": {"prob": 0}}
    )
    [sampler] = build.mixing(config)
    assert [mixer.alpha for mixer in sampler.mixers] == [0.8, 0.2] and sampler.chances == [0.25, 0.0]
    assert any("TransformOpSampler.Mixup.class_num: accepted, without effect" in note for note in config.notes)
    [resolved] = config.to_dict()["DataLoader"]["Train"]["dataset"]["batch_transform_ops"]
    assert resolved["TransformOpSampler"] == {
        "Mixup": {"alpha": 0.8, "prob": 0.25, "epsilon": 0.0},
        "Cutmix": {"alpha": 0.2, "prob": 0.0, "epsilon": 0.0},
        "mode": "batch",
    }
    assert sampler_config(tmp_path, resolved["TransformOpSampler"]).to_dict() == config.to_dict()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"Mixup": {"alpha": None}}, r"TransformOpSampler\.Mixup\.alpha: expected a number, got None"),
        ({"Cutmix": {"prob": "often"}}, r"TransformOpSampler\.Cutmix\.prob: expected a number, got 'often'"),
        ({"Mixup": {"alfa": 1.0}}, r"Mixup\.alfa: unknown key of Mixup; did you mean alpha\?"),
        ({"Mixup": {"mode": "elem"}}, r"Mixup\.mode: unknown key of Mixup"),
        ({"Mixup": [0.8]}, r"TransformOpSampler\.Mixup: expected keys and values"),
    ],
)
def test_the_samplers_arguments_are_checked_with_the_recipe(tmp_path, arguments, message):
    with pytest.raises(ConfigError, match=message):
        sampler_config(tmp_path, arguments)


def test_a_run_with_mixing_continues_exactly(tmp_path):
    """Stopped inside an epoch and continued: the same losses as the run in one go, with accumulation."""
    tree = tiny_digits()
    tree["Global"]["accum_steps"] = 2
    tree["DataLoader"]["Train"]["dataset"]["batch_transform_ops"] = [
        {"TransformOpSampler": {"Mixup": {"alpha": 0.8, "prob": 0.5}, "Cutmix": {"alpha": 1.0, "prob": 0.5}}}
    ]
    config = write_config(tmp_path / "c.yaml", tree)
    plsc("train", "-c", config, "-o", f"Global.output_dir={tmp_path / 'straight'}")
    for steps in (4, 10):
        again = ["-o", "Global.resume=auto", "-o", f"Global.max_train_step={steps}"]
        plsc("train", "-c", config, "-o", f"Global.output_dir={tmp_path / 'broken'}", *again)
    losses = [[r["loss"] for r in metrics(tmp_path / name)] for name in ("straight", "broken")]
    assert losses[0] == losses[1] and len(losses[0]) == 10
