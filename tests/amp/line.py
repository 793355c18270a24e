"""The updates of one linear layer on random pictures in NumPy, with every rounding in its place.

plsc trains the same with the model and the data set of parts.py.
"""

import numpy as np

from tests.amp.runs import column, losses, weights

SAMPLES, INPUTS, CLASSES, SIDE = 64, 64, 10, 8
LEARNING_RATE = 0.05
STEPS = 12
CLIP = {"name": "ClipGradByGlobalNorm", "clip_norm": 0.3}
OPTIMIZERS = {
    "Momentum": {"name": "Momentum", "momentum": 0.9, "grad_clip": CLIP},
    # an epsilon at which the update depends smoothly on the gradient
    "AdamW": {"name": "AdamW", "weight_decay": 0.1, "epsilon": 0.1, "grad_clip": CLIP},
}
AVERAGED = {"decay": 0.9, "thres_steps": False}


def pictures() -> tuple[np.ndarray, np.ndarray]:
    """Random pixels [64, 8, 8, 1] and labels [64]; always the same ones."""
    rng = np.random.default_rng(5)
    pixels = rng.integers(0, 256, (SAMPLES, SIDE, SIDE, 1), dtype=np.uint8)
    return pixels, rng.integers(0, CLASSES, SAMPLES)


def first_weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(6)
    return {
        "head.weight": rng.normal(0, 0.3, (INPUTS, CLASSES)).astype("float32"),
        "head.bias": rng.normal(0, 0.3, CLASSES).astype("float32"),
    }


def recipe(optimizer: dict) -> dict:
    """Every update sees all pictures; the learning rate is constant."""
    transforms = [{"NormalizeImage": {"mean": [0.5], "std": [0.5]}}, {"ToCHWImage": None}]
    return {
        "Global": {
            "epochs": STEPS,
            "print_batch_step": 1,
            "eval_during_train": False,
            "save_interval": 1,
            "save_unit": "step",
            "max_num_latest_checkpoint": -1,
            "cpu_threads": 1,
        },
        "Model": {"name": "AmpLine"},
        "Loss": {"Train": [{"CELoss": {}}]},
        "LRScheduler": {"name": "Constant", "learning_rate": LEARNING_RATE},
        "Optimizer": optimizer,
        "DataLoader": {
            "Train": {
                "dataset": {"name": "AmpPictures", "transform_ops": transforms},
                "sampler": {"name": "DistributedBatchSampler", "batch_size": SAMPLES, "shuffle": False},
                "loader": {"num_workers": 0},
            }
        },
    }


# -- the same in NumPy --------------------------------------------------------------------


def to_bfloat16(x: np.ndarray) -> np.ndarray:
    """Rounded to the nearest bfloat16, half to even, as float32."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return rounded.astype(np.uint32).view(np.float32)


def to_float16(x: np.ndarray) -> np.ndarray:
    """Rounded to the nearest float16, infinite above 65504, as float32."""
    with np.errstate(over="ignore"):
        return np.asarray(x, dtype=np.float32).astype(np.float16).astype(np.float32)


ROUNDINGS = {"float16": to_float16, "bfloat16": to_bfloat16, "float32": lambda x: np.asarray(x, dtype=np.float32)}


class Emulation:
    """plsc's updates of AmpLine, in float32 with a rounding wherever Paddle stores half precision.

    Args:
        optimizer: as in the recipe; grad_clip, momentum, epsilon and weight_decay are followed.
        fp16: as in the recipe; None for float32.
        parts: micro-batches of an update. ranks: processes, whose gradients are averaged.

    Attributes:
        master: the weights that are updated, by name. average: of them, with decay 0.9.
        scale: the loss scale, or None. skipped: whether the last update was.
    """

    def __init__(self, optimizer: dict, fp16: dict | None = None, *, parts: int = 1, ranks: int = 1):
        fp16 = {"dtype": "float16", **fp16} if fp16 else {"level": "O0", "dtype": "float32"}
        fp16 = {"master_weight": True, "master_grad": True, **fp16}
        self.optimizer, self.parts, self.ranks = optimizer, parts, ranks
        self.half = ROUNDINGS[fp16["dtype"]]
        self.stored = self.half if fp16["level"] == "O2" else ROUNDINGS["float32"]
        self.kept = self.stored if not fp16["master_weight"] else ROUNDINGS["float32"]
        self.gradient = self.stored if not fp16["master_grad"] else ROUNDINGS["float32"]
        self.scaling = {"incr_every_n_steps": 1000, "decr_every_n_nan_or_inf": 2, "no_unscale_list": []}
        self.scaling |= fp16.get("GradScaler", {})
        self.scale = self.scaling.get("init_loss_scaling", 65536.0) if fp16["dtype"] == "float16" else None
        self.good = self.bad = self.done = 0
        self.skipped, self.norm = False, None
        self.master = {name: self.kept(w) for name, w in first_weights().items()}
        self.average = {name: w.copy() for name, w in self.master.items()}
        self.moments = {name: (np.zeros_like(w), np.zeros_like(w)) for name, w in self.master.items()}
        pixels, labels = pictures()
        x = (pixels / np.float32(255) - np.float32(0.5)) / np.float32(0.5)
        self.x = x.reshape(SAMPLES, INPUTS)
        self.targets = np.eye(CLASSES, dtype="float32")[labels]

    def step(self) -> float:
        """One update; returns the loss."""
        scale = np.float32(self.scale or 1.0)
        with np.errstate(invalid="ignore", over="ignore"):
            losses, gradients = zip(*(self.process(rank, scale) for rank in range(self.ranks)), strict=True)
            # float32 gradients are averaged in float32, half-precision ones are halved, added, and rounded
            wire = self.gradient if self.parts > 1 else self.stored
            summed = {name: wire(sum(g[name] / np.float32(self.ranks) for g in gradients)) for name in gradients[0]}
            summed = {name: self.gradient(g / scale) for name, g in summed.items()}
        for name in summed:
            if any(part in name for part in self.scaling["no_unscale_list"]):
                summed[name] = self.gradient(summed[name] * scale)
        self.skipped = self.scale is not None and not all(np.isfinite(g).all() for g in summed.values())
        if not self.skipped:
            self.update(summed)
        for name, w in self.master.items():
            self.average[name] += np.float32(0.1) * (w - self.average[name])
        self.adapt()
        return float(np.mean(losses))

    def process(self, rank: int, scale) -> tuple[float, dict[str, np.ndarray]]:
        """Loss and scaled gradients of one process, which sees its share of the pictures in `parts`."""
        rows = np.arange(SAMPLES)[rank :: self.ranks]
        losses, total = [], None
        for part in np.split(rows, self.parts):
            loss, gradients = self.micro_batch(self.x[part], self.targets[part], scale / np.float32(self.parts))
            losses.append(loss)
            if total is not None:
                # O2 with float32 gradients adds them in float32; else Paddle adds to what it stores
                gradients = {name: self.gradient(total[name] + g) for name, g in gradients.items()}
            total = gradients
        return np.mean(losses), total

    def micro_batch(self, x, targets, scale) -> tuple[float, dict[str, np.ndarray]]:
        weights = {name: self.stored(w) for name, w in self.master.items()}
        x, w = self.half(x), self.half(weights["head.weight"])
        logits = self.stored(self.half(x @ w) + weights["head.bias"])  # O1 adds its float32 bias in float32
        shifted = logits - logits.max(axis=1, keepdims=True)
        exp = np.exp(shifted)
        total = exp.sum(axis=1, keepdims=True)
        loss = np.log(total[:, 0]) - (shifted * targets).sum(axis=1)
        slope = self.stored((exp / total - targets) * (scale / np.float32(len(x))))
        weight = self.half(x.T @ self.half(slope))
        return loss.mean(), {"head.weight": weight, "head.bias": self.stored(slope.sum(axis=0))}

    def update(self, gradients: dict[str, np.ndarray]) -> None:
        self.done += 1
        self.norm = float(np.sqrt(sum(np.square(g).sum() for g in gradients.values())))
        clip = self.optimizer.get("grad_clip", {}).get("clip_norm")
        if clip is not None and self.norm > clip:
            factor = self.gradient(np.float32(clip / (self.norm + 1e-6)))
            gradients = {name: self.gradient(g * factor) for name, g in gradients.items()}
        lr, one = np.float32(LEARNING_RATE), np.float32(1)
        for name, g in gradients.items():
            w, (m, v) = self.master[name], self.moments[name]
            if self.optimizer["name"] == "Momentum":
                m = np.float32(self.optimizer["momentum"]) * m + g
                w = w - lr * m
            else:
                m = np.float32(0.9) * m + np.float32(0.1) * g
                v = np.float32(0.999) * v + np.float32(0.001) * g * g
                fast, slow = one - np.float32(0.9) ** self.done, one - np.float32(0.999) ** self.done
                w = w * (one - lr * np.float32(self.optimizer["weight_decay"]))
                w = w - lr * (m / fast) / (np.sqrt(v / slow) + np.float32(self.optimizer["epsilon"]))
            self.moments[name], self.master[name] = (m, v), self.kept(w)

    def adapt(self) -> None:
        """The loss scale after this update."""
        if self.scale is None:
            return
        self.good, self.bad = (0, self.bad + 1) if self.skipped else (self.good + 1, 0)
        if self.bad == self.scaling["decr_every_n_nan_or_inf"]:
            self.scale, self.bad = self.scale / 2, 0
        if self.good == self.scaling["incr_every_n_steps"]:
            self.scale, self.good = self.scale * 2, 0


def emulated(emulation: Emulation) -> dict[str, list]:
    """The log of a run, as NumPy computes it."""
    log = {"loss": [], "loss_scale": [], "grad_norm": [], "skipped": []}
    for _ in range(STEPS):
        log["loss"].append(emulation.step())
        log["loss_scale"].append(emulation.scale)
        log["grad_norm"].append(None if emulation.skipped else emulation.norm)
        log["skipped"].append(emulation.skipped)
    return log


def farthest(a: dict, b: dict) -> float:
    return max(float(np.abs(a[name] - b[name]).max()) for name in a)


def check(run, emulation: Emulation, *, half_weights: bool = False) -> dict[str, list]:
    """The run's log, weights and averaged weights against the emulation; returns the emulation's log."""
    log = emulated(emulation)
    plain = Emulation(emulation.optimizer)
    emulated(plain)
    ulp = 2.0**-8 if emulation.half is to_bfloat16 else 2.0**-11
    np.testing.assert_allclose(losses(run), log["loss"], rtol=ulp / 10)
    assert column(run, "loss_scale") == log["loss_scale"]
    norms = column(run, "grad_norm")
    assert [norm is None for norm in norms] == log["skipped"]
    expected = [norm for norm in log["grad_norm"] if norm is not None]
    np.testing.assert_allclose([norm for norm in norms if norm is not None], expected, rtol=ulp / 5)
    if half_weights:
        equal = [weights(run)[name] == w for name, w in emulation.master.items()]
        assert np.mean(np.concatenate([part.ravel() for part in equal])) > 0.95
    for part, own in (("model", emulation.master), ("ema", emulation.average)):
        saved = {name: array.astype("float32") for name, array in weights(run, part).items()}
        assert farthest(saved, own) <= 0.4 * farthest(plain.master, emulation.master)
    return log
