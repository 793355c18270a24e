"""Transforms by PLSC's names: image [H, W, C] uint8 and a random generator → image.

What the device does with whole batches (see plsc.data.device) is listed last: NormalizeImage, RandomErasing, …
"""

from plsc.data.transforms.affine import RandomAffine, RandomRotation
from plsc.data.transforms.auto_augment import (
    AutoAugment,
    BigVisionRandAugment,
    RandAugment,
    ThreeAugment,
    TrivialAugmentWide,
)
from plsc.data.transforms.base import BatchTransform, DeviceTransform, Transform
from plsc.data.transforms.color import ColorJitter, GaussianBlur, RandomGrayscale, Solarize
from plsc.data.transforms.compose import Compose, RandomApply
from plsc.data.transforms.crops import InceptionCrop, MAERandCropImage, RandomCrop, RandomResizedCrop
from plsc.data.transforms.decode import DecodeImage
from plsc.data.transforms.device import Normalize, NormalizeImage, ToCHWImage, ToTensor
from plsc.data.transforms.erasing import RandomErasing
from plsc.data.transforms.geometry import (
    CenterCrop,
    CenterCropImage,
    RandCropImage,
    RandFlipImage,
    RandomHorizontalFlip,
    RandomVerticalFlip,
    RandShift,
    Resize,
    ResizeImage,
)
from plsc.data.transforms.timm_auto_augment import TimmAutoAugment

__all__ = [
    "AutoAugment",
    "BatchTransform",
    "BigVisionRandAugment",
    "CenterCrop",
    "CenterCropImage",
    "ColorJitter",
    "Compose",
    "DecodeImage",
    "DeviceTransform",
    "GaussianBlur",
    "InceptionCrop",
    "MAERandCropImage",
    "Normalize",
    "NormalizeImage",
    "RandAugment",
    "RandCropImage",
    "RandFlipImage",
    "RandShift",
    "RandomAffine",
    "RandomApply",
    "RandomCrop",
    "RandomErasing",
    "RandomGrayscale",
    "RandomHorizontalFlip",
    "RandomResizedCrop",
    "RandomRotation",
    "RandomVerticalFlip",
    "Resize",
    "ResizeImage",
    "Solarize",
    "ThreeAugment",
    "TimmAutoAugment",
    "ToCHWImage",
    "ToTensor",
    "Transform",
    "TrivialAugmentWide",
]
