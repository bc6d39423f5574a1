"""CIFAR-100 in the forms in which people hold it, and its download."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from metalearn.datamodules.sources.caches import decode_name, enter_rows, list_caches, load_dict, read_labels
from metalearn.datamodules.sources.downloads import download
from metalearn.datamodules.sources.forms import SPLIT_FOLDERS, Form, list_folder, list_split_folders
from metalearn.datamodules.sources.listing import Entry, ListedClass
from metalearn.datamodules.sources.members import Member
from metalearn.datamodules.sources.pixels import PixelArray
from metalearn.datamodules.sources.places import Place
from metalearn.datamodules.sources.published import SUPERCLASSES, Split
from metalearn.errors import DataError

__all__ = ["GROUP_OF", "download_cifar", "make_cifar_forms"]

log = logging.getLogger(__name__)

GROUP_OF = {name: group for group, names in SUPERCLASSES.items() for name in names}
"""The superclass of each class."""
OFFICIAL = ("train", "test", "meta")


def make_cifar_forms(split: Split, pickles: Sequence[str]) -> tuple[Form, ...]:
    """The forms in which people hold a split of CIFAR-100.

    Args:
        split: the classes of train, val and test.
        pickles: patterns of the names of shared pickles, such as ``"FC100_{}.pickle"``.
    """
    return (
        Form("cifar-100-python/ with train, test and meta", partial(_list_official, published=split)),
        Form(pickles[0].format("{train,val,test}"), partial(list_caches, patterns=pickles)),
        Form("data/ with a folder per class", partial(_list_folders, published=split)),
        Form(SPLIT_FOLDERS.title, partial(list_split_folders, group_of=lambda name: GROUP_OF.get(name, ""))),
    )


def download_cifar(root: Path) -> None:
    """Fetch CIFAR-100 where the folder holds nothing but what an earlier download may have left.

    Files that are there are compared with the official checksums, and differences logged.

    Raises:
        DataError: it cannot be fetched.
    """
    from torchvision.datasets import CIFAR100  # slow to import, and seldom needed
    from torchvision.datasets.utils import check_md5

    official = [*CIFAR100.train_list, *CIFAR100.test_list, [CIFAR100.meta["filename"], CIFAR100.meta["md5"]]]
    files = {root / CIFAR100.base_folder / name: md5 for name, md5 in official}
    if all(path.is_file() for path in files):
        for path, md5 in files.items():
            if not check_md5(str(path), md5):
                log.warning("%s is not the official file: accuracies do not compare with published ones", path)
        return
    if root.is_dir() and {path.name for path in root.iterdir()} - {CIFAR100.filename, CIFAR100.base_folder}:
        return
    download("CIFAR-100", root, CIFAR100.url, CIFAR100.tgz_md5, extract=True)


def _list_official(place: Place, published: Split) -> list[ListedClass] | None:
    files = place.folders().get("cifar-100-python", place).files()
    if not all(name in files for name in OFFICIAL):
        return None
    names = _read_names(files["meta"])
    entries: dict[str, list[Entry]] = {name: [] for name in names}
    for part in ("train", "test"):
        for name, images in zip(names, _read_part(files[part], len(names)), strict=True):
            entries[name] += images
    return _split_classes(entries, published)


def _list_folders(place: Place, published: Split) -> list[ListedClass] | None:
    folders = place.folders().get("data", place).folders()
    if not folders.keys() >= GROUP_OF.keys():
        return None
    return _split_classes({name: list_folder("", name, folders[name]).entries for name in GROUP_OF}, published)


def _split_classes(entries: Mapping[str, Sequence[Entry]], published: Split) -> list[ListedClass]:
    return [
        ListedClass(split, name, sorted(entries[name], key=lambda entry: entry.name), GROUP_OF[name])
        for split, names in published.items()
        for name in sorted(names)
    ]


def _read_names(meta: Member) -> list[str]:
    labels = load_dict(meta, "fine_label_names").get("fine_label_names")
    names = [decode_name(name) for name in labels] if isinstance(labels, list) else []
    if set(names) != GROUP_OF.keys() or len(names) != len(GROUP_OF):
        odd = sorted(set(names) ^ GROUP_OF.keys())
        raise DataError(
            f"pickle {meta.name} does not name the {len(GROUP_OF)} classes of CIFAR-100 (it differs in {', '.join(odd[:3])}); "
            "fetch the official archive"
        )
    return names


def _read_part(member: Member, classes: int) -> list[list[Entry]]:
    """For each class its images; they are rows of 3 x 32 x 32 bytes."""
    content = load_dict(member, "data and fine_labels")
    data = content.get("data")
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072:
        raise DataError(
            f"data in {member.name} are not uint8 [n, 3072], so it is not CIFAR-100's; fetch the official archive"
        )
    labels = read_labels(content.get("fine_labels"), len(data), member.name)
    if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        raise DataError(
            f"fine_labels in {member.name} run from {labels.min()} to {labels.max()}, but there are {classes} classes; fetch the "
            "official archive"
        )
    pixels = PixelArray(data.reshape(-1, 3, 32, 32), member.name)
    names = content.get("filenames")
    if not isinstance(names, list) or len(names) != len(data):
        names = [f"{Path(member.name).name}/{number:05d}" for number in range(len(data))]
    return [
        [entry._replace(name=decode_name(names[int(entry.name)])) for entry in enter_rows(pixels, numbers, member)]
        for numbers in (np.flatnonzero(labels == label) for label in range(classes))
    ]
