"""Glyphs: letters rendered from the DejaVu fonts that matplotlib ships. Real few-shot recognition, and no download."""

from __future__ import annotations

import unicodedata
from typing import Any

import numpy as np
import torch

from metalearn.checks import check_whole
from metalearn.datamodules.episodes.arguments import ImageArguments, Unpack, spell_out
from metalearn.datamodules.episodes.image_episodes import ImageEpisodes
from metalearn.datamodules.sources.images import ImageSpec
from metalearn.datamodules.sources.letters import FACES, RECIPE, SCRIPTS, SIZE, distort, draw_letters, find_script
from metalearn.datamodules.store.header import fingerprint
from metalearn.datamodules.store.opening import open_or_pack
from metalearn.datamodules.store.packer import Packer
from metalearn.datamodules.store.store import Contents, ImageStore
from metalearn.errors import ConfigError
from metalearn.progress import follow

__all__ = ["GlyphsDataModule"]


class GlyphsDataModule(ImageEpisodes):
    """Few-shot episodes of letters: train on Latin and Greek, validate on Cyrillic, test on Armenian and Georgian.

    A class is a letter; its images are its 12 faces, each in ``variants`` random distortions: rotation within 15 degrees,
    scale 0.85 to 1.15, shear within 0.15, shift within 2 pixels. Letters whose drawings are the same, at any size (Latin
    A, Greek Alpha and Cyrillic A), are one class, which belongs to the earliest of the splits that it occurs in. Nothing
    depends on the seed but which episodes are drawn.

    Args:
        variants: how many distorted variants each face of a letter has.
        options: further options of episodes; the groups of classes are the scripts.

    Raises:
        ConfigError: an argument is out of range for this data.
        DataError: the cache cannot be written.

    Example:
        >>> from metalearn.datamodules import GlyphsDataModule
        >>> data = GlyphsDataModule(ways=5, shots=1, queries=15)
        >>> task = data.episode(seed=0, split="test", index=0)
        >>> task.support.x.shape, task.query.x.shape
        (torch.Size([5, 1, 28, 28]), torch.Size([75, 1, 28, 28]))
    """

    @spell_out(ImageArguments, tasks_per_batch=16, train_tasks=1600)
    def __init__(self, *, variants: int = 4, **arguments: Unpack[ImageArguments]) -> None:
        super().__init__(**arguments)
        check_whole("variants", variants, 1, remedy="use variants=4")
        most = len(FACES) * variants
        if self.recipe.most > most:
            raise ConfigError(
                f"shots + queries is {self.recipe.shots[1]} + {self.recipe.queries[1]} = {self.recipe.most}, but class A, like "
                f"every letter, has {most} images: {len(FACES)} faces in {variants} variants; use at most {most} together, or "
                "raise variants"
            )
        self.variants = variants
        self.image_spec = ImageSpec(channels=1, size=SIZE, invert=True)

    def open_store(self, verify: bool) -> ImageStore:
        import matplotlib

        source = fingerprint([matplotlib.__version__, unicodedata.unidata_version, self.variants, RECIPE])

        def pack(packer: Packer) -> dict[str, Any]:
            letters = draw_letters()
            counts = np.full(len(letters.names), len(FACES) * self.variants)
            groups = [find_script(letter) for letter in letters.names]
            self.check_contents(Contents(letters.names, counts, groups, {"splits": letters.splits}))
            generator = torch.Generator().manual_seed(RECIPE)
            images = [f"{face}.{variant}" for face in FACES for variant in range(self.variants)]
            parts = list(zip(letters.names, groups, letters.drawings, strict=True))
            for name, group, drawings in follow(parts, "drawing Glyphs"):
                packer.add(name, distort(drawings, self.variants, generator), group, images)
            return {"splits": letters.splits}

        key = f"glyphs-{self.variants}-{source[:8]}"
        return open_or_pack(key, source, (1, SIZE, SIZE), pack, self.cache_dir, verify)

    def split_classes(self, store: ImageStore | Contents) -> dict[str, np.ndarray]:
        splits = np.asarray(store.meta["splits"])
        return {split: np.flatnonzero(splits == split) for split in SCRIPTS}
