"""Schedules, optimizers, losses and a head's batch normalisation against PyTorch's and timm's own."""

import numpy as np
import paddle
import pytest

from plsc.losses import BCELoss
from plsc.models.layers import FeatureNorm
from plsc.registry import SCHEDULERS
from plsc.targets import Targets
from tests.test_optim import Toy, drawn_gradients, optimizer_of, update

torch = pytest.importorskip("torch")


def rates(scheduler, steps: int) -> list[float]:
    """What a PyTorch scheduler over an optimizer of its own gives at each step."""
    values = []
    for _ in range(steps):
        values.append(scheduler.get_last_lr()[0])
        scheduler.optimizer.step()
        scheduler.step()
    return values


def sgd():
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)


def ours(name: str, total: int, per_epoch: int, steps: int, **arguments) -> list[float]:
    schedule = SCHEDULERS.get(name).build(arguments, total_steps=total, steps_per_epoch=per_epoch)
    return [schedule(step) for step in range(steps)]


def test_periodic_cosine_is_cosine_annealing_lr():
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(sgd(), T_max=8, eta_min=0.02)
    mine = ours("PeriodicCosine", 5, 1, 40, learning_rate=0.3, half_period=8, end_lr=0.02)
    np.testing.assert_allclose(mine, rates(theirs, 40), rtol=1e-6, atol=1e-9)


def test_the_recipe_of_torchvision_has_its_schedule():
    """SequentialLR of LinearLR and CosineAnnealingLR, a step an epoch: its references/classification/train.py."""
    schedulers, optimizer = torch.optim.lr_scheduler, sgd()
    warmup = schedulers.LinearLR(optimizer, start_factor=0.033, total_iters=30)
    main = schedulers.CosineAnnealingLR(optimizer, T_max=270, eta_min=0.0)
    theirs = schedulers.SequentialLR(optimizer, [warmup, main], milestones=[30])
    options = dict(warmup_epoch=30, warmup_start_lr=0.033 * 0.3, warmup_prefix=True, decay_unit="epoch")
    mine = ours("TimmCosine", 300 * 4, 4, 300 * 4, learning_rate=0.3, **options)
    np.testing.assert_allclose(mine[::4], rates(theirs, 300), rtol=1e-5, atol=1e-9)


def follow(name: str, make, *, transposed: bool, rtol: float, atol: float, **arguments):
    """Three updates of a Toy by plsc and of the same tensors by a PyTorch optimizer, whose matrices are [out, in]."""
    model = Toy()
    optimizer = optimizer_of(model, name, **arguments)

    def turned(array):
        return torch.tensor(array.T.copy() if transposed and array.ndim == 2 else array)

    theirs = {n: torch.nn.Parameter(turned(w)) for n, w in model.weights().items()}
    others = [
        make([p for n, p in theirs.items() if n.startswith(o)], rate) for o, rate in (("kept", 1.0), ("free", 0.25))
    ]
    for t in range(3):
        gradients = drawn_gradients(t)
        update(model, optimizer, gradients, 0.01)
        for n, p in theirs.items():
            p.grad = turned(gradients[n])
        for other in others:
            other.step()
    for n, w in model.weights().items():
        expected = theirs[n].detach().numpy()
        np.testing.assert_allclose(w, expected.T if transposed and w.ndim == 2 else expected, rtol=rtol, atol=atol)


def test_lion_is_timms():
    lion = pytest.importorskip("timm.optim.lion")
    follow(
        "Lion",
        lambda parameters, share: lion.Lion(parameters, lr=0.01 * share, betas=(0.9, 0.99), weight_decay=0.0),
        transposed=False,
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.parametrize(("mine", "theirs"), [("match_adamw", "match_rms_adamw"), ("original", "original")])
def test_muon_is_pytorchs(mine, theirs):
    """Its Newton-Schulz iteration is in bfloat16, so that updates of 0.002 to 0.01 agree to some hundredths."""
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("PyTorch before 2.9 has no Muon")

    def make(parameters, share):
        matrices = [p for p in parameters if p.ndim == 2]
        vectors = [p for p in parameters if p.ndim != 2]
        muon = torch.optim.Muon(matrices, lr=0.01 * share, weight_decay=0.0, momentum=0.9, adjust_lr_fn=theirs)
        adam = torch.optim.AdamW(vectors, lr=0.01 * share, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
        return type("Both", (), {"step": lambda self: (muon.step(), adam.step())})()

    follow("Muon", make, transposed=True, rtol=0, atol=1e-3, momentum=0.9, adjust_lr=mine)


def test_thresholded_bce_is_timms():
    timm = pytest.importorskip("timm.loss")
    rng = np.random.default_rng(0)
    logits, soft = rng.standard_normal((4, 6)).astype("float32"), rng.dirichlet(np.ones(6), 4).astype("float32")
    theirs = timm.BinaryCrossEntropy(smoothing=0.0, target_threshold=0.2, reduction="none")
    expected = theirs(torch.tensor(logits), torch.tensor(soft)).numpy().mean(axis=1)
    mine = BCELoss(class_reduction="mean", target_threshold=0.2)(
        paddle.to_tensor(logits), Targets(dense=paddle.to_tensor(soft))
    )
    np.testing.assert_allclose(mine.numpy(), expected, rtol=1e-5)


def test_a_probes_batch_normalisation_is_pytorchs():
    """MAE's BatchNorm1d(affine=False, eps=1e-6): outputs, and the running statistics after three batches."""
    mine, theirs = FeatureNorm(5), torch.nn.BatchNorm1d(5, affine=False, eps=1e-6)
    rng = np.random.default_rng(0)
    for _ in range(3):
        x = rng.normal(2.0, 3.0, [7, 5]).astype("float32")
        np.testing.assert_allclose(
            mine(paddle.to_tensor(x)).numpy(), theirs(torch.tensor(x)).numpy(), rtol=1e-4, atol=1e-5
        )
    np.testing.assert_allclose(mine._mean.numpy(), theirs.running_mean.numpy(), rtol=1e-5)
    np.testing.assert_allclose(mine._variance.numpy(), theirs.running_var.numpy(), rtol=1e-5)
    mine.eval()
    theirs.eval()
    np.testing.assert_allclose(mine(paddle.to_tensor(x)).numpy(), theirs(torch.tensor(x)).numpy(), rtol=1e-4, atol=1e-5)
