"""A model → a folder that Paddle Inference or onnxruntime runs, checked against the model itself.

    inference.json, inference.pdiparams    (inference.pdmodel with Paddle 2)    or    model.onnx
    preprocess.json, classes.json          how pictures enter, and the names of the logits
    export.json                            what was exported, and the differences that the check measured

The graph's input `image` is the normalised float32 batch [B, C, H, W], its output the logits [B, classes].
"""

from plsc.export.check import TOLERANCE, Comparison
from plsc.export.write import Export, export, export_model

__all__ = ["TOLERANCE", "Comparison", "Export", "export", "export_model"]
