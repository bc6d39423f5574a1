"""Episodes of images out of a packed store."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from metalearn.datamodules.episodes.arguments import ClassArguments, ImageArguments, Unpack, select, spell_out
from metalearn.datamodules.episodes.augmentation import HOOKS, augment_tasks, seed_tasks
from metalearn.datamodules.episodes.classes import ClassEpisodes, Pool
from metalearn.datamodules.episodes.likeness import Statistics, describe_images
from metalearn.datamodules.sources.images import ImageSpec, to_float
from metalearn.datamodules.store.store import Contents, ImageStore
from metalearn.errors import ConfigError

__all__ = ["ImageEpisodes"]


class ImageEpisodes(ClassEpisodes):
    """Episodes of images out of an :class:`ImageStore`. Subclasses implement :meth:`open_store` and :meth:`split_classes`.

    Example:
        >>> from metalearn.datamodules import GlyphsDataModule, ImageEpisodes
        >>> data = GlyphsDataModule()
        >>> isinstance(data, ImageEpisodes), data.image_spec.size
        (True, 28)
    """

    @spell_out(ImageArguments, last=("num_workers", "cache_dir", "options", "train_seed"))
    def __init__(self, **arguments: Unpack[ImageArguments]) -> None:
        super().__init__(**select(arguments, ClassArguments))
        self.cache_dir = arguments["cache_dir"]
        self._store: ImageStore | None = None
        self._statistics: Statistics | None = None
        self._seeds: list[int] | None = None
        if (
            self.options.augment
        ):  # only then, for Lightning lets hooks of a data module displace those of a LightningModule
            for hook, own in zip(HOOKS, (self._choose_seeds, self._augment), strict=True):
                setattr(self, hook, own)

    image_spec: ImageSpec | None

    def open_store(self, verify: bool) -> ImageStore:
        """Open the packed images, packing them first if need be: after :meth:`check_contents`, for packing may take long."""
        raise NotImplementedError(f"{type(self).__name__} must open its store")

    def split_classes(self, store: ImageStore | Contents) -> dict[str, np.ndarray]:
        """For each split, the numbers of its classes in the store."""
        raise NotImplementedError(f"{type(self).__name__} must split its classes")

    @property
    def store(self) -> ImageStore:
        """The packed images."""
        self.ready()
        assert self._store is not None
        return self._store

    def prepare_data(self) -> None:
        """Pack the images, if they are not, and check the result."""
        self.check_contents(self.open_store(verify=True))

    def open_pool(self) -> tuple[Pool, dict[str, np.ndarray]]:
        store = self.open_store(verify=False)
        splits = self.split_classes(store)
        if self.options.normalize:
            if not len(splits["train"]):
                raise ConfigError(
                    "options.normalize is true, but splits leaves train, whose statistics it takes, without classes; leave it out"
                )
            assert self.image_spec is not None
            mean, std = store.statistics(splits["train"])
            self.image_spec = replace(self.image_spec, mean=mean, std=std)
        self._store = store
        return Pool(store.names, store.counts, store.offsets, store.groups), splits

    def identify_examples(self) -> str | None:
        return f"{self.store.source} {self.image_spec}"

    def check_contents(self, store: ImageStore | Contents) -> None:
        """As :meth:`check`, of what a store holds or will hold."""
        self.check(Pool.of(store.names, store.counts, store.groups), self.split_classes(store))

    @property
    def packed_spec(self) -> ImageSpec:
        """How images are read when they are packed, before any normalisation."""
        assert self.image_spec is not None
        return replace(self.image_spec, mean=(0.0,), std=(1.0,))

    def image_statistics(self) -> Statistics:
        """Plain numbers of up to 200 training images, as they are packed, for checkpoints; from the same images every time."""
        if self._statistics is None:
            classes, pool = self.splits["train"], self.pool
            chosen = classes[:: max(1, len(classes) // 100)][:100]
            rows = [pool.offsets[number] + np.unique([0, pool.counts[number] // 2]) for number in chosen]
            self._statistics = describe_images(np.take(self.store.images, np.concatenate(rows), axis=0))
        return self._statistics

    def example_names(self, number: int) -> list[str] | None:
        assert self._store is not None
        return self._store.image_names(number)

    def take(self, rows: np.ndarray, turns: np.ndarray | None) -> Tensor:
        assert self.image_spec is not None
        return to_float(self.take_pixels(rows, turns), self.image_spec)

    def take_pixels(self, rows: np.ndarray, turns: np.ndarray | None = None) -> np.ndarray:
        """The uint8 images ``[..., C, H, W]`` with these numbers: one gather."""
        assert self._store is not None
        images = np.take(self._store.images, rows, axis=0)
        for turn in () if turns is None else (1, 2, 3):
            images[turns == turn] = np.rot90(images[turns == turn], turn, (-2, -1))
        return images

    def gather(self, seed: int, split: str, indices: np.ndarray) -> np.ndarray:
        """The uint8 images ``[B, N, K + Q, C, H, W]`` of the tasks with these numbers, all of one shape."""
        rows, turns = self.gather_rows(seed, split, indices)
        return self.take_pixels(rows, None if turns is None else np.repeat(turns[..., None], rows.shape[-1], -1))

    def _choose_seeds(self, batch: Any, dataloader_idx: int) -> Any:
        """Choose the seeds of the augmentation, from the tasks themselves."""
        trains = self.trainer is not None and self.trainer.training
        self._seeds = seed_tasks(batch) if trains else None
        return batch

    def _augment(self, batch: Any, dataloader_idx: int) -> Any:
        """Augment the training images, on their device."""
        if self._seeds is None:
            return batch
        assert self.image_spec is not None
        seeds, self._seeds = self._seeds, None
        return augment_tasks(batch, self.options.augment, seeds, self.image_spec)
