"""Image completion: each task is one image, of which a few pixels are known."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import fields

import numpy as np
import torch
from torch import Tensor

from metalearn.checks import check_kind, check_whole
from metalearn.datamodules.episodes.arguments import LoaderArguments, Unpack, spell_out
from metalearn.datamodules.episodes.base import EpisodicDataModule
from metalearn.datamodules.episodes.image_episodes import ImageEpisodes
from metalearn.datamodules.episodes.options import EpisodeOptions
from metalearn.datamodules.episodes.randomness import draw_words
from metalearn.datamodules.sources.listing import SPLITS
from metalearn.episode import Batch, Episode
from metalearn.errors import ConfigError, DataError

__all__ = ["ImageCompletionEpisodes"]

KEPT = ("skip_broken",)
"""Options of episodes that concern the images themselves."""


class ImageCompletionEpisodes(EpisodicDataModule):
    """Few-shot regression of images: from the places of pixels to their colours (Garnelo et al. 2018).

    A task is one image. Its support set are ``shots`` of its pixels, drawn at random; its queries are the other pixels. An input
    is the row and the column of a pixel, in -1..1. A target is its grey value or its red, green and blue, in 0..1. Images of
    training, validation and test are those of the classes of ``images``, so test images show classes that are new.

    Args:
        images: a data module of images, such as that of miniImageNet. Its ``image_size`` says how many pixels a task has.
            What it says of ways, shots, queries and numbers of tasks is not used.
        shots: how many pixels of an image are known, ``K``.
        train_queries: how many of the other pixels a training task asks for; ``None`` for all. Validation and test ask for all.

    Shape:
        ``x`` ``[B, n, 2]`` and ``y`` ``[B, n, C]``, float32, with ``C`` channels.

    Raises:
        ConfigError: an argument is out of range for these images.
        DataError: the images cannot be read.

    Example:
        >>> from metalearn.datamodules import GlyphsDataModule, ImageCompletionEpisodes
        >>> data = ImageCompletionEpisodes(GlyphsDataModule(), shots=50)  # of 28 x 28 pixels
        >>> task = data.episode(seed=0, split="test", index=0)
        >>> task.support.x.shape, task.support.y.shape, task.query.y.shape
        (torch.Size([50, 2]), torch.Size([50, 1]), torch.Size([734, 1]))
    """

    @spell_out(LoaderArguments, tasks_per_batch=16, train_tasks=16000, val_tasks=100)
    def __init__(
        self,
        images: ImageEpisodes,
        shots: int = 100,
        train_queries: int | None = None,
        **arguments: Unpack[LoaderArguments],
    ) -> None:
        super().__init__(**arguments)
        check_kind("images", images, ImageEpisodes, "use for example MiniImageNetDataModule")
        _refuse_options(images.options)
        assert images.image_spec is not None
        self.pixels = images.image_spec.size**2
        check_whole("shots", shots, 1, self.pixels - 1, f"use {min(100, self.pixels - 1)}")
        if train_queries is not None:
            check_whole("train_queries", train_queries, 1, self.pixels - shots, "leave it out for all")
        self.images, self.shots, self.train_queries = images, shots, train_queries
        self._rows: dict[str, np.ndarray] | None = None

    def prepare_data(self) -> None:
        """Pack the images, if they are not, and check the result."""
        with _naming_the_images():
            self.images.open_anyhow()
            self.images.prepare_data()

    def setup(self, stage: str | None = None) -> None:
        """Open the images."""
        if self._rows is not None:
            return
        with _naming_the_images():
            self.images.open_anyhow()
        pool, splits = self.images.pool, self.images.splits
        rows = {
            split: [np.arange(pool.counts[number]) + pool.offsets[number] for number in splits[split]]
            for split in SPLITS
        }
        self._rows = {split: np.concatenate([np.zeros(0, np.int64), *parts]) for split, parts in rows.items()}
        if stage == "fit" and not len(self._rows["train"]):
            raise ConfigError("splits leaves train without classes, but a fit needs some; name classes for train")

    def ready(self) -> None:
        self.setup()

    def has_classes(self, split: str) -> bool:
        self.ready()
        assert self._rows is not None
        return len(self._rows[split]) > 0

    def draw(self, seed: int, split: str, indices: list[int]) -> Episode:
        self.ready()
        assert self._rows is not None
        rows = self._rows[split]
        words = draw_words(seed, split, np.asarray(indices, np.int64), 1 + self.pixels)
        images = self.images.take_pixels(rows[(words[:, 0] % np.uint64(len(rows))).astype(np.int64)])
        order = torch.from_numpy(np.argsort(words[:, 1:], axis=1, kind="stable"))
        colours = torch.from_numpy(images).flatten(2).transpose(1, 2).float() / 255
        x, y = (
            values.gather(1, order[..., None].expand(-1, -1, values.shape[-1]))
            for values in (_list_places(images.shape[-2:]).expand(len(indices), -1, -1), colours)
        )
        asked = self.train_queries if split == "train" and self.train_queries is not None else self.pixels - self.shots
        known, other = slice(0, self.shots), slice(self.shots, self.shots + asked)
        return Episode(*(Batch(x[:, part].contiguous(), y[:, part].contiguous()) for part in (known, other)))


def _list_places(shape: tuple[int, int]) -> Tensor:
    """The rows and columns ``[H W, 2]`` of all pixels, in -1..1."""
    return torch.cartesian_prod(*(torch.linspace(-1, 1, size) for size in shape))


@contextlib.contextmanager
def _naming_the_images() -> Iterator[None]:
    """Have messages call the options of the images what they are called here."""
    try:
        yield
    except DataError as error:
        raise DataError(str(error).replace("set data.root", "set data.images.root")) from error


def _refuse_options(options: EpisodeOptions) -> None:
    """Raise if classes or colours would be changed for tasks that have neither."""
    default = EpisodeOptions()
    for field in fields(EpisodeOptions):
        if field.name not in KEPT and getattr(options, field.name) != getattr(default, field.name):
            raise ConfigError(
                f"images.options.{field.name} is given, but tasks of image completion have one whole image and no classes; "
                "leave it out"
            )
