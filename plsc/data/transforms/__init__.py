"""Transforms by PLSC's names: image [H, W, C] uint8 and a random generator → image.

A transform whose class says `on_device = True` only describes what the device does with a
whole batch (see plsc.data.device); such transforms stand last.
"""

from plsc.data.transforms.auto_augment import AutoAugment, BigVisionRandAugment, ThreeAugment, TrivialAugmentWide
from plsc.data.transforms.color import ColorJitter, GaussianBlur, RandomGrayscale, Solarize
from plsc.data.transforms.compose import Compose, RandomApply
from plsc.data.transforms.crops import InceptionCrop, MAERandCropImage, RandomResizedCrop
from plsc.data.transforms.decode import DecodeImage
from plsc.data.transforms.device import Normalize, NormalizeImage, ToCHWImage, ToTensor
from plsc.data.transforms.erasing import RandomErasing
from plsc.data.transforms.geometry import (
    CenterCrop,
    CenterCropImage,
    RandCropImage,
    RandFlipImage,
    RandomHorizontalFlip,
    RandShift,
    Resize,
    ResizeImage,
)
from plsc.data.transforms.timm_auto_augment import TimmAutoAugment

__all__ = [
    "AutoAugment",
    "BigVisionRandAugment",
    "CenterCrop",
    "CenterCropImage",
    "ColorJitter",
    "Compose",
    "DecodeImage",
    "GaussianBlur",
    "InceptionCrop",
    "MAERandCropImage",
    "Normalize",
    "NormalizeImage",
    "RandCropImage",
    "RandFlipImage",
    "RandShift",
    "RandomApply",
    "RandomErasing",
    "RandomGrayscale",
    "RandomHorizontalFlip",
    "RandomResizedCrop",
    "Resize",
    "ResizeImage",
    "Solarize",
    "ThreeAugment",
    "TimmAutoAugment",
    "ToCHWImage",
    "ToTensor",
    "TrivialAugmentWide",
]
