"""A folder of images per class: people's own data."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from metalearn.datamodules.episodes.arguments import FileArguments, Unpack, spell_out
from metalearn.datamodules.episodes.listed import ListedImages
from metalearn.datamodules.episodes.splits import ClassSplit, assign_splits
from metalearn.datamodules.sources.folders import find_split_folders, list_images
from metalearn.datamodules.sources.images import ImageSpec
from metalearn.datamodules.sources.listing import SPLITS, ListedClass, check_classes, enter_file
from metalearn.datamodules.sources.tables import read_label_table
from metalearn.errors import ConfigError, DataError

__all__ = ["ImageFolderEpisodes"]


class ImageFolderEpisodes(ListedImages):
    """Episodes from ``root/{train,val,test}/CLASS/*``, from ``root/CLASS/*``, or from a table of files and their classes.

    Args:
        root: the folder that holds the images.
        channels: how many channels an image is read with: 1 (grey) or 3 (colour).
        invert: whether dark ink on light paper becomes bright ink on black.
        labels: a CSV file with the columns ``filename,label``, and perhaps ``split`` and ``group``, whose file names
            are below ``root``; ``None`` for a folder per class.
        splits: how classes are split where neither folders nor table say it: the classes of ``train``, ``val`` and
            ``test`` by name, or three fractions. Fractions cut the classes in the order of a hash of their names, which
            is the same on every machine.

    Raises:
        ConfigError: an argument is out of range for this data.
        DataError: the folder or the table is missing or holds too little, or an image cannot be read.

    Example:
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from metalearn.datamodules import ImageFolderEpisodes
        >>> for number in range(20):
        ...     Path(f"photos/kind{number}").mkdir(parents=True)
        ...     for shade in range(4):
        ...         Image.new("L", (20, 20), 10 * number + shade).save(f"photos/kind{number}/{shade}.png")
        >>> data = ImageFolderEpisodes("photos", ways=2, shots=1, queries=3, image_size=28, channels=1)
        >>> data.episode(seed=0, split="test", index=0).query.x.shape
        torch.Size([6, 1, 28, 28])
    """

    @spell_out(FileArguments)
    def __init__(
        self,
        root: str,
        *,
        channels: int = 3,
        invert: bool = False,
        labels: str | None = None,
        splits: ClassSplit = (0.64, 0.16, 0.2),
        **arguments: Unpack[FileArguments],
    ) -> None:
        super().__init__(root, **arguments)
        if channels not in (1, 3):
            raise ConfigError(f"channels is {channels!r}, but images are grey (1) or coloured (3); use channels=3")
        self.title = re.sub(r"[^\w.-]", "_", self.root.resolve().name, flags=re.ASCII)[:60] or "images"
        self.labels = labels
        self.splits_by: ClassSplit = splits
        self._empty: set[str] | None = None
        self.image_spec = ImageSpec(channels=channels, size=arguments["image_size"], invert=invert)

    @property
    def meant_empty(self) -> set[str]:
        return super().meant_empty if self._empty is None else self._empty

    @property
    def splits_are_chosen(self) -> bool:
        return self._empty is None

    def list_classes(self) -> Sequence[ListedClass]:
        if not self.root.is_dir():
            raise DataError(
                f"root {self.root} is not a folder; set data.root to the folder that holds a folder per class"
            )
        if self.labels is not None:
            listed = read_label_table(Path(self.labels), self.root)
        elif present := find_split_folders(self.root):
            listed = [
                ListedClass(split, name, [enter_file(file) for file in files])
                for split in present
                for name, files in list_images(self.root / split).items()
            ]
        else:
            classes = list_images(self.root)
            listed = [ListedClass("", name, [enter_file(file) for file in files]) for name, files in classes.items()]
        if not listed:
            raise DataError(f"root {self.root} holds no images; it must hold a folder of images per class")
        if all(listed_class.split for listed_class in listed):
            self._empty = set(SPLITS) - {listed_class.split for listed_class in listed}
            return check_classes(listed, str(self.root), whole=False)
        split = assign_splits([listed_class.name for listed_class in listed], self.splits_by)
        return [cls._replace(split=split[cls.name]) for cls in listed if cls.name in split]
