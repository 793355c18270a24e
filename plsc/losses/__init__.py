"""Losses: logits [B, C] float32 and Targets → one value a sample [B]."""

from plsc.losses.losses import BCELoss, CELoss, ViTCELoss, WeightedSum

__all__ = ["BCELoss", "CELoss", "ViTCELoss", "WeightedSum"]
