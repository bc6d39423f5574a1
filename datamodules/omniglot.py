"""Omniglot (Lake et al. 2015): 1,623 handwritten characters, 20 drawings of each."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any, Literal, get_args

import numpy as np

from metalearn.checks import check_choice, read_path
from metalearn.datamodules.episodes.arguments import FileArguments, ImageArguments, Unpack, select, spell_out
from metalearn.datamodules.episodes.image_episodes import ImageEpisodes
from metalearn.datamodules.episodes.splits import split_by_hash
from metalearn.datamodules.sources.images import ImageSpec
from metalearn.datamodules.sources.listing import SPLITS
from metalearn.datamodules.sources.omniglot_files import CHARACTERS, PARTS, download_missing, list_drawings
from metalearn.datamodules.store.header import fingerprint
from metalearn.datamodules.store.opening import open_or_pack
from metalearn.datamodules.store.packer import Packer
from metalearn.datamodules.store.packing import read_classes
from metalearn.datamodules.store.store import Contents, ImageStore
from metalearn.errors import ConfigError

__all__ = ["OmniglotDataModule"]

log = logging.getLogger(__name__)

ROTATIONS = 4
VALIDATION_PART = 1 / 6
"""Of the background alphabets, those that are for validation where alphabets are split."""

SplitBy = Literal["characters", "alphabets"]


class OmniglotDataModule(ImageEpisodes):
    """Few-shot episodes of Omniglot: 1,200 characters for training, 100 for validation, 323 for test.

    This split orders characters by a hash of their names: it is a constant, whatever the seed. With ``split="alphabets"`` the
    parts are those of Lake et al. 2015: the 20 alphabets of ``images_evaluation`` are the test's, and five of the 30 of
    ``images_background``, chosen by a hash of their names, are for validation. With ``rotations``,
    the training characters turned by 90, 180 and 270 degrees are classes of their own (4,800 in all), as is the custom since
    Santoro et al. 2016. Strokes are 1, paper is 0.

    Args:
        root: the folder that holds ``images_background.zip`` and ``images_evaluation.zip``, or their extracted trees,
            directly or in ``omniglot-py/``. What is missing is downloaded to it.
        queries: query images a class, ``Q``, or the least and the most; ``K + Q`` is at most 20.
        rotations: add the rotated training characters.
        download: fetch what is missing.
        split: what is split, ``"characters"`` or ``"alphabets"``.
        options: further options of episodes; the groups of classes are the alphabets, and each alphabet turned is another.

    Raises:
        ConfigError: an argument is out of range for this data.
        DataError: an archive is missing, truncated or foreign, a character or a drawing is missing, or the cache cannot be
            written.

    Example:
        >>> from metalearn.datamodules import OmniglotDataModule
        >>> data = OmniglotDataModule("data/omniglot", ways=20, shots=1, queries=5)
        >>> data.image_spec.channels, data.image_spec.size
        (1, 28)
    """

    @spell_out(FileArguments, tasks_per_batch=16, train_tasks=4000, image_size=28)
    def __init__(
        self,
        root: str = "data/omniglot",
        *,
        rotations: bool = True,
        download: bool = True,
        split: SplitBy = "characters",
        **arguments: Unpack[FileArguments],
    ) -> None:
        super().__init__(**select(arguments, ImageArguments))
        if self.options.rotations:
            raise ConfigError("options.rotations is true, but Omniglot has its own argument for it; use rotations=True")
        self.root = read_path("root", root, "give the folder of the data")
        check_choice("split", split, get_args(SplitBy))
        self.split = split
        self.rotations = rotations
        self.download = download
        self.image_spec = ImageSpec(channels=1, size=arguments["image_size"], invert=True)

    def prepare_data(self) -> None:
        """Download what is missing, pack the images, and check the result."""
        if self.download:
            download_missing(self.root)
        super().prepare_data()

    def open_store(self, verify: bool) -> ImageStore:
        drawings = list_drawings(self.root)
        self._background = {
            n.partition("/")[0] for n, (first, *_) in drawings.items() if first.name.startswith(PARTS[0])
        }
        spec = self.packed_spec
        names = sorted(drawings)
        if len(names) != CHARACTERS:
            log.warning("Omniglot has %d of its %d characters here: accuracies do not compare", len(names), CHARACTERS)
        turned = [f"{name}@{90 * turns}" for name in names for turns in range(ROTATIONS)]
        counts = np.repeat([len(drawings[name]) for name in names], ROTATIONS)
        groups = [name.partition("/")[0] for name in turned]
        self.check_contents(Contents(turned, counts, groups, {}))
        stamps = {name: [(entry.name, *entry.stamp) for entry in drawings[name]] for name in names}
        source = fingerprint([spec, self.options.skip_broken, *((name, *stamps[name]) for name in names)])

        def pack(packer: Packer) -> dict[str, Any]:
            readers = [
                (name, [(entry.name.rpartition("/")[2], partial(entry.read, spec)) for entry in drawings[name]])
                for name in names
            ]
            read = read_classes(readers, "packing Omniglot", self.options.skip_broken)
            for name, (images, image_names) in zip(names, read, strict=True):
                for turns in range(ROTATIONS):
                    turned = np.rot90(images, turns, (2, 3))
                    packer.add(f"{name}@{90 * turns}", turned, name.partition("/")[0], image_names)
            return {}

        key = f"omniglot-{spec.size}-{source[:8]}"
        return open_or_pack(key, source, (1, spec.size, spec.size), pack, self.cache_dir, verify)

    def split_classes(self, store: ImageStore | Contents) -> dict[str, np.ndarray]:
        names = [name.removesuffix("@0") for name in store.names[::ROTATIONS]]
        if self.split == "alphabets":
            split = self._split_alphabets([name.partition("/")[0] for name in names])
        else:
            split = split_by_hash(names, (1200, 100, 323) if len(names) == CHARACTERS else (0.74, 0.06, 0.2))
        upright = {part: ROTATIONS * characters for part, characters in split.items()}
        if self.rotations:
            upright["train"] = (upright["train"][:, None] + np.arange(ROTATIONS)).reshape(-1)
        return upright

    def find_turns(self, classes: np.ndarray) -> np.ndarray:
        return classes % ROTATIONS

    def _split_alphabets(self, alphabets: list[str]) -> dict[str, np.ndarray]:
        """The positions of the characters of each part, whose alphabets are given."""
        background = sorted(self._background)
        count = max(1, round(VALIDATION_PART * len(background)))
        parts = split_by_hash(background, (len(background) - count, count, 0))
        held_out = {background[position] for position in parts["val"]}
        part_of = {name: "val" if name in held_out else "train" for name in background}
        return {
            part: np.asarray([n for n, name in enumerate(alphabets) if part_of.get(name, "test") == part], np.int64)
            for part in SPLITS
        }
