"""Data sets that are lists of classes, each with its images: what is packed, and how a source says it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from metalearn.datamodules.episodes.image_episodes import ImageEpisodes
from metalearn.datamodules.sources.listing import SPLITS, ListedClass
from metalearn.datamodules.store.packing import read_classes
from metalearn.datamodules.store.store import Contents, ImageStore, Packer, fingerprint, open_or_pack
from metalearn.errors import DataError

__all__ = ["ListedImages"]


class ListedImages(ImageEpisodes):
    """Episodes of images that a source lists. Subclasses set ``root`` and ``image_spec`` and implement :meth:`list_classes`."""

    title: ClassVar[str] = "images"
    """What progress and messages call the data set."""
    root: Path

    def list_classes(self) -> Sequence[ListedClass]:
        """The classes with their splits; looks at ``root`` and reads no image.

        Raises:
            DataError: ``root`` does not hold the data set.
        """
        raise NotImplementedError(f"{type(self).__name__} must list its classes")

    def open_store(self, verify: bool) -> ImageStore:
        listed = self.list_classes()
        for text in (
            text for found in listed for text in (found.name, found.group, *(entry.name for entry in found.entries))
        ):
            if not _is_text(text):
                raise DataError(
                    f"{self.root} holds {text!r}, a name that is not UTF-8, as tables of tasks are; rename it"
                )
        spec = self.packed_spec
        names, groups = [found.name for found in listed], [found.group for found in listed]
        meta = {"splits": [found.split for found in listed]}
        counts = np.asarray([len(found.entries) for found in listed], np.int64)
        self.check_contents(Contents(names, counts, groups, meta))
        entries = ((found.split, found.name, entry.name, *entry.stamp) for found in listed for entry in found.entries)
        source = fingerprint([spec, self.options.skip_broken, *groups, *entries])

        def pack(packer: Packer) -> dict[str, Any]:
            readers = [
                (found.name, [(entry.name, partial(entry.read, spec)) for entry in found.entries]) for found in listed
            ]
            read = read_classes(readers, f"packing {self.title}", self.options.skip_broken)
            for found, (images, image_names) in zip(listed, read, strict=True):
                packer.add(found.name, images, found.group, image_names)
            return meta

        key = f"{self.title.lower()}-{spec.size}-{fingerprint([self.root.resolve(), spec])}"
        return open_or_pack(key, source, (spec.channels, spec.size, spec.size), pack, self.cache_dir, verify)

    def split_classes(self, store: ImageStore | Contents) -> dict[str, np.ndarray]:
        splits = np.asarray(store.meta["splits"])
        return {split: np.flatnonzero(splits == split) for split in SPLITS}


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
