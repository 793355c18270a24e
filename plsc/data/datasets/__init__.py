"""Data sets. Each is a sequence of Sample and knows its classes; it knows nothing of models."""

from plsc.data.datasets.base import Dataset, Sample
from plsc.data.datasets.cifar import CIFAR10, CIFAR100
from plsc.data.datasets.combine import Sliced, Stack
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
    "ImageFolder",
    "ImageNetDataset",
    "Parquet",
    "Sample",
    "Sliced",
    "Stack",
    "TFRecord",
    "WebDataset",
]
