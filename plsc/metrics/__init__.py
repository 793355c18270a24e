"""Metrics that stream, exact over every process; plsc.metrics.base says what one offers."""

from plsc.metrics.base import Attached, Metric, WithActivation
from plsc.metrics.calibration import ECE
from plsc.metrics.classes import ConfusionMatrix, PerClassAccuracy
from plsc.metrics.mean import Mean
from plsc.metrics.multilabel import F1, PrecisionAt1
from plsc.metrics.ranking import AUC, mAP
from plsc.metrics.real import RealAcc
from plsc.metrics.topk import TopkAcc

__all__ = [
    "AUC",
    "ECE",
    "F1",
    "Attached",
    "ConfusionMatrix",
    "Mean",
    "Metric",
    "PerClassAccuracy",
    "PrecisionAt1",
    "RealAcc",
    "TopkAcc",
    "WithActivation",
    "mAP",
]
