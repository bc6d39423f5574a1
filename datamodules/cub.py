"""CUB-200-2011 (Wah et al. 2011): 200 kinds of birds, split as by Chen et al. 2019 into 100, 50 and 50."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path

from metalearn.checks import MOST_OF_A_WIDTH, Count, check_whole
from metalearn.datamodules.episodes.listed import ListedImages
from metalearn.datamodules.episodes.options import EpisodeOptions
from metalearn.datamodules.sources.forms import Form, find_classes, list_folder, list_split_folders
from metalearn.datamodules.sources.images import ImageSpec
from metalearn.datamodules.sources.listing import ListedClass, log_once
from metalearn.datamodules.sources.places import Place

__all__ = ["CUB200DataModule"]

CLASSES = 200
FOLDER = re.compile(r"(\d{3})\..+")
SPLIT_OF = ("train", "val", "train", "test")
"""By the class's number, counted from 0, modulo 4 (Chen et al. 2019, "A Closer Look at Few-shot Classification")."""


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
        ways: classes a task, ``N``; or the least and the most, ``[5, 20]``: then each task draws its own.
        shots: support images a class, ``K``; or the least and the most.
        queries: query images a class, ``Q``; or the least and the most.
        tasks_per_batch: ``B``.
        train_tasks: tasks an epoch.
        val_tasks: validation tasks, the same every time.
        test_tasks: test tasks, the same every time.
        seed: of the tasks.
        image_size: pixels of height and width; the whole image is resized, its aspect ratio is not kept.
        options: see :class:`EpisodeOptions`.
        num_workers: processes that draw.
        cache_dir: where the packed images are kept; ``None`` for METALEARN_CACHE or the user's cache folder.

    Raises:
        ConfigError: an argument is out of range for this data.
        DataError: a file is missing, damaged, foreign or asks to run code, a class is empty or in two splits, or the cache cannot
            be written.
    """

    title = "CUB-200-2011"

    def __init__(
        self,
        root: str = "data/cub",
        ways: Count = 5,
        shots: Count = 1,
        queries: Count = 15,
        tasks_per_batch: int = 4,
        train_tasks: int = 1000,
        val_tasks: int = 200,
        test_tasks: int = 600,
        seed: int = 0,
        image_size: int = 84,
        options: EpisodeOptions | None = None,
        num_workers: int = 0,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__(
            ways,
            shots,
            queries,
            tasks_per_batch,
            train_tasks,
            val_tasks,
            test_tasks,
            seed,
            num_workers,
            cache_dir,
            options,
        )
        check_whole("image_size", image_size, 8, MOST_OF_A_WIDTH)
        self.root = Path(root)
        self.image_spec = ImageSpec(channels=3, size=image_size)

    def list_classes(self) -> Sequence[ListedClass]:
        forms = (
            Form("images/ with a folder NNN.Name per class", _from_folders),
            Form("train/, val/ and test/ with a folder per class", list_split_folders),
        )
        listed = find_classes(
            self.root, forms, self.title, "set data.root to it (it is at https://www.vision.caltech.edu)"
        )
        if len(listed) != CLASSES:
            log_once(
                logging.WARNING,
                f"{self.title} in {self.root} has {len(listed)} of its {CLASSES} classes: accuracies do not compare with "
                "published ones",
            )
        return listed


def _from_folders(place: Place) -> list[ListedClass] | None:
    for step in ("CUB_200_2011", "images"):
        place = place.folders().get(step, place)
    found = [(FOLDER.fullmatch(name), folder) for name, folder in place.folders().items()]
    classes = [(match, folder) for match, folder in found if match is not None]
    if not classes:
        return None
    return [list_folder(SPLIT_OF[(int(match[1]) - 1) % 4], match[0], folder) for match, folder in classes]
