"""Hyper-cleaning: a weight for each training example, learned so that a linear model does well on clean examples."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn.bilevel.problem import BilevelProblem, Constants
from metalearn.bilevel.problems.examples import check_examples
from metalearn.bilevel.problems.softmax_bounds import GRADIENT, HESSIAN, THIRD, design_of
from metalearn.bilevel.streams import Fixed, Sampled
from metalearn.checks import UNBOUNDED, check_number, check_whole
from metalearn.errors import ConfigError

__all__ = ["cleaning_constants", "cleaning_problem", "detection_auroc", "linear_logits"]

Examples = tuple[Tensor, Tensor, Tensor]
"""``(index [n] int64, x [n, features], y [n] int64)``, such as :class:`metalearn.datamodules.Examples`."""


def linear_logits(weights: Tensor, x: Tensor) -> Tensor:
    """Return ``W (x, 1)``, ``[n, classes]``, for ``weights`` ``[classes, features + 1]`` whose last column is the bias.

    Example:
        >>> import torch
        >>> from metalearn.bilevel import linear_logits
        >>> linear_logits(torch.tensor([[1.0, 2.0, 0.5]]), torch.tensor([[3.0, 4.0]]))
        tensor([[11.5000]])
    """
    # few rows times many columns is the product that is quick, in both derivatives too: a third of the time of x @ W'
    return (weights[:, :-1] @ x.mT + weights[:, -1:]).mT


def cleaning_problem(
    train: Examples | None = None,
    val: Examples | None = None,
    *,
    features: int | None = None,
    classes: int = 10,
    l2: float = 0.001,
    inner_size: int | None = None,
    outer_size: int | None = None,
    init_scale: float = 0.0,
    seed: int = 0,
) -> BilevelProblem:
    """Make the problem of weights for training examples (arXiv 2108.00330, section 4.4.1; Shaban et al. 2019).

    ``min_x f = mean_val CE(W*)`` with ``W*(x) = argmin_W mean_i sigmoid(x_i) CE_i(W) + l2 |W|^2`` over training examples.

    ``x`` is ``[n]``, one entry an example; ``y`` is ``W`` ``[classes, features + 1]``, the last column the bias.

    Args:
        train: ``(index, x, y)``: ``index[i]`` is the entry of ``x`` that weighs example ``i``; the inner loss's examples.
            ``None`` where each step brings its own, by ``problem.with_batch`` or :class:`~metalearn.bilevel.Drawn`.
        val: the same of the outer loss, whose ``index`` is not used.
        features: of an example, where ``train`` is ``None``.
        classes: of ``y``.
        l2: of the inner loss; its strong convexity is ``2 l2``.
        inner_size: examples of a batch of the inner loss's terms; ``None`` for all. With either size, batches are drawn as
            a pure function of seed, step and term; with neither the problem is deterministic.
        outer_size: examples of a batch of the outer loss.
        init_scale: the deviation of the initial ``W``, 0 to start at zero.
        seed: of the initial ``W``.

    Raises:
        ConfigError: an argument is out of range, or neither ``train`` nor ``features`` is given.
        ShapeError: the examples do not fit together.

    Example:
        >>> import torch
        >>> from metalearn.bilevel import cleaning_problem
        >>> train = torch.arange(20), torch.randn(20, 8), torch.arange(20) % 5
        >>> val = torch.arange(10), torch.randn(10, 8), torch.arange(10) % 5
        >>> problem = cleaning_problem(train, val, classes=5)
        >>> problem.init_inner(torch.zeros(20)).shape
        torch.Size([5, 9])
    """
    check_number("l2", l2, "use 0.001, since the inner loss must be strongly convex", above=0, loose=True)
    check_whole("classes", classes, 2, remedy="use 10", loose=True)
    check_number("init_scale", init_scale, "use 0.01, or 0 to start at zero", least=0, loose=True)
    check_whole("seed", seed, remedy="use 0", most=UNBOUNDED)
    if features is not None:
        check_whole("features", features, 1, remedy="give the number of entries of an example", loose=True)
    for name, size in (("inner_size", inner_size), ("outer_size", outer_size)):
        if size is not None:
            check_whole(name, size, 1, remedy="use None for all examples", loose=True)
    if (train is None) != (val is None) or (train is None and features is None):
        raise ConfigError(
            "cleaning_problem got neither train and val nor features, but one of them must say the shapes; give both sets"
        )
    dtype: torch.dtype | None = None
    if train is not None and val is not None:
        check_examples(train, val, classes, reads_index=True)
        features, dtype = train[1].shape[1], train[1].dtype
    assert features is not None
    shape = (classes, features + 1)

    stream: Fixed | Sampled | None = None
    if train is not None:
        sampled = inner_size is not None or outer_size is not None
        stream = Sampled(val, train, outer_size, inner_size) if sampled else Fixed(val, train)
    constants = Constants(mu=2 * l2)
    if train is not None and val is not None and isinstance(stream, Fixed):
        constants = cleaning_constants(train, val, l2)
    start = partial(_make_start, shape, init_scale, seed, dtype)
    return BilevelProblem(_outer_loss, partial(_inner_loss, l2), start, constants, stream)


def _inner_loss(l2: float, x: Tensor, y: Tensor, batch: Any) -> Tensor:
    index, inputs, labels = batch
    losses = F.cross_entropy(linear_logits(y, inputs), labels, reduction="none")
    return (x[index].sigmoid() * losses).mean() + l2 * y.square().sum()


def _outer_loss(x: Tensor, y: Tensor, batch: Any) -> Tensor:
    _, inputs, labels = batch
    return F.cross_entropy(linear_logits(y, inputs), labels)


def _make_start(shape: tuple[int, int], scale: float, seed: int, dtype: torch.dtype | None, x: Tensor) -> Tensor:
    if scale == 0:
        return torch.zeros(shape, dtype=dtype or x.dtype, device=x.device)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype or x.dtype)
    return (scale * noise).to(x.device)


def cleaning_constants(train: Examples, val: Examples, l2: float) -> Constants:
    """Return the constants of :func:`cleaning_problem` on all of these examples, for every ``x`` and ``W``.

    With ``e`` the largest eigenvalue of ``X'X/n`` of the training examples with a 1 appended, ``r`` the longest of them, and
    ``sigmoid' <= 1/4``: ``L_xy = sqrt 2/4 sqrt(e/n)`` and ``rho_J = r/8 sqrt(e/n)``, where no index comes twice;
    ``rho_H = sqrt 2/(3 sqrt 3) r e``; ``L_upper = e/2 + 2 l2``, several times ``L`` where classes are uncertain or weights below
    1, so that step sizes are not held to it. See :mod:`metalearn.bilevel.problems.softmax_bounds`.

    Example:
        >>> import torch
        >>> from metalearn.bilevel import cleaning_constants
        >>> train = torch.arange(20), torch.randn(20, 8), torch.arange(20) % 5
        >>> val = torch.arange(10), torch.randn(10, 8), torch.arange(10) % 5
        >>> cleaning_constants(train, val, l2=0.25).mu
        0.5
    """
    inner, outer = design_of(train[1], bias=True), design_of(val[1], bias=True)
    slope, root = 0.25, math.sqrt(inner.eigenvalue * int(train[0].bincount().max()) / len(train[2]))
    return Constants(
        mu=2 * l2,
        L_xy=slope * GRADIENT * root,
        rho_J=slope * HESSIAN * inner.row * root,
        rho_H=THIRD * inner.row * inner.eigenvalue,
        L_fxx=0.0,
        L_fxy=0.0,
        L_fyy=HESSIAN * outer.eigenvalue,
        M=GRADIENT * math.sqrt(outer.eigenvalue),
        L_upper=HESSIAN * inner.eigenvalue + 2 * l2,
    )


def detection_auroc(x: Tensor, corrupted: Tensor) -> float:
    """Return the area under the ROC curve of ``1 - sigmoid(x)`` as a detector of corrupted labels.

    It is the chance that a corrupted example weighs less than a clean one, ties counted half; nan without both kinds.

    Args:
        x: ``[n]``.
        corrupted: ``[n]`` bool.

    Example:
        >>> import torch
        >>> from metalearn.bilevel import detection_auroc
        >>> detection_auroc(torch.tensor([-1.0, 2.0, 3.0]), torch.tensor([True, False, False]))
        1.0
    """
    from torchmetrics.functional.classification import binary_auroc  # here, since the room needs torch alone

    if not 0 < int(corrupted.sum()) < len(corrupted):
        return math.nan
    # places from 0 to 1, since torchmetrics would round logits by a sigmoid
    places = torch.unique(-x.detach(), return_inverse=True)[1] / len(x)
    return float(binary_auroc(places, corrupted.long()))
