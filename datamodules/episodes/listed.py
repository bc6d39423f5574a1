"""Data sets that are lists of classes, each with its images: what is packed, and how a source says it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from metalearn.checks import read_path
from metalearn.datamodules.episodes.arguments import FileArguments, ImageArguments, Unpack, select, spell_out
from metalearn.datamodules.episodes.image_episodes import ImageEpisodes
from metalearn.datamodules.sources.forms import Form, find_classes
from metalearn.datamodules.sources.images import ImageSpec
from metalearn.datamodules.sources.listing import SPLITS, ListedClass
from metalearn.datamodules.sources.published import Published
from metalearn.datamodules.store.header import fingerprint
from metalearn.datamodules.store.opening import open_or_pack
from metalearn.datamodules.store.packer import Packer
from metalearn.datamodules.store.packing import read_classes
from metalearn.datamodules.store.store import Contents, ImageStore
from metalearn.errors import DataError

__all__ = ["ListedImages"]


class ListedImages(ImageEpisodes):
    """Episodes of colour images that a source lists.

    A published data set is a declaration: subclasses set ``title``, ``forms``, ``remedy`` and perhaps ``published``. Others
    implement :meth:`list_classes`.

    Args:
        root: the folder or archive.

    Attributes:
        title: what progress and messages call the data set.
        forms: in which ``root`` may hold it; they are tried in this order.
        remedy: what to do where it is in none of them.
        published: what its classes are compared with.
    """

    title: ClassVar[str] = "images"
    forms: ClassVar[tuple[Form, ...]] = ()
    remedy: ClassVar[str] = "set data.root to it"
    published: ClassVar[Published | None] = None

    @spell_out(FileArguments)
    def __init__(self, root: str, **arguments: Unpack[FileArguments]) -> None:
        super().__init__(**select(arguments, ImageArguments))
        self.root = read_path("root", root, "give the folder of the data")
        self.image_spec = ImageSpec(channels=3, size=arguments["image_size"])

    def list_classes(self) -> Sequence[ListedClass]:
        """The classes with their splits; looks at ``root`` and reads no image.

        Raises:
            DataError: ``root`` does not hold the data set.
        """
        listed = find_classes(self.root, self.forms, self.title, self.remedy)
        if self.published is not None:
            self.published.compare(f"{self.title} in {self.root}", listed)
        return listed

    def open_store(self, verify: bool) -> ImageStore:
        listed = self.list_classes()
        _check_names(self.root, listed)
        spec = self.packed_spec
        names, groups = [cls.name for cls in listed], [cls.group for cls in listed]
        meta = {"splits": [cls.split for cls in listed]}
        counts = np.asarray([len(cls.entries) for cls in listed], np.int64)
        self.check_contents(Contents(names, counts, groups, meta))
        entries = ((cls.split, cls.name, entry.name, *entry.stamp) for cls in listed for entry in cls.entries)
        source = fingerprint([spec, self.options.skip_broken, *groups, *entries])

        def pack(packer: Packer) -> dict[str, Any]:
            readers = [(cls.name, [(entry.name, partial(entry.read, spec)) for entry in cls.entries]) for cls in listed]
            read = read_classes(readers, f"packing {self.title}", self.options.skip_broken)
            for cls, (images, image_names) in zip(listed, read, strict=True):
                packer.add(cls.name, images, cls.group, image_names)
            return meta

        key = f"{self.title.lower()}-{spec.size}-{fingerprint([self.root.resolve(), spec])}"
        return open_or_pack(key, source, (spec.channels, spec.size, spec.size), pack, self.cache_dir, verify)

    def split_classes(self, store: ImageStore | Contents) -> dict[str, np.ndarray]:
        splits = np.asarray(store.meta["splits"])
        return {split: np.flatnonzero(splits == split) for split in SPLITS}


def _check_names(root: Path, listed: Sequence[ListedClass]) -> None:
    """Raise where a name is not UTF-8, as tables of tasks are."""
    for cls in listed:
        for name in (cls.name, cls.group, *(entry.name for entry in cls.entries)):
            try:
                name.encode()
            except UnicodeEncodeError:
                raise DataError(
                    f"{root} holds {name!r}, a name that is not UTF-8, as tables of tasks are; rename it"
                ) from None
