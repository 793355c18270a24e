"""Losses: a model's outputs, float32, and Targets → one value for each sample [B]."""

from plsc.losses.base import Loss
from plsc.losses.losses import BCELoss, CELoss, ViTCELoss, WeightedSum

__all__ = ["BCELoss", "CELoss", "Loss", "ViTCELoss", "WeightedSum"]
