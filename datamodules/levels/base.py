"""Data of bilevel problems: the inner loss has its examples, the outer loss others, and each estimator term its own batches."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import torch
from torch import Tensor

from metalearn.checks import check_kind, check_seed, check_whole
from metalearn.datamodules.episodes.loader import EpisodeDataset, EpisodeLoader, EpisodeSampler, as_it_is
from metalearn.datamodules.episodes.randomness import make_generator
from metalearn.errors import ConfigError

__all__ = ["BilevelDataModule", "Examples", "LevelBatch", "TermBatches"]

TERMS = ("inner", "outer", "hessian", "jacobian")


class Examples(NamedTuple):
    """Some examples.

    Attributes:
        index: ``[n]`` int64, their numbers within their part, which say whose weight is whose.
        x: ``[n, features]`` float32; or a sparse matrix.
        y: ``[n]`` int64, as the learner sees them: of training examples, with the corrupted labels.

    Example:
        >>> import torch
        >>> from metalearn.datamodules import Examples
        >>> examples = Examples(index=torch.arange(3), x=torch.rand(3, 8), y=torch.tensor([0, 1, 0]))
        >>> examples.x.shape
        torch.Size([3, 8])
    """

    index: Tensor  # type: ignore[assignment]  # it hides tuple.index, which nobody asks of examples
    x: Any
    y: Tensor


class LevelBatch(NamedTuple):
    """A training batch of a deterministic algorithm: all examples of both levels.

    Attributes:
        outer: what the outer loss gets: clean validation examples.
        inner: what the inner loss gets: training examples.

    Example:
        >>> import torch
        >>> from metalearn.datamodules import Examples, LevelBatch
        >>> train = Examples(torch.arange(9), torch.rand(9, 8), torch.zeros(9, dtype=torch.long))
        >>> val = Examples(torch.arange(4), torch.rand(4, 8), torch.zeros(4, dtype=torch.long))
        >>> LevelBatch(outer=val, inner=train).inner.x.shape
        torch.Size([9, 8])
    """

    outer: Examples
    inner: Examples


class TermBatches(NamedTuple):
    """A training batch of a stochastic algorithm: independent batches for each term of its estimator.

    Each attribute is :class:`Examples` with a leading axis of the numbers: ``index`` ``[batches, n]``, and so on.
    ``metalearn.bilevel.problems.drawn.Drawn`` makes a problem's stream of it.

    Example:
        >>> import torch
        >>> from metalearn.datamodules import Examples, TermBatches
        >>> batch = Examples(torch.arange(4)[None], torch.rand(1, 4, 8), torch.zeros(1, 4))
        >>> TermBatches(inner=batch, outer=batch, hessian=batch, jacobian=batch)._fields
        ('inner', 'outer', 'hessian', 'jacobian')
    """

    inner: Examples
    outer: Examples
    hessian: Examples
    jacobian: Examples


class BilevelDataModule(L.LightningDataModule):
    """Training examples for the inner loss, validation examples for the outer one, test examples for neither.

    Subclasses implement :meth:`load`. A training batch is a pure function of ``(seed, number)``: ranks and workers partition
    the numbers, and a resumed run goes on with the batch after the last one.

    Attributes:
        parts: the examples of ``train``, ``val`` and ``test``, once :meth:`setup` has run; and of ``held``, where some examples
            are held out from the outer loss, too: then the Trainer validates by those.

    Example:
        >>> import torch
        >>> from metalearn.datamodules import BilevelDataModule, Examples
        >>> class Noise(BilevelDataModule):
        ...     def load(self):
        ...         part = Examples(torch.arange(6), torch.rand(6, 8), torch.arange(6) % 2)
        ...         return {"train": part, "val": part, "test": part}
        >>> data = Noise(
        ...     batch_size=None, draws=None, steps_per_epoch=10, eval_batch_size=6, seed=0, num_workers=0
        ... )
        >>> data.batch(0).inner.x.shape
        torch.Size([6, 8])
    """

    parts: dict[str, Examples]

    def __init__(
        self,
        batch_size: int | None,
        draws: Mapping[str, int] | None,
        steps_per_epoch: int,
        eval_batch_size: int,
        seed: int,
        num_workers: int,
    ) -> None:
        super().__init__()
        if batch_size is not None:
            check_whole("batch_size", batch_size, 1)
        check_whole("steps_per_epoch", steps_per_epoch, 1)
        check_whole("eval_batch_size", eval_batch_size, 1)
        check_seed("seed", seed)
        check_whole("num_workers", num_workers, 0, 1024)
        if draws is not None:
            check_kind("draws", draws, Mapping, "use {'hessian': 3}, or leave it out")
        for name, value in (draws or {}).items():
            if name not in TERMS:
                raise ConfigError(f"draws has {name!r}, but its keys must be among {', '.join(TERMS)}; drop it")
            check_whole(f"draws[{name!r}]", value, 1)
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.draws = dict.fromkeys(TERMS, 1) | dict(draws or {})
        self.steps_per_epoch, self.seed, self.num_workers = steps_per_epoch, seed, num_workers
        self.parts = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "trainer": None}  # as Lightning's modules do

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        memo.update(
            (id(part.x), part.x) for part in self.parts.values()
        )  # torch copies no sparse matrix, and none is written
        clone = memo[id(self)] = object.__new__(type(self))
        clone.__dict__.update(copy.deepcopy(self.__getstate__(), memo))
        return clone

    def load(self) -> dict[str, Examples]:
        """Read the examples of ``train``, ``val``, ``test`` and perhaps ``held``."""
        raise NotImplementedError(f"{type(self).__name__} must load its examples")

    def setup(self, stage: str | None = None) -> None:
        """Read the data, once."""
        if not self.parts:
            self.parts = self.load()

    def part(self, name: str) -> Examples:
        """The examples of ``train``, ``val``, ``test`` or, where there is one, ``held``."""
        self.setup()
        if name not in self.parts:
            raise ConfigError(f"part is {name!r}, but it must be one of {', '.join(self.parts)}; use 'train'")
        return self.parts[name]

    def batch(self, number: int) -> LevelBatch | TermBatches:
        """The training batch of this number, which depends on it and on ``seed`` alone."""
        train, val = self.part("train"), self.part("val")
        if self.batch_size is None:
            return LevelBatch(outer=val, inner=train)
        return TermBatches(**{term: self._draw_term(val if term == "outer" else train, place, self.draws[term], number)
                              for place, term in enumerate(TERMS)})  # fmt: skip

    def _draw_term(self, pool: Examples, place: int, count: int, number: int) -> Examples:
        assert self.batch_size is not None
        size = min(self.batch_size, len(pool.index))
        rng = make_generator(self.seed, number, place)
        rows = torch.from_numpy(np.stack([rng.permutation(len(pool.index))[:size] for _ in range(count)]))
        return Examples(pool.index[rows], pool.x[rows], pool.y[rows])

    def train_dataloader(self) -> EpisodeLoader:
        """Batches for training, each :class:`LevelBatch` or :class:`TermBatches`."""
        self.setup()
        return self._loader(_Draw(self, None), self.steps_per_epoch, advances=True)

    def val_dataloader(self) -> EpisodeLoader:
        """:class:`Examples` of the held-out part where there is one, else of the validation part."""
        self.setup()
        return self._make_evaluation_loader("held" if "held" in self.parts else "val")

    def test_dataloader(self) -> EpisodeLoader:
        """:class:`Examples` of the test part."""
        return self._make_evaluation_loader("test")

    def chunk(self, part: str, number: int) -> Examples:
        """The examples of one evaluation batch."""
        pool = self.part(part)
        if number == 0 and self.eval_batch_size >= len(pool.index):
            return pool  # a sparse matrix has no slices
        rows = slice(number * self.eval_batch_size, (number + 1) * self.eval_batch_size)
        return Examples(pool.index[rows], pool.x[rows], pool.y[rows])

    def _make_evaluation_loader(self, part: str) -> EpisodeLoader:
        count = -(-len(self.part(part).index) // self.eval_batch_size)
        return self._loader(_Draw(self, part), count, advances=False)

    def _loader(self, draw: _Draw, count: int, advances: bool) -> EpisodeLoader:
        rank, world = (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)
        # each rank takes as many steps as were asked for, each on batches of its own
        total = count * world if advances else count
        return EpisodeLoader(
            EpisodeDataset(draw, total),
            sampler=EpisodeSampler(total, rank, world, advances=advances),
            collate_fn=as_it_is,
            batch_size=1,
            drop_last=advances,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            generator=torch.Generator(),  # else every new iterator would draw from the global RNG
        )


class _Draw:
    """Draws from a data module; pickles without its Trainer, for workers that are spawned."""

    def __init__(self, data: BilevelDataModule, part: str | None) -> None:
        self.data, self.part = data, part

    def __call__(self, numbers: list[int]) -> Any:
        (number,) = numbers
        return self.data.batch(number) if self.part is None else self.data.chunk(self.part, number)

    def __getstate__(self) -> dict[str, object]:
        clone = object.__new__(type(self.data))
        clone.__dict__.update({name: value for name, value in self.data.__dict__.items() if name != "trainer"})
        return {"data": clone, "part": self.part}
