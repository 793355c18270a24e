"""Oxford Flowers 102 (Nilsback and Zisserman, 2008), read from its official files."""

import os
from pathlib import Path
from typing import Literal

import numpy as np

from plsc.data.datasets.archives import Official, official_file, read_matlab, unpacked
from plsc.data.datasets.download import Root
from plsc.data.datasets.on_disk import OnDisk
from plsc.errors import DataError
from plsc.registry import DATASETS

_ADDRESS = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102"
PICTURES = Official(f"{_ADDRESS}/102flowers.tgz", "52808999861908f626f3c1f4e79d11fa")
LABELS = Official(f"{_ADDRESS}/imagelabels.mat", "e0620be6f572b9609742df49c70aed4d")
SPLITS = Official(f"{_ADDRESS}/setid.mat", "a5357ecc9cb78c4bef273ce3793fc85c")
_LARGEST = 2 << 30
_PARTS = {"train": ["trnid"], "val": ["valid"], "trainval": ["trnid", "valid"], "test": ["tstid"]}
# by label; the official files number them only, and the project's page names them
CLASSES = (
    "pink primrose",
    "hard-leaved pocket orchid",
    "canterbury bells",
    "sweet pea",
    "english marigold",
    "tiger lily",
    "moon orchid",
    "bird of paradise",
    "monkshood",
    "globe thistle",
    "snapdragon",
    "colt's foot",
    "king protea",
    "spear thistle",
    "yellow iris",
    "globe-flower",
    "purple coneflower",
    "peruvian lily",
    "balloon flower",
    "giant white arum lily",
    "fire lily",
    "pincushion flower",
    "fritillary",
    "red ginger",
    "grape hyacinth",
    "corn poppy",
    "prince of wales feathers",
    "stemless gentian",
    "artichoke",
    "sweet william",
    "carnation",
    "garden phlox",
    "love in the mist",
    "mexican aster",
    "alpine sea holly",
    "ruby-lipped cattleya",
    "cape flower",
    "great masterwort",
    "siam tulip",
    "lenten rose",
    "barbeton daisy",
    "daffodil",
    "sword lily",
    "poinsettia",
    "bolero deep blue",
    "wallflower",
    "marigold",
    "buttercup",
    "oxeye daisy",
    "common dandelion",
    "petunia",
    "wild pansy",
    "primula",
    "sunflower",
    "pelargonium",
    "bishop of llandaff",
    "gaura",
    "geranium",
    "orange dahlia",
    "pink-yellow dahlia",
    "cautleya spicata",
    "japanese anemone",
    "black-eyed susan",
    "silverbush",
    "californian poppy",
    "osteospermum",
    "spring crocus",
    "bearded iris",
    "windflower",
    "tree poppy",
    "gazania",
    "azalea",
    "water lily",
    "rose",
    "thorn apple",
    "morning glory",
    "passion flower",
    "lotus",
    "toad lily",
    "anthurium",
    "frangipani",
    "clematis",
    "hibiscus",
    "columbine",
    "desert-rose",
    "tree mallow",
    "magnolia",
    "cyclamen",
    "watercress",
    "canna lily",
    "hippeastrum",
    "bee balm",
    "ball moss",
    "foxglove",
    "bougainvillea",
    "camellia",
    "mallow",
    "mexican petunia",
    "bromelia",
    "blanket flower",
    "trumpet creeper",
    "blackberry lily",
)


@DATASETS.register()
class Flowers102(OnDisk):
    """Oxford Flowers 102: 1,020 pictures for training, as many for validation, 6,149 for testing, 102 classes.

    `root` holds 102flowers.tgz (which is unpacked there once, into jpg/) or the folder jpg, imagelabels.mat and
    setid.mat. With `download` what is missing is fetched and must match the official checksums. The split trainval is
    train and val together, which papers train on before they report test accuracy.
    """

    def __init__(
        self, root: Root, split: Literal["train", "val", "trainval", "test"] = "train", download: bool = False
    ):
        place = Path(root).expanduser()
        folder = unpacked(place, PICTURES, "jpg", owner="Flowers102", download=download, largest=_LARGEST)
        labels, splits = (official_file(place, file, "Flowers102", download) for file in (LABELS, SPLITS))
        (classes,) = read_matlab(labels, "labels")
        numbers = np.concatenate(read_matlab(splits, *_PARTS[split])).astype("int64")
        if classes.min() < 1 or classes.max() > len(CLASSES):
            raise DataError(f"{labels}: has labels from {classes.min()} to {classes.max()}, not 1 to {len(CLASSES)}")
        if numbers.min() < 1 or numbers.max() > len(classes):
            raise DataError(f"{splits}: names picture {numbers.max()}, but {labels.name} has {len(classes)} labels")
        files = [f"image_{number:05d}.jpg" for number in numbers]
        lacking = sorted({*files} - {entry.name for entry in os.scandir(folder)})
        if lacking:
            raise DataError(f"{folder}: holds no {lacking[0]}, which {splits.name} names; remove it to unpack it again")
        super().__init__((folder / file for file in files), classes[numbers - 1].astype("int64") - 1, list(CLASSES))
