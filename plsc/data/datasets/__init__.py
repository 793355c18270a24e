"""Data sets. Each is a sequence of Sample (see base.py); it knows nothing of models."""

from plsc.data.datasets.base import Dataset, GroupReader, LabelChecked, Labelled, Named, Sample, Sharded
from plsc.data.datasets.cifar import CIFAR10, CIFAR100
from plsc.data.datasets.combine import Stack, Subset
from plsc.data.datasets.digits import Digits
from plsc.data.datasets.fashion_mnist import FashionMNIST
from plsc.data.datasets.flowers import Flowers102
from plsc.data.datasets.food import Food101
from plsc.data.datasets.image_folder import ImageFolder
from plsc.data.datasets.imagenet import ImageNetDataset
from plsc.data.datasets.parquet import Parquet
from plsc.data.datasets.pets import OxfordPets
from plsc.data.datasets.random_pixels import RandomPixels
from plsc.data.datasets.stl10 import STL10
from plsc.data.datasets.svhn import SVHN
from plsc.data.datasets.tfrecord import TFRecord
from plsc.data.datasets.webdataset import WebDataset

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "STL10",
    "SVHN",
    "Dataset",
    "Digits",
    "FashionMNIST",
    "Flowers102",
    "Food101",
    "GroupReader",
    "ImageFolder",
    "ImageNetDataset",
    "LabelChecked",
    "Labelled",
    "Named",
    "OxfordPets",
    "Parquet",
    "RandomPixels",
    "Sample",
    "Sharded",
    "Stack",
    "Subset",
    "TFRecord",
    "WebDataset",
]
