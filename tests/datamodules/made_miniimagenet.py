"""A tiny miniImageNet in the forms that people hold."""

from __future__ import annotations

import io
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIDE, CLASSES, IMAGES = 12, 9, 4
SPLITS = ("train", "val", "test")
Files = dict[str, bytes]


def pixels_of(label: int, index: int) -> np.ndarray:
    return np.random.default_rng([label, index]).integers(0, 256, (SIDE, SIDE, 3), np.uint8)


def png(pixels: np.ndarray, kind: str = "png") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def labels_of(split: str, classes: int = CLASSES) -> range:
    return range(SPLITS.index(split), classes, 3)


def table(classes: int = CLASSES, images: int = IMAGES) -> Files:
    files = {f"images/n{a}_{b}.png": png(pixels_of(a, b)) for a in range(classes) for b in range(images)}
    for split in SPLITS:
        rows = [f"n{label}_{index}.png,n{label}" for label in labels_of(split, classes) for index in range(images)]
        files[f"{split}.csv"] = "".join(f"{row}\n" for row in ["filename,label", *rows]).encode()
    return files


def tree(val: str = "val") -> Files:
    return {
        f"{val if split == 'val' else split}/n{label}/{index}.png": png(pixels_of(label, index))
        for split in SPLITS
        for label in labels_of(split)
        for index in range(IMAGES)
    }


def cache(
    name: str = "mini-imagenet-cache-{}.pkl", words: tuple[str, ...] = SPLITS, labelled: bool = False, protocol: int = 2,
    change: Callable[[np.ndarray], np.ndarray] = lambda images: images,
) -> Files:  # fmt: skip
    """Classes in no order, as dicts of Python 2 have them."""
    files = {}
    for split, word in zip(SPLITS, words, strict=True):
        labels = list(labels_of(split))[::-1]
        images = change(np.stack([pixels_of(label, index) for label in labels for index in range(IMAGES)]))
        content: dict[str, Any]
        if labelled:
            names = {f"n{label}": place for place, label in enumerate(labels)}
            content = {"data": images, "labels": np.repeat(range(len(labels)), IMAGES).tolist(), "catname2label": names}
        else:
            places = {
                f"n{label}": list(range(place * IMAGES, (place + 1) * IMAGES)) for place, label in enumerate(labels)
            }
            content = {"image_data": images, "class_dict": places}
        files[name.format(word)] = pickle.dumps(content, protocol)
    return files


def below(files: Files) -> Files:
    return {f"some/{name}": data for name, data in files.items()}


def write_folder(root: Path, files: Files) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def write_zip(root: Path, files: Files) -> Path:
    root.mkdir()
    with zipfile.ZipFile(root / "all.zip", "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in files.items():
            file.writestr(name, data)
    return root


def write_tar(root: Path, files: Files) -> Path:
    root.mkdir()
    with tarfile.open(root / "all.tar", "w") as file:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return root
