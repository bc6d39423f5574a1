"""tieredImageNet (Ren et al. 2018): 608 classes of ImageNet in 34 categories, none of which is in two splits."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from metalearn.checks import MOST_OF_A_WIDTH, Count, check_whole
from metalearn.datamodules.episodes.listed import ListedImages
from metalearn.datamodules.episodes.options import EpisodeOptions
from metalearn.datamodules.sources.forms import Form, find_classes, list_split_folders
from metalearn.datamodules.sources.images import ImageSpec
from metalearn.datamodules.sources.listing import SPLITS, ListedClass, log_once
from metalearn.datamodules.sources.tiered_files import list_ren

__all__ = ["TieredImageNetDataModule"]

CLASSES = {"train": 351, "val": 97, "test": 160}


class TieredImageNetDataModule(ListedImages):
    """Few-shot episodes of tieredImageNet: 351 classes for training, 97 for validation, 160 for test.

    ``root`` may hold any of these; which it is is found by looking, and logged:

    - ``{train,val,test}_images_png.pkl`` (a list of PNG files, as bytes or arrays) and ``{train,val,test}_labels.pkl`` (a dict
      of ``label_specific``, ``label_general``, ``label_specific_str`` and ``label_general_str``), Ren et al.'s files;
    - ``{train,val,test}_images.npz`` (``images`` ``[n, H, W, 3]``) with the same labels;
    - ``train/``, ``val/`` and ``test/``, each with a folder of images per class;
    - a zip or tar of the first or the last, read in place; a compressed tar must be decompressed first.

    Each may lie in the only folder of ``root`` or of the archive, such as ``tiered-imagenet/``. Groups are the categories
    (``label_general``). Pickles are read without running anything that they ask for, and mapped where they lie: of their
    gigabytes only what is being looked at is in memory, unless they are deflated in a zip.

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

    title = "tieredImageNet"

    def __init__(
        self,
        root: str = "data/tiered-imagenet",
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
            Form("{train,val,test}_images_png.pkl and _labels.pkl", partial(list_ren, images="{}_images_png.pkl")),
            Form("{train,val,test}_images.npz and _labels.pkl", partial(list_ren, images="{}_images.npz")),
            Form("train/, val/ and test/ with a folder per class", list_split_folders),
        )
        remedy = "set data.root to it (ImageNet's terms do not allow a download by us)"
        listed = find_classes(self.root, forms, self.title, remedy)
        counts = Counter(listed_class.split for listed_class in listed)
        if counts != CLASSES:
            here = "/".join(str(counts[split]) for split in SPLITS)
            log_once(
                logging.WARNING,
                f"{self.title} in {self.root} has {here} classes, published are {'/'.join(map(str, CLASSES.values()))}: "
                "accuracies do not compare with published ones",
            )
        return listed
