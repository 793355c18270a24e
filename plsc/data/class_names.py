"""Names of classes in a text file."""

import functools
import re
from pathlib import Path

from plsc.errors import DataError
from plsc.files import read_bytes

# ImageNet's synset_words.txt begins each line so
_SYNSET = re.compile(r"n\d{8}\s+")


def read_class_names(path, count: int | None = None) -> list[str]:
    """A name a line, in the order of the labels; ImageNet's synset numbers before them are left out.

    Args:
        count: how many there must be; None for any number.

    Raises:
        DataError: the file cannot be read, is not text in UTF-8, or has another number of names.
    """
    file = Path(path).expanduser()
    try:
        lines = read_bytes(file).decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not text in UTF-8: {error}; class names are one a line") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; class names are one a line") from error
    names = [_SYNSET.sub("", line.strip()) for line in lines if line.strip()]
    if count is not None and len(names) != count:
        raise DataError(f"{path}: has {len(names)} class names, the model {count} classes")
    return names


@functools.cache
def imagenet_names() -> tuple[str, ...]:
    """The 1000 classes of ImageNet-1k (ILSVRC 2012) in their usual order, as torchvision names them.

    imagenet_1k.txt is torchvision's list, under its licence, which is in imagenet_1k.LICENSE.
    """
    return tuple(read_class_names(Path(__file__).with_name("imagenet_1k.txt"), 1000))
