"""A folder of images per class: people's own data."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from metalearn.datamodules.checks import Count, check_at_least
from metalearn.datamodules.episodes.listed import Entry, ListedClass, ListedImages
from metalearn.datamodules.episodes.options import EpisodeOptions
from metalearn.datamodules.episodes.randomness import SPLITS
from metalearn.datamodules.episodes.splits import ClassSplit, assign_splits, left_empty
from metalearn.datamodules.sources.forms import IMAGES, check_classes
from metalearn.datamodules.sources.images import ImageSpec, read_image
from metalearn.datamodules.sources.tables import read_label_table
from metalearn.datamodules.store.store import stamp
from metalearn.errors import ConfigError, DataError

__all__ = ["ImageFolderEpisodes", "file_entry", "list_images", "read_queries", "read_support"]


class ImageFolderEpisodes(ListedImages):
    """Episodes from ``root/{train,val,test}/CLASS/*``, from ``root/CLASS/*``, or from a table of files and their classes.

    Args:
        root: the folder.
        ways: classes a task, ``N``; or the least and the most, ``[5, 20]``: then each task draws its own.
        shots: support images a class, ``K``; or the least and the most.
        queries: query images a class, ``Q``; or the least and the most.
        tasks_per_batch: ``B``.
        train_tasks: tasks an epoch.
        val_tasks: validation tasks, the same every time.
        test_tasks: test tasks, the same every time.
        seed: of the tasks.
        image_size: pixels of height and width; the whole image is resized.
        channels: 1 (grey) or 3 (colour).
        invert: dark ink on light paper becomes bright ink on black.
        labels: a CSV file with the columns ``filename,label`` (and ``split`` and ``group``, if you like), whose file names are
            below ``root``; ``None`` for a folder per class.
        splits: where neither folders nor table split the classes: the classes of ``train``, ``val`` and ``test`` by name, or
            three fractions, by which they are cut in the order of a hash of their names: the same on every machine.
        options: see :class:`EpisodeOptions`.
        num_workers: processes that draw.
        cache_dir: where the packed images are kept; ``None`` for METALEARN_CACHE or the user's cache folder.

    Raises:
        ConfigError: an argument is out of range for this data.
        DataError: the folder or the table is missing or holds too little, or an image cannot be read.
    """

    def __init__(
        self,
        root: str,
        ways: Count = 5,
        shots: Count = 1,
        queries: Count = 15,
        tasks_per_batch: int = 4,
        train_tasks: int = 1000,
        val_tasks: int = 200,
        test_tasks: int = 600,
        seed: int = 0,
        image_size: int = 84,
        channels: int = 3,
        invert: bool = False,
        labels: str | None = None,
        splits: ClassSplit = (0.64, 0.16, 0.2),
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
        check_at_least("image_size", image_size, 8, 4096)
        if channels not in (1, 3):
            raise ConfigError(f"channels is {channels!r}, but images are grey (1) or coloured (3); use channels=3")
        self.root = Path(root)
        self.title = re.sub(r"[^\w.-]", "_", self.root.resolve().name, flags=re.ASCII)[:60] or "images"
        self.labels = labels
        self.splits_by = splits
        self._empty: set[str] | None = None
        self.image_spec = ImageSpec(channels=channels, size=image_size, invert=invert)

    @property
    def meant_empty(self) -> set[str]:
        return left_empty(self.splits_by) if self._empty is None else self._empty

    @property
    def splits_are_chosen(self) -> bool:
        return self._empty is None

    def list_classes(self) -> Sequence[ListedClass]:
        if not self.root.is_dir():
            raise DataError(
                f"root {self.root} is not a folder; set data.root to the folder that holds a folder per class"
            )
        if self.labels is not None:
            found = read_label_table(Path(self.labels), self.root)
        elif present := split_folders(self.root):
            found = [
                ListedClass(split, name, [file_entry(file) for file in files])
                for split in present
                for name, files in list_images(self.root / split).items()
            ]
        else:
            classes = list_images(self.root)
            found = [ListedClass("", name, [file_entry(file) for file in files]) for name, files in classes.items()]
        if not found:
            raise DataError(f"root {self.root} holds no images; it must hold a folder of images per class")
        if all(each.split for each in found):
            self._empty = set(SPLITS) - {each.split for each in found}
            return check_classes(found, str(self.root), whole=False)
        split = assign_splits([each.name for each in found], self.splits_by)
        return [each._replace(split=split[each.name]) for each in found if each.name in split]


def file_entry(file: Path, name: str | None = None) -> Entry:
    """An image file as an entry of a listing."""
    return Entry(name or file.name, stamp(file), lambda spec: read_image(file, spec))


def split_folders(root: Path) -> list[str]:
    """The splits that have a folder of their own, where ``root`` holds folders of classes for splits; else none."""
    folders = {path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")}
    whole = set(SPLITS) <= folders
    partly = bool(folders) and folders < set(SPLITS) and not any(_images(root / name) for name in folders)
    return [split for split in SPLITS if split in folders] if whole or partly else []


def list_images(folder: Path) -> dict[str, list[Path]]:
    """The images in each sub-folder, sorted; a sub-folder without any is an error.

    Raises:
        DataError: the folder is missing, or a sub-folder holds no image.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; give the folder that holds a folder of images per class")
    found = {}
    for child in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        images = _images(child)
        if not images:
            below = next((path.parent for path in sorted(child.rglob("*")) if _is_image(path)), None)
            if below is not None:
                raise DataError(
                    f"class folder {child} holds no image itself, but {below} does; set the root to {below.parent}, or move the "
                    "images up"
                )
            raise DataError(f"class folder {child} holds no image; add some ({', '.join(IMAGES)}) or remove it")
        found[_name_class(child)] = images
    return found


def read_support(folder: Path, spec: ImageSpec) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """A user's labelled examples: a sub-folder per class.

    Returns:
        uint8 images ``[n, C, H, W]``, int64 labels ``[n]``, and the class names in the order of their labels.

    Raises:
        DataError: there are fewer than two classes, or an image cannot be read.
    """
    classes = list_images(folder)
    if len(classes) < 2:
        raise DataError(f"support {folder} has {len(classes)} class folders, but telling classes apart needs at least 2; make a "
                        "sub-folder of images for each class")  # fmt: skip
    images = [read_image(file, spec) for files in classes.values() for file in files]
    labels = np.repeat(np.arange(len(classes)), [len(files) for files in classes.values()])
    return np.stack(images), labels, list(classes)


def read_queries(folder: Path, spec: ImageSpec) -> tuple[np.ndarray, list[Path]]:
    """A user's unlabelled images, from the folder and all folders below it.

    Returns:
        uint8 images ``[m, C, H, W]``, and their paths.

    Raises:
        DataError: there are none, or one cannot be read.
    """
    if not folder.is_dir():
        raise DataError(f"query {folder} is not a folder; give the folder that holds the images to classify")
    files = sorted(path for path in folder.rglob("*") if _is_image(path))
    if not files:
        raise DataError(f"query {folder} holds no image; add some ({', '.join(IMAGES)})")
    return np.stack([read_image(file, spec) for file in files]), files


def _images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if _is_image(path))


def _is_image(path: Path) -> bool:
    """Whether the name is an image's, and it is a file: no hidden one, as file managers leave behind, and no pipe."""
    return path.suffix.lower() in IMAGES and not path.name.startswith(".") and path.is_file()


def _name_class(folder: Path) -> str:
    """The class of a folder.

    Raises:
        DataError: its name is not UTF-8, as tables and checkpoints are.
    """
    try:
        folder.name.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"class folder {folder} has a name that is not UTF-8; rename it") from error
    return folder.name
