"""Arrays with a class for each row: tables, features, signals, or images that are already in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metalearn.datamodules.episodes.arguments import ClassArguments, Unpack, spell_out
from metalearn.datamodules.episodes.classes import ClassEpisodes, Pool
from metalearn.datamodules.episodes.options import refuse_image_options
from metalearn.datamodules.episodes.splits import ClassSplit, assign_splits, number_splits
from metalearn.errors import ConfigError, DataError

__all__ = ["ArrayEpisodes"]


class ArrayEpisodes(ClassEpisodes):
    """Episodes from ``x`` ``[n, ...]`` and the class ``y`` ``[n]`` of each row.

    Args:
        x: a NumPy array, a tensor, or the path of an ``.npy`` file (memory-mapped, so that workers share it) or of an ``.npz``
            file with the arrays ``x`` and ``y``. Floats of any width become float32; whole numbers too.
        y: the class of each row: whole numbers or strings, an array, a tensor or the path of an ``.npy`` file; ``None`` where
            ``x`` is an ``.npz`` file.
        splits: the classes of ``train``, ``val`` and ``test`` by name, or three fractions, by which they are cut in the order
            of a hash of their names.
        options: further options of episodes. ``normalize`` takes each feature's mean and deviation over the training classes'
            rows; ``rotations``, ``augment`` and ``skip_broken`` are for images.

    Shape:
        ``x`` ``[B, n, ...]`` float32 and ``y`` ``[B, n]`` int64.

    Raises:
        ConfigError: an argument is out of range for this data.
        DataError: a file cannot be read, lengths disagree, or a value is not finite.

    Example:
        >>> import numpy as np
        >>> from metalearn.datamodules import ArrayEpisodes
        >>> x, y = np.random.rand(400, 8), np.repeat(np.arange(20), 20)  # 20 classes of 20 rows
        >>> data = ArrayEpisodes(x, y, ways=3, shots=2, queries=5)
        >>> data.episode(seed=0, split="train", index=0).support.x.shape
        torch.Size([6, 8])
    """

    @spell_out(ClassArguments)
    def __init__(
        self, x: Any, y: Any = None, *, splits: ClassSplit = (0.64, 0.16, 0.2), **arguments: Unpack[ClassArguments]
    ) -> None:
        super().__init__(**arguments)
        refuse_image_options(self.options, "arrays", ("rotations", "augment", "skip_broken"))
        self.splits_by: ClassSplit = splits
        if y is None:
            x, y = _read_pair(x)
        self.x, labels = _read(x, "x"), _read(y, "y")
        if labels.ndim != 1 or len(labels) != len(self.x) or labels.dtype.kind not in "iuUS":
            raise DataError(
                f"x has shape {list(self.x.shape)} and y {list(labels.shape)}, {labels.dtype}, but y must hold one whole number "
                "or string for each row of x; check how they are built"
            )
        if self.x.dtype.kind not in "fiub":
            raise DataError(
                f"x has dtype {self.x.dtype}, but it must hold numbers; convert it with x.astype('float32')"
            )
        if self.x.dtype.kind == "f" and not all(
            np.isfinite(block).all() for block in np.array_split(self.x, 1 + len(self.x) // 65536)
        ):
            raise DataError(
                "x has values that are not finite, and no model can learn from them; drop or fill in those rows"
            )
        names, numbers = np.unique(labels, return_inverse=True)
        self._names = [str(name) for name in names]
        self._order = np.argsort(numbers, kind="stable")
        self._counts = np.bincount(numbers)
        self._mean, self._std = np.zeros((), np.float32), np.ones((), np.float32)

    def open_pool(self) -> tuple[Pool, dict[str, np.ndarray]]:
        split = assign_splits(self._names, self.splits_by)
        numbers_of = number_splits(self._names, split)
        pool = Pool.of(self._names, self._counts)
        if self.options.normalize:
            if not len(numbers_of["train"]):
                raise ConfigError(
                    "options.normalize is true, but splits leaves train, whose statistics it takes, without classes; leave it out"
                )
            trains = np.concatenate(
                [np.arange(pool.counts[number]) + pool.offsets[number] for number in numbers_of["train"]]
            )
            rows = self.x[np.sort(self._order[trains])]
            deviation = rows.std(0, dtype=np.float64)
            self._mean = rows.mean(0, dtype=np.float64).astype(np.float32)
            self._std = np.where(deviation > 0, deviation, 1.0).astype(np.float32)
        return pool, numbers_of

    def example_names(self, number: int) -> list[str] | None:
        """The numbers of a class's rows in ``x``."""
        begin = int(self._counts[:number].sum())
        return [str(row) for row in self._order[begin : begin + self._counts[number]]]

    def take(self, rows: np.ndarray, turns: np.ndarray | None) -> Tensor:
        values = self.x[self._order[rows]].astype(np.float32)
        if self.options.normalize:
            values = (values - self._mean) / self._std
        return torch.from_numpy(np.ascontiguousarray(values))


def _read(value: Any, name: str) -> np.ndarray:
    if isinstance(value, Tensor):
        return value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, (list, tuple)):
        return np.asarray(value)
    path = Path(value)
    if path.exists() and not path.is_file():
        raise DataError(f"{name} {path} is no regular file; it must be an .npy file of numbers")
    try:
        values: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{name} {path} cannot be read ({error}); it must be an .npy file of numbers") from error
    return values


def _read_pair(value: Any) -> tuple[np.ndarray, np.ndarray]:
    if not isinstance(value, (str, Path)):
        raise ConfigError(
            "y is None, but each row of x needs a class; give y, or x as the path of an .npz file with x and y"
        )
    if Path(value).exists() and not Path(value).is_file():
        raise DataError(f"x {value} is no regular file; it must be an .npz file with the arrays x and y")
    try:
        with np.load(value, allow_pickle=False) as file:
            return file["x"], file["y"]
    except (OSError, ValueError, EOFError, KeyError) as error:
        raise DataError(
            f"x {value} cannot be read ({error}); it must be an .npz file with the arrays x and y"
        ) from error
