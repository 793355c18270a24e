"""Metrics that stream: update a batch at a time on the device, reduce over processes, compute.

A metric offers

    names                           its figures from 0 to 1 of which more is better; the first metric's first one
                                    picks the best checkpoint
    activation                      optional, an argument too: softmax or sigmoid; None is filled in from the weights
                                    or Loss.Train
    attach(data)                    optional: the data set that is measured, once, before the first update
    reset()                         forget every sample
    update(logits, targets, valid)  add logits [B, C] float32 and Targets; rows that `valid` [B] bool does not mark,
                                    as those that fill a last batch up, do not count
    reduce(all_reduce)              join the processes; `all_reduce` maps a tensor to its sum over them
    compute()                       name → figure, one number each; what is larger, such as a confusion matrix, is an
                                    attribute
"""

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
    "ConfusionMatrix",
    "Mean",
    "PerClassAccuracy",
    "PrecisionAt1",
    "RealAcc",
    "TopkAcc",
    "mAP",
]
