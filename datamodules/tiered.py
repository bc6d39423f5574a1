"""tieredImageNet (Ren et al. 2018): 608 classes of ImageNet in 34 categories, none of which is in two splits."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from metalearn.checks import MOST_OF_A_WIDTH, Count, check_whole
from metalearn.datamodules.episodes.listed import ListedImages
from metalearn.datamodules.episodes.options import EpisodeOptions
from metalearn.datamodules.sources.archives import Member
from metalearn.datamodules.sources.caches import array_entries, as_labels, load_dict, to_text
from metalearn.datamodules.sources.forms import Form, find_classes, list_split_folders
from metalearn.datamodules.sources.images import ImageSpec
from metalearn.datamodules.sources.listing import SPLITS, Entry, ListedClass, log_once
from metalearn.datamodules.sources.numpy_files import load_npz
from metalearn.datamodules.sources.pickles import load_arrays
from metalearn.datamodules.sources.pixels import EncodedImages, PixelArray
from metalearn.datamodules.sources.places import Place
from metalearn.errors import DataError

__all__ = ["TieredImageNetDataModule"]

CLASSES = {"train": 351, "val": 97, "test": 160}
NEEDS = "label_specific, label_general and their names"


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
            Form("{train,val,test}_images_png.pkl and _labels.pkl", partial(_from_pickles, images="{}_images_png.pkl")),
            Form("{train,val,test}_images.npz and _labels.pkl", partial(_from_pickles, images="{}_images.npz")),
            Form("train/, val/ and test/ with a folder per class", list_split_folders),
        )
        remedy = "set data.root to it (ImageNet's terms do not allow a download by us)"
        listed = find_classes(self.root, forms, self.title, remedy)
        found = Counter(each.split for each in listed)
        if found != CLASSES:
            counts = "/".join(str(found[split]) for split in SPLITS)
            log_once(
                logging.WARNING,
                f"{self.title} in {self.root} has {counts} classes, published are {'/'.join(map(str, CLASSES.values()))}: "
                "accuracies do not compare with published ones",
            )
        return listed


def _from_pickles(place: Place, images: str) -> list[ListedClass] | None:
    files = place.files()
    if not all(images.format(split) in files and f"{split}_labels.pkl" in files for split in SPLITS):
        return None
    listed = [
        each
        for split in SPLITS
        for each in _read_split(split, files[images.format(split)], files[f"{split}_labels.pkl"])
    ]
    count = Counter(each.name for each in listed)
    seen: Counter[str] = Counter()
    for place_of, each in enumerate(listed):  # ImageNet calls two of its classes crane, and two maillot
        if count[each.name] > 1:
            seen[each.name] += 1
            listed[place_of] = each._replace(name=f"{each.name} {seen[each.name]}")
    return listed


def _read_split(split: str, images: Member, table: Member) -> list[ListedClass]:
    content = load_dict(table, NEEDS)
    specific = content.get("label_specific")
    count = len(specific) if isinstance(specific, (list, np.ndarray)) else 0
    labels = as_labels(specific, count, table.name)
    groups = as_labels(content["label_general"], count, table.name) if "label_general" in content else None
    if not count:
        raise DataError(f"pickle {table.name} labels no image; fetch it again")
    by_class = np.argsort(labels, kind="stable")
    found, starts = np.unique(labels[by_class], return_index=True)
    entries = _entries(images, count)
    listed = []
    for label, numbers in zip(found.tolist(), np.split(by_class, starts[1:]), strict=True):
        group = ""
        if groups is not None:
            general = np.unique(groups[numbers])
            if len(general) > 1:
                raise DataError(f"pickle {table.name} has class {label} in {len(general)} categories; fetch it again")
            group = _called(content.get("label_general_str"), int(general[0]), f"{split} category")
        name = _called(content.get("label_specific_str"), label, f"{split} class")
        listed.append(ListedClass(split, name, [entries[number] for number in numbers.tolist()], group))
    return listed


def _entries(images: Member, count: int) -> Sequence[Entry]:
    if images.name.endswith(".npz"):
        pixels = PixelArray(load_npz(images, "images"), images.name)
        if len(pixels) != count:
            raise DataError(
                f"{images.name} holds {len(pixels)} images, but there are {count} labels; fetch both files again"
            )
        return array_entries(pixels, np.arange(count), images)
    encoded = EncodedImages(partial(_load, images), count, images.name)
    return [Entry(str(number), images.stamp, partial(encoded.read, number)) for number in range(count)]


def _load(member: Member) -> Any:
    return load_arrays(member.map(), member.name)


def _called(names: Any, number: int, otherwise: str) -> str:
    """The name of a label, as a list or a dict has it."""
    if isinstance(names, (list, tuple, np.ndarray)) and 0 <= number < len(names):
        return to_text(names[number])
    if isinstance(names, dict) and number in names:
        return to_text(names[number])
    return f"{otherwise} {number}"
