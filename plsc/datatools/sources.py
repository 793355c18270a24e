"""Data sets to work on, with what describes them in manifests and reports."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from plsc.config import Config
from plsc.data.datasets import ImageFolder, ImageNetDataset
from plsc.data.datasets.base import Dataset


@dataclass(frozen=True)
class Source:
    """A data set to work on.

    Attributes:
        data: the data set.
        description: plain values that say which it is; `prepare` does not go on with another one.
        class_num: labels must be below; None: as many as the data set has class names, if it has any.
    """

    data: Dataset
    description: dict[str, Any] = field(default_factory=dict)
    class_num: int | None = None

    @classmethod
    def of(cls, data: "Dataset | Source") -> "Source":
        """A data set as a source, described by its type; a source as it is."""
        return data if isinstance(data, Source) else cls(data, {"dataset": type(data).__name__})


def from_folder(root: str | Path) -> Source:
    """Pictures in one folder a class. Raises DataError where there are none."""
    return Source(ImageFolder(str(root)), {"dataset": "ImageFolder", "root": os.path.abspath(root)})


def from_list(
    path: str | Path, root: str | Path | None = None, *, delimiter: str = " ", multi_label: bool = False
) -> Source:
    """Pictures of a list file.

    Args:
        path: the list, one `path label` a line.
        root: where its paths begin; None: in the list's folder.
        delimiter, multi_label: as in ImageNetDataset.

    Raises:
        DataError: the list or its first picture cannot be read.
    """
    root = Path(path).parent if root is None else root
    options: dict[str, Any] = {"delimiter": delimiter, "multi_label": multi_label}
    places = {"image_root": os.path.abspath(root), "cls_label_path": os.path.abspath(path)}
    data = ImageNetDataset(str(root), str(path), **options)
    return Source(data, {"dataset": "ImageNetDataset", **places, **options})


def from_recipe(config: Config, mode: Literal["Train", "Eval"] = "Train") -> Source:
    """The data set of a recipe's DataLoader.Train or DataLoader.Eval, with its slice and val_fraction.

    Raises:
        ConfigError: the recipe has no such DataLoader, or the data set's arguments are wrong.
        DataError: the data set cannot be read.
    """
    from plsc import build

    data = build.dataset(config, mode)
    described = config.to_dict()["DataLoader"][mode]["dataset"]
    if described["val_fraction"] is None:
        del described["val_seed"]
    kept = {key: value for key, value in described.items() if value is not None and not key.endswith("transform_ops")}
    class_num = config.Model.arguments.get("class_num")
    return Source(data, {"dataset": kept.pop("name"), **kept}, class_num if isinstance(class_num, int) else None)
