"""Data sets. Each is a sequence of Sample (see base.py); it knows nothing of models."""

from plsc.data.datasets.base import Dataset, GroupReader, LabelChecked, Labelled, Named, Sample, Sharded
from plsc.data.datasets.cifar import CIFAR10, CIFAR100
from plsc.data.datasets.combine import Stack, Subset
from plsc.data.datasets.digits import Digits
from plsc.data.datasets.fashion_mnist import FashionMNIST
from plsc.data.datasets.image_folder import ImageFolder
from plsc.data.datasets.imagenet import ImageNetDataset
from plsc.data.datasets.parquet import Parquet
from plsc.data.datasets.tfrecord import TFRecord
from plsc.data.datasets.webdataset import WebDataset

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "Dataset",
    "Digits",
    "FashionMNIST",
    "GroupReader",
    "ImageFolder",
    "ImageNetDataset",
    "LabelChecked",
    "Labelled",
    "Named",
    "Parquet",
    "Sample",
    "Sharded",
    "Stack",
    "Subset",
    "TFRecord",
    "WebDataset",
]
