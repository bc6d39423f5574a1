"""Episodes of features: what a frozen encoder makes of the examples of another data module, computed once and kept."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from metalearn.checks import check_kind, check_whole
from metalearn.datamodules.episodes.arguments import check_cache
from metalearn.datamodules.episodes.classes import ClassEpisodes, Pool
from metalearn.datamodules.episodes.encoding import Encoder
from metalearn.datamodules.episodes.options import refuse_image_options
from metalearn.datamodules.episodes.remainder import take_remainder
from metalearn.datamodules.store.header import fingerprint
from metalearn.datamodules.store.rows import RowClass, open_rows, view_rows
from metalearn.datamodules.store.store import ImageStore
from metalearn.errors import ConfigError
from metalearn.progress import Progress

__all__ = ["FeatureEpisodes"]

TRIED = 8
"""Examples that show whether a network can be taken apart."""

log = logging.getLogger("lightning.pytorch.datamodules")  # below Lightning's, which shows what is said of a run


class FeatureEpisodes(ClassEpisodes):
    """The episodes of another data module, with the features of a frozen encoder in the place of its examples.

    Classes, examples, splits, ways, shots and tasks are those of ``data``. Each example is encoded once, in ``eval()``, and its
    features are kept in the cache. A checksum of the encoder's weights and of the examples says whether they are kept
    already. Tasks are then drawn at thousands a second. Train a head on them: ``ANIL(MLP(inputs=F, outputs=N, hidden=[]))``.

    Args:
        data: whose examples are encoded: images, arrays or sequences with a class each. Turned classes
            (``options.rotations``) and augmented images are no examples of it.
        encoder: a network that takes its examples. It is only read.
        layer: the submodule whose inputs are the features. ``None`` for ``head`` where the encoder has one, else for the
            encoder's outputs.
        batch_size: how many examples are encoded at once.
        device: where they are encoded, such as ``cuda``.
        cache_dir: where features are kept; ``None`` for METALEARN_CACHE or the user's cache folder.

    Attributes:
        width: how many features an example has, ``F``; after ``setup``.
        shape: the shape of an example's features: ``(F,)``, or ``(C, H, W)`` of a map.

    Shape:
        ``x`` ``[B, n, F]`` float32, or ``[B, n, C, H, W]`` where ``layer`` gets maps, and ``y`` ``[B, n]`` int64.

    Raises:
        ConfigError: an argument is out of range, or the encoder cannot take the examples.

    Example:
        >>> import numpy as np
        >>> from metalearn import MLP
        >>> from metalearn.datamodules import ArrayEpisodes, FeatureEpisodes
        >>> x, y = np.random.rand(400, 8), np.repeat(np.arange(20), 20)  # 20 classes of 20 rows
        >>> data = ArrayEpisodes(x, y, ways=3, shots=2, queries=5)
        >>> features = FeatureEpisodes(data, MLP(inputs=8, outputs=5, hidden=[16]))
        >>> features.episode(seed=0, split="train", index=0).support.x.shape
        torch.Size([6, 16])
    """

    def __init__(
        self,
        data: ClassEpisodes,
        encoder: nn.Module,
        layer: str | None = None,
        batch_size: int = 256,
        device: str = "cpu",
        cache_dir: str | None = None,
    ) -> None:
        check_kind("data", data, ClassEpisodes, "use for example OmniglotDataModule")
        check_kind("encoder", encoder, nn.Module, "use a network, such as Torchvision('resnet18')")
        check_whole("batch_size", batch_size, 1, remedy="use 256")
        check_cache("cache_dir", cache_dir)
        refuse_image_options(data.options, "features", ("rotations", "augment"))
        tasks = data.tasks
        super().__init__(
            tasks_per_batch=data.tasks_per_batch, train_tasks=tasks["train"], val_tasks=tasks["val"],
            test_tasks=tasks["test"], seed=data.seed, train_seed=data.train_seed, num_workers=data.num_workers,
            ways=data.ways, shots=data.shots, queries=data.queries, options=data.options,
        )  # fmt: skip
        self.data, self.cache_dir = data, cache_dir
        self._encoder = Encoder(encoder, layer, batch_size, device)
        self._store: ImageStore | None = None
        self._shape: tuple[int, ...] = ()

    @property
    def meant_empty(self) -> set[str]:
        return self.data.meant_empty

    @property
    def splits_are_chosen(self) -> bool:
        return self.data.splits_are_chosen

    @property
    def width(self) -> int:
        """How many features an example has, ``F``."""
        return math.prod(self.shape)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of an example's features."""
        self.ready()
        return self._shape

    def remaining_network(self) -> nn.Module:
        """A copy of the encoder from ``layer`` on: features in, the encoder's outputs out. The names of its layers stay.

        With it the end of a network is trained on the features of its beginning: ``MAML(data.remaining_network(),
        adapter=LoRA(rank=4, targets="layer4"))``.

        Raises:
            ConfigError: the features are the encoder's outputs; or after ``layer`` the encoder does more than run its layers in
                their order, as a float64 trial shows.
        """
        self.ready()
        if self._encoder.layer is None:
            raise ConfigError(
                "layer is None, and the encoder has no head, so its outputs are the features and nothing remains; set layer to "
                "the first layer that is to be trained"
            )
        total = int(self.data.pool.counts.sum())
        examples = self.data.take(np.unique(np.linspace(0, total - 1, TRIED).astype(np.int64)), None)
        return take_remainder(self._encoder.network, self._encoder.layer, examples)

    def example_names(self, number: int) -> list[str] | None:
        return self.data.example_names(number)

    def prepare_data(self) -> None:
        """Prepare the examples, and encode them if they are not."""
        self.data.prepare_data()
        self.data.setup()
        self._open().verify()

    def open_pool(self) -> tuple[Pool, dict[str, np.ndarray]]:
        self.data.setup()
        self._store = self._open()
        return self.data.pool, self.data.splits

    def take(self, rows: np.ndarray, turns: np.ndarray | None) -> Tensor:
        assert self._store is not None
        features = np.take(view_rows(self._store, np.float32), rows, axis=0)
        return torch.from_numpy(features.reshape(*rows.shape, *self._shape))

    def _open(self) -> ImageStore:
        pool, kind = self.data.pool, type(self.data).__name__
        total = int(pool.counts.sum())
        if not total:
            raise ConfigError(f"data has no examples, but features are made of them; give {kind} some")
        checksum = self._encoder.checksum()
        self._shape = self._encoder.measure(self.data.take(np.arange(min(2, total)), None))
        width = math.prod(self._shape)
        source = fingerprint([checksum, self._identify(), width])

        def encode() -> Iterator[RowClass]:
            log.info(
                "%s: the encoder or the examples are new, so the features of %d examples are computed", kind, total
            )
            with Progress(f"encoding {kind}", total) as progress:
                for name, begin, count, group in zip(pool.names, pool.offsets, pool.counts, pool.groups, strict=True):
                    rows = np.arange(begin, begin + count)
                    parts = np.array_split(rows, max(1, -(-len(rows) // self._encoder.batch_size)))
                    encoded = []
                    for part in parts:
                        encoded.append(self._encoder.encode(self.data.take(part, None)))
                        progress.advance(len(part))
                    yield name, np.concatenate(encoded).reshape(count, width), group

        return open_rows(f"features-{width}-{source[:8]}", source, width, np.float32, encode, self.cache_dir)

    def _identify(self) -> str:
        """A checksum of the examples: of each store's own where they are packed, else of all values."""
        pool = self.data.pool
        known = self.data.identify_examples()
        digest = hashlib.sha256(repr((pool.names, pool.counts.tolist(), known)).encode())
        total = 0 if known is not None else int(pool.counts.sum())
        for begin in range(0, total, 4096):
            digest.update(self.data.take(np.arange(begin, min(total, begin + 4096)), None).numpy().tobytes())
        return digest.hexdigest()
