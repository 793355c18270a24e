"""Work on whole data sets: prepare them as shards, read one through for damage, divide one for training and validation.

>>> from plsc import datatools
>>> flowers = datatools.from_folder("flowers/train")
>>> datatools.check(flowers)["damaged"]["count"]
0
>>> manifest = datatools.prepare(flowers, "flowers/shards")

Each takes a data set, or a Source made by from_folder, from_list or from_recipe. `plsc data` calls the same functions.
"""

from plsc.datatools.inspection import check
from plsc.datatools.lists import split
from plsc.datatools.shards import Settings, prepare, samples_of
from plsc.datatools.sources import Source, from_folder, from_list, from_recipe
from plsc.datatools.text import summary

__all__ = [
    "Settings",
    "Source",
    "check",
    "from_folder",
    "from_list",
    "from_recipe",
    "prepare",
    "samples_of",
    "split",
    "summary",
]
