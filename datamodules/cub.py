"""CUB-200-2011 (Wah et al. 2011): 200 kinds of birds, split as by Chen et al. 2019 into 100, 50 and 50."""

from __future__ import annotations

import re

from metalearn.datamodules.episodes.arguments import FileArguments, Unpack, spell_out
from metalearn.datamodules.episodes.listed import ListedImages
from metalearn.datamodules.sources.forms import SPLIT_FOLDERS, Form, list_folder
from metalearn.datamodules.sources.listing import ListedClass
from metalearn.datamodules.sources.places import Place
from metalearn.datamodules.sources.published import PublishedTotal

__all__ = ["CUB200DataModule"]

FOLDER = re.compile(r"(\d{3})\..+")
SPLIT_OF = ("train", "val", "train", "test")
"""By the class's number, counted from 0, modulo 4 (Chen et al. 2019, "A Closer Look at Few-shot Classification")."""


def list_birds(place: Place) -> list[ListedClass] | None:
    """The classes of folders ``NNN.Name``, below ``CUB_200_2011/images/`` or ``images/`` where these are there."""
    for step in ("CUB_200_2011", "images"):
        place = place.folders().get(step, place)
    matches = [(FOLDER.fullmatch(name), folder) for name, folder in place.folders().items()]
    classes = [(match, folder) for match, folder in matches if match is not None]
    if not classes:
        return None
    return [list_folder(SPLIT_OF[(int(match[1]) - 1) % 4], match[0], folder) for match, folder in classes]


class CUB200DataModule(ListedImages):
    """Few-shot episodes of CUB-200-2011: 100 classes for training, 50 for validation, 50 for test.

    The split is Chen et al.'s (2019): of the classes numbered from 0, every second one is for training, and the others are for
    validation and test by turns. ``root`` may hold any of these; which it is is found by looking, and logged:

    - ``CUB_200_2011/images/NNN.Name/*.jpg``, or ``images/NNN.Name/``, or those folders themselves;
    - ``train/``, ``val/`` and ``test/``, each with a folder of images per class;
    - a zip or tar of one of these, read in place. The official ``CUB_200_2011.tgz`` must be decompressed to a tar first.

    Images are not cropped to their bounding boxes.

    Args:
        root: the folder or archive.

    Raises:
        ConfigError: an argument is out of range for this data.
        DataError: a file is missing, damaged, foreign or asks to run code, a class is empty or in two splits, or the cache cannot
            be written.

    Example:
        >>> from metalearn.datamodules import CUB200DataModule
        >>> data = CUB200DataModule("data/cub", ways=5, shots=1, queries=15)
        >>> data.image_spec.channels, data.image_spec.size
        (3, 84)
    """

    title = "CUB-200-2011"
    forms = (Form("images/ with a folder NNN.Name per class", list_birds), SPLIT_FOLDERS)
    remedy = "set data.root to it (it is at https://www.vision.caltech.edu)"
    published = PublishedTotal(200)

    @spell_out(FileArguments)
    def __init__(self, root: str = "data/cub", **arguments: Unpack[FileArguments]) -> None:
        super().__init__(root, **arguments)
