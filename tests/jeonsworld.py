"""A small hybrid as jeonsworld's ViT-pytorch saves it, and the logits that ViT-pytorch computes of it.

The logits in fixtures/jeonsworld_hybrid.json are those of `reference` below, which follows ViT-pytorch's
models/modeling.py and models/modeling_resnet.py operation by operation in torch; tests/parity/test_jeonsworld.py
compares them anew. The file was made so:

    python -m tests.jeonsworld > tests/fixtures/jeonsworld_hybrid.json
"""

import json
import math
from pathlib import Path

import numpy as np

LOGITS = Path(__file__).parent / "fixtures" / "jeonsworld_hybrid.json"
SIZE, CLASSES, WIDTH, HEADS, DEPTH, MLP = 64, 5, 16, 2, 2, 32  # 64 pixels: 32, 15 after the pooling, 8, 4
LAYERS, CHANNELS = (2, 1, 1), 32  # bottlenecks a stage, and the stem's channels: width_factor 0.5
_RESNET = "transformer.embeddings.hybrid_model"


def shapes() -> dict[str, tuple[int, ...]]:
    """Name → shape of each array of `torch.save(model.state_dict())`."""
    out: dict[str, tuple[int, ...]] = {f"{_RESNET}.root.conv.weight": (CHANNELS, 3, 7, 7)}

    def layer(name: str, *shape: int) -> None:
        out.update({f"{name}.weight": shape, f"{name}.bias": shape[:1]})

    layer(f"{_RESNET}.root.gn", CHANNELS)
    into = CHANNELS
    for stage, count in enumerate(LAYERS):
        middle, outer = CHANNELS * 2**stage, 4 * CHANNELS * 2**stage
        for unit in range(count):
            name = f"{_RESNET}.body.block{stage + 1}.unit{unit + 1}"
            for n, (side, a, b) in enumerate(((1, into, middle), (3, middle, middle), (1, middle, outer)), 1):
                out[f"{name}.conv{n}.weight"] = (b, a, side, side)
                layer(f"{name}.gn{n}", b)
            if unit == 0:
                out[f"{name}.downsample.weight"] = (outer, into, 1, 1)
                layer(f"{name}.gn_proj", outer)
            into = outer
    layer("transformer.embeddings.patch_embeddings", WIDTH, into, 1, 1)
    out["transformer.embeddings.position_embeddings"] = (1, 1 + (SIZE // 16) ** 2, WIDTH)
    out["transformer.embeddings.cls_token"] = (1, 1, WIDTH)
    for i in range(DEPTH):
        block = f"transformer.encoder.layer.{i}"
        layer(f"{block}.attention_norm", WIDTH)
        layer(f"{block}.ffn_norm", WIDTH)
        layer(f"{block}.ffn.fc1", MLP, WIDTH)
        layer(f"{block}.ffn.fc2", WIDTH, MLP)
        for part in ("query", "key", "value", "out"):
            layer(f"{block}.attn.{part}", WIDTH, WIDTH)
    layer("transformer.encoder.encoder_norm", WIDTH)
    layer("head", CLASSES, WIDTH)
    return out


def arrays(seed: int = 0) -> dict[str, np.ndarray]:
    """Drawn so that no parameter is without effect; kernels so small that the epsilon of their variance tells."""
    rng, out = np.random.default_rng(seed), {}
    for name, shape in shapes().items():
        noise = rng.standard_normal(shape).astype("float32")
        if len(shape) == 1:
            out[name] = 1 + 0.2 * noise if name.endswith("weight") else 0.2 * noise
        elif "conv" in name or "downsample" in name:
            out[name] = 0.01 * noise
        else:
            out[name] = noise / np.float32(math.sqrt(math.prod(shape[1:]) if len(shape) != 3 else 4))
    return out


def pictures() -> np.ndarray:
    return np.random.default_rng(7).standard_normal((2, 3, SIZE, SIZE)).astype("float32")


def reference(weights: dict[str, np.ndarray], batch: np.ndarray) -> np.ndarray:
    """ViT-pytorch's logits, by torch."""
    import torch
    import torch.nn.functional as F

    w = {name: torch.from_numpy(array) for name, array in weights.items()}

    def convolved(x, name, stride=1, padding=0):
        kernel = w[f"{name}.weight"]
        variance, mean = torch.var_mean(kernel, dim=[1, 2, 3], keepdim=True, unbiased=False)
        return F.conv2d(x, (kernel - mean) / torch.sqrt(variance + 1e-5), None, stride, padding)

    def grouped(x, name, groups=32, eps=1e-6):
        return F.group_norm(x, groups, w[f"{name}.weight"], w[f"{name}.bias"], eps)

    def linear(x, name):
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def normed(x, name):
        return F.layer_norm(x, (WIDTH,), w[f"{name}.weight"], w[f"{name}.bias"], 1e-6)

    x = torch.from_numpy(batch)
    x = F.relu(grouped(convolved(x, f"{_RESNET}.root.conv", 2, 3), f"{_RESNET}.root.gn"))
    x = F.max_pool2d(x, 3, 2, 0)
    for stage, count in enumerate(LAYERS):
        for unit in range(count):
            name = f"{_RESNET}.body.block{stage + 1}.unit{unit + 1}"
            stride = 2 if stage and unit == 0 else 1
            residual = x
            if unit == 0:
                residual = convolved(x, f"{name}.downsample", stride)
                residual = grouped(residual, f"{name}.gn_proj", residual.shape[1], 1e-5)
            y = F.relu(grouped(convolved(x, f"{name}.conv1"), f"{name}.gn1"))
            y = F.relu(grouped(convolved(y, f"{name}.conv2", stride, 1), f"{name}.gn2"))
            x = F.relu(residual + grouped(convolved(y, f"{name}.conv3"), f"{name}.gn3"))
    embeddings = "transformer.embeddings"
    x = F.conv2d(x, w[f"{embeddings}.patch_embeddings.weight"], w[f"{embeddings}.patch_embeddings.bias"])
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat((w[f"{embeddings}.cls_token"].expand(len(x), -1, -1), x), 1) + w[f"{embeddings}.position_embeddings"]
    for i in range(DEPTH):
        block = f"transformer.encoder.layer.{i}"
        y = normed(x, f"{block}.attention_norm")
        q, k, v = (
            linear(y, f"{block}.attn.{part}").unflatten(2, (HEADS, -1)).transpose(1, 2)
            for part in ("query", "key", "value")
        )
        scores = (q @ k.transpose(2, 3) / math.sqrt(WIDTH // HEADS)).softmax(-1)
        x = x + linear((scores @ v).transpose(1, 2).flatten(2), f"{block}.attn.out")
        y = normed(x, f"{block}.ffn_norm")
        x = x + linear(F.gelu(linear(y, f"{block}.ffn.fc1")), f"{block}.ffn.fc2")
    return linear(normed(x, "transformer.encoder.encoder_norm")[:, 0], "head").numpy()


if __name__ == "__main__":
    print(json.dumps(reference(arrays(), pictures()).tolist()))
