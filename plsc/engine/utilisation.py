"""Model FLOPs utilisation (MFU): the operations that learning needs, as a share of what the devices can do.

As Chowdhery et al., 2022 (PaLM, appendix B) define it: what recomputed activations cost again does not count.
"""

import re
from typing import Any

import paddle

from plsc.models.spec import known_flops

# words in a GPU's name → its peak in half precision, dense, in TFLOPS, by NVIDIA's data sheets; the first that fits
_PEAKS = {
    "B200": 2250.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "H200": 989.0,
    "GH200": 989.0,
    "H800 PCIe": 756.0,
    "H800": 989.0,
    "H20": 148.0,
    "A100": 312.0,
    "A800": 312.0,
    "A10G": 70.0,  # Amazon's, which is not an A10
    "A10": 125.0,
    "A30": 165.0,
    "A40": 150.0,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
    "V100-PCIE": 112.0,
    "V100": 125.0,
    "T4": 65.0,
    "RTX 4090": 165.0,
    "RTX 3090": 71.0,
}
_OTHER_MODEL = re.compile(r" (Ti|D|SUPER|Laptop|Max-Q|MIG)\b")  # slower or faster than what it is named after


def known_peak(name: str) -> float | None:
    """TFLOPS in half precision of a GPU by the name that its driver gives; None where it is unknown."""
    if _OTHER_MODEL.search(name):
        return None
    return next((peak for words, peak in _PEAKS.items() if re.search(rf"\b{words}\b", name)), None)


def device_peak(device: str, *, half: bool) -> float | None:
    """TFLOPS of the present device in the precision of a run; None where they are unknown.

    Args:
        device: Paddle's name of it. half: whether products are of half-precision numbers.
    """
    return known_peak(paddle.device.cuda.get_device_name()) if half and device.startswith("gpu") else None


def training_flops(spec: Any, trained: float = 1.0) -> float | None:
    """Operations of learning from one image: forward, and twice as many backward.

    Args:
        spec: of the model. trained: share of the parameters that are not frozen, of whose gradients the backward pass
            consists; right where the frozen layers are the first ones.

    Returns:
        None where the model's family has no count, see plsc.models.flops.
    """
    forward = known_flops(spec)
    return None if forward is None else forward * (1.0 + 2.0 * trained)


def full_speed(spec: Any, *, trained: float, tflops: float | None, devices: int) -> float | None:
    """Images a second at which devices of so many TFLOPS each would be busy to the full; None where it is unknown."""
    cost = training_flops(spec, trained)
    return devices * tflops * 1e12 / cost if tflops and cost else None
