"""Hyper-cleaning on MNIST: training labels that are partly wrong, and a small clean validation set."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from metalearn.checks import check_number, check_seed, check_whole, read_path
from metalearn.datamodules.episodes.randomness import CONSTANT, make_generator
from metalearn.datamodules.levels.base import BilevelDataModule, Examples
from metalearn.datamodules.sources.mnist_idx import read_mnist
from metalearn.errors import DataError

__all__ = ["MNISTCleaningDataModule", "corrupt"]

CLASSES = 10


class MNISTCleaningDataModule(BilevelDataModule):
    """Training examples whose labels are wrong with a known mask, and clean validation and test examples.

    Where both of MNIST's parts are there, training and validation examples are of ``train`` and test examples of ``t10k``;
    otherwise all are of the one that is there. The split is a constant, and so is the mask for a given ``mask_seed``: the
    labels are corrupted once, when they are read, uniformly to one of the nine other classes.

    Args:
        root: the folder of ``t10k-images-idx3-ubyte[.gz]`` and ``t10k-labels-idx1-ubyte[.gz]``, and perhaps of
            ``train-*``.
        corruption: which share of the training examples has wrong labels, exactly.
        train: how many training examples the inner loss gets.
        val: how many validation examples the outer loss gets.
        test: how many test examples there are.
        seed: the seed of the training batches, and of nothing else.
        batch_size: how many examples each batch has; ``None`` for all of them at every step, as a deterministic
            algorithm needs.
        draws: how many independent batches each term of a stochastic algorithm gets in a step. The terms are ``inner``,
            ``outer``, ``hessian`` and ``jacobian``; a term that is left out gets 1.
        steps_per_epoch: how many training batches make an epoch, on each rank.
        eval_batch_size: how many examples a validation or test batch has.
        mask_seed: the seed by which labels are corrupted.
        num_workers: how many processes draw batches.

    Attributes:
        corrupted: which training labels are wrong, ``[train]`` bool; there once the data are read.

    Shape:
        ``x`` ``[n, 784]`` float32 in 0..1, ``y`` ``[n]`` int64, ``index`` ``[n]`` int64.

    Raises:
        ConfigError: an argument is out of range.
        DataError: a file is missing or damaged, or has too few images.

    Example:
        >>> from metalearn.datamodules import MNISTCleaningDataModule
        >>> data = MNISTCleaningDataModule("data/mnist", corruption=0.4, train=5000)
        >>> data.sizes
        {'train': 5000, 'val': 2000, 'test': 2000}
    """

    corrupted: torch.Tensor

    def __init__(
        self,
        root: str,
        corruption: float = 0.4,
        train: int = 6000,
        val: int = 2000,
        test: int = 2000,
        seed: int = 0,
        batch_size: int | None = None,
        draws: Mapping[str, int] | None = None,
        steps_per_epoch: int = 100,
        eval_batch_size: int = 2000,
        mask_seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size, draws, steps_per_epoch, eval_batch_size, seed, num_workers)
        read_path("root", root, "give the folder of the data")
        check_number("corruption", corruption, "use 0.4", least=0, below=1)
        for name, value in (("train", train), ("val", val), ("test", test)):
            check_whole(name, value, 1)
        check_seed("mask_seed", mask_seed)
        self.root, self.corruption, self.mask_seed = root, corruption, mask_seed
        self.sizes = {"train": train, "val": val, "test": test}

    def load(self) -> dict[str, Examples]:
        digits = read_mnist(Path(self.root))
        first, last = digits.get("train", digits.get("t10k")), digits.get("t10k", digits.get("train"))
        assert first is not None
        assert last is not None
        sizes = self.sizes
        needs = {"train": sizes["train"] + sizes["val"], "t10k": sizes["test"]} if len(digits) == 2 else {
            next(iter(digits)): sum(sizes.values())}  # fmt: skip
        for name, need in needs.items():
            if need > len(digits[name][1]):
                raise DataError(
                    f"folder {self.root} has {len(digits[name][1])} images of {name}, but train, val and test need {need}; lower "
                    "them, or add the other files of MNIST"
                )
        rng = make_generator(CONSTANT)
        order = rng.permutation(len(first[1]))
        end = sizes["train"] + sizes["val"]
        rows = {"train": order[: sizes["train"]], "val": order[sizes["train"] : end]}
        rows["test"] = (
            rng.permutation(len(last[1]))[: sizes["test"]] if len(digits) == 2 else order[end:][: sizes["test"]]
        )
        parts = {name: _make_examples(last if name == "test" else first, chosen) for name, chosen in rows.items()}
        labels, self.corrupted = corrupt(parts["train"].y, self.corruption, CLASSES, self.mask_seed)
        parts["train"] = parts["train"]._replace(y=labels)
        return parts


def corrupt(labels: torch.Tensor, share: float, classes: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels ``[n]`` of which ``round(share n)`` are replaced by another class, uniformly; and which ones, bool ``[n]``.

    A new tensor, a pure function of its arguments: corrupting what is corrupt already is for the caller to avoid.
    """
    rng = make_generator(seed, CONSTANT)
    count = len(labels)
    mask = np.zeros(count, bool)
    mask[rng.permutation(count)[: round(share * count)]] = True
    shift = rng.integers(1, classes, count)
    wrong = (labels.numpy() + shift) % classes
    return torch.from_numpy(np.where(mask, wrong, labels.numpy())), torch.from_numpy(mask)


def _make_examples(source: tuple[np.ndarray, np.ndarray], rows: np.ndarray) -> Examples:
    images, labels = source
    x = torch.from_numpy(images[rows].reshape(len(rows), -1).astype(np.float32) / np.float32(255))
    return Examples(torch.arange(len(rows)), x, torch.from_numpy(labels[rows]))
