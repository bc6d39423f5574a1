"""Folders of images, as people make them by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from metalearn.datamodules.sources.images import IMAGES, ImageSpec, read_image
from metalearn.datamodules.sources.listing import SPLITS
from metalearn.errors import DataError
from metalearn.progress import follow

__all__ = ["find_split_folders", "list_images", "read_queries", "read_support"]


def find_split_folders(root: Path) -> list[str]:
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
    files_of = {}
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
        files_of[_name_class(child)] = images
    return files_of


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
    return np.stack([read_image(file, spec) for file in follow(files, "reading images")]), files


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
