"""A folder of images per class: people's own data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from metalearn.datamodules.base import ImageEpisodes
from metalearn.datamodules.checks import check_at_least
from metalearn.datamodules.images import ImageSpec, read_image
from metalearn.datamodules.randomness import SPLITS
from metalearn.datamodules.splits import split_by_hash
from metalearn.datamodules.store import Contents, ImageStore, Packer, fingerprint, open_or_pack, stamp
from metalearn.errors import ConfigError, DataError

__all__ = ["ImageFolderEpisodes", "list_images", "read_queries", "read_support"]

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"}


class ImageFolderEpisodes(ImageEpisodes):
    """Episodes from ``root/{train,val,test}/CLASS/*``, or from ``root/CLASS/*``.

    Without the three split folders, classes are split 64/16/20 by a hash of their names: the same on every machine.

    Args:
        root: the folder.
        ways: classes a task, ``N``.
        shots: support images a class, ``K``.
        queries: query images a class, ``Q``.
        tasks_per_batch: ``B``.
        train_tasks: tasks an epoch.
        val_tasks: validation tasks, the same every time.
        test_tasks: test tasks, the same every time.
        seed: of the tasks.
        image_size: pixels of height and width; the whole image is resized.
        channels: 1 (grey) or 3 (colour).
        invert: dark ink on light paper becomes bright ink on black.
        num_workers: processes that draw.
        cache_dir: where the packed images are kept; ``None`` for METALEARN_CACHE or the user's cache folder.

    Raises:
        ConfigError: an argument is out of range for this data.
        DataError: the folder is missing or holds too little, or an image cannot be read.
    """

    def __init__(
        self,
        root: str,
        ways: int = 5,
        shots: int = 1,
        queries: int = 15,
        tasks_per_batch: int = 4,
        train_tasks: int = 1000,
        val_tasks: int = 200,
        test_tasks: int = 600,
        seed: int = 0,
        image_size: int = 84,
        channels: int = 3,
        invert: bool = False,
        num_workers: int = 0,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__(
            ways, shots, queries, tasks_per_batch, train_tasks, val_tasks, test_tasks, seed, num_workers, cache_dir
        )
        check_at_least("image_size", image_size, 8)
        if channels not in (1, 3):
            raise ConfigError(f"channels is {channels!r}, but images are grey (1) or coloured (3); use channels=3")
        self.root = Path(root)
        self.image_spec = ImageSpec(channels=channels, size=image_size, invert=invert)

    def list_classes(self) -> dict[str, dict[str, list[Path]]]:
        """For each split, or for ``""`` where there are none, the images of each class."""
        if not self.root.is_dir():
            raise DataError(
                f"root {self.root} is not a folder; set data.root to the folder that holds a folder per class"
            )
        if all((self.root / split).is_dir() for split in SPLITS):
            return {split: list_images(self.root / split) for split in SPLITS}
        return {"": list_images(self.root)}

    def open_store(self, verify: bool) -> ImageStore:
        listed = self.list_classes()
        spec = self.image_spec
        assert spec is not None
        classes = [(split, name, files) for split, found in listed.items() for name, files in found.items()]
        if not classes:
            raise DataError(f"root {self.root} holds no images; it must hold a folder of images per class")
        splits = [split for split, _, _ in classes]
        counts = np.asarray([len(files) for _, _, files in classes])
        self.check(Contents([name for _, name, _ in classes], counts, {"splits": splits}))
        stamps = ((split, name, file.name, *stamp(file)) for split, name, files in classes for file in files)
        source = fingerprint([spec, *stamps])

        def pack(packer: Packer) -> dict[str, Any]:
            for _, name, files in track(classes, description=f"packing {self.root.name}", transient=True):
                packer.add(name, np.stack([read_image(file, spec) for file in files]))
            return {"splits": splits}

        key = f"{self.root.resolve().name}-{fingerprint([self.root.resolve(), spec])}"
        return open_or_pack(key, source, (spec.channels, spec.size, spec.size), pack, self.cache_dir, verify)

    def split_classes(self, store: ImageStore | Contents) -> dict[str, np.ndarray]:
        splits = store.meta["splits"]
        if splits[0] == "":
            return split_by_hash(store.names, (0.64, 0.16, 0.2))
        return {split: np.flatnonzero(np.asarray(splits) == split) for split in SPLITS}


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
            raise DataError(
                f"class folder {child} holds no image; add some ({', '.join(sorted(SUFFIXES))}) or remove it"
            )
        found[child.name] = images
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
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not files:
        raise DataError(f"query {folder} holds no image; add some ({', '.join(sorted(SUFFIXES))})")
    return np.stack([read_image(file, spec) for file in files]), files


def _images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
