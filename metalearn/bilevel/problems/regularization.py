"""Regularisation tuning: one l2 penalty for each feature of a linear model, learned from validation examples."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn.bilevel.problem import BilevelProblem, Constants
from metalearn.bilevel.problems.examples import check_examples
from metalearn.bilevel.problems.softmax_bounds import GRADIENT, HESSIAN, THIRD, design_of
from metalearn.bilevel.problems.sparse import with_transpose
from metalearn.bilevel.streams import Fixed
from metalearn.checks import check_whole
from metalearn.errors import ConfigError

__all__ = ["feature_logits", "regularization_constants", "regularization_problem"]

Examples = tuple[Tensor, Any, Tensor]
"""``(index [n] int64, x [n, features] dense or sparse, y [n] int64)``, such as :class:`metalearn.datamodules.Examples`."""


def feature_logits(weights: Tensor, x: Any) -> Tensor:
    """Return ``X W``, ``[n, classes]``, for ``weights`` ``[features, classes]`` and dense or sparse ``x``."""
    return with_transpose(x) @ weights


def regularization_problem(
    train: Examples | None = None,
    val: Examples | None = None,
    *,
    features: int | None = None,
    classes: int | None = None,
) -> BilevelProblem:
    """Make the problem of one l2 penalty a feature (arXiv 2108.00330, section 2.4; Grazzi et al. 2020).

    ``min_x f = mean_val CE(W*)`` with ``W*(x) = argmin_W mean_train CE(W) + 1/2 sum_j exp(x_j) mean_c W_jc^2``. Grazzi et al.
    divide the penalty by the number of features, too, which is the same with ``x`` moved by its logarithm.

    ``x`` is ``[features]``, the logarithm of each penalty; ``y`` is ``W`` ``[features, classes]``, initially zero. The inner loss
    is ``min_j exp(x_j) / classes`` strongly convex.

    Args:
        train: ``(index, x, y)``, the inner loss's examples, with dense ``x`` or a sparse matrix; ``index`` is not used.
            ``None`` where each step brings its own, by ``problem.with_batch``.
        val: the same of the outer loss.
        features: of an example, where ``train`` is ``None``.
        classes: the number of labels; ``None`` for the largest label of ``train`` plus 1.

    Raises:
        ConfigError: neither ``train`` and ``val`` nor ``features`` and ``classes`` are given.
        ShapeError: the examples do not fit together.

    Example:
        >>> import torch
        >>> from metalearn.bilevel import regularization_problem
        >>> train = torch.arange(20), torch.randn(20, 8), torch.arange(20) % 5
        >>> val = torch.arange(10), torch.randn(10, 8), torch.arange(10) % 5
        >>> problem = regularization_problem(train, val)
        >>> problem.init_inner(torch.zeros(8)).shape
        torch.Size([8, 5])
    """
    for name, size, least in (("features", features, 1), ("classes", classes, 2)):
        if size is not None:
            check_whole(
                name, size, least, remedy=f"leave it out, and give train and val, which say the {name}", loose=True
            )
    if (train is None) != (val is None) or (train is None and (features is None or classes is None)):
        raise ConfigError(
            "regularization_problem got neither train and val nor features and classes, but one pair must say the shapes; give "
            "both sets of examples"
        )
    dtype: torch.dtype | None = None
    stream = None
    if train is not None and val is not None:
        classes = int(train[2].max()) + 1 if classes is None else classes
        check_examples(train, val, classes, reads_index=False)
        features, dtype = int(train[1].shape[1]), train[1].dtype
        inner, outer = ((part[0], with_transpose(part[1]), part[2]) for part in (train, val))
        stream = Fixed(outer, inner)
    assert features is not None
    assert classes is not None
    shape = (features, classes)

    known = None if train is None or val is None else regularization_constants(train, val, classes)
    return BilevelProblem(
        _outer_loss, _inner_loss, partial(_make_start, shape, dtype), stream=stream, constants_at=known
    )


def _inner_loss(x: Tensor, y: Tensor, batch: Any) -> Tensor:
    _, inputs, labels = batch
    # one pass over W for all features, since W is the largest tensor here
    penalty = torch.dot(x.exp(), y.square().mean(1)) / 2
    return F.cross_entropy(feature_logits(y, inputs), labels) + penalty


def _outer_loss(x: Tensor, y: Tensor, batch: Any) -> Tensor:
    _, inputs, labels = batch
    return F.cross_entropy(feature_logits(y, inputs), labels)


def _make_start(shape: tuple[int, int], dtype: torch.dtype | None, x: Tensor) -> Tensor:
    return torch.zeros(shape, dtype=dtype or x.dtype, device=x.device)


def regularization_constants(train: Examples, val: Examples, classes: int) -> Callable[[Tensor], Constants]:
    """Return the constants of :func:`regularization_problem` on these examples as a function of ``x``.

    With ``e`` the largest eigenvalue of ``X'X/n`` of the training examples and ``r`` the longest of them: ``mu = min_j exp(x_j) /
    classes``, ``rho_J = max_j exp(x_j) / classes``, ``rho_H = sqrt 2/(3 sqrt 3) r e``, ``L_upper = e/2 + rho_J``. At ``W*(x)``,
    where the penalty's gradient is minus that of the loss, ``|J| = max_j exp(x_j) |W*_j| / classes`` is at most
    ``L_xy = sqrt 2 max_j mean_i |X_ij|``, whatever ``x`` is; it is no bound at other ``W``.
    See :mod:`metalearn.bilevel.problems.softmax_bounds`.

    Example:
        >>> import torch
        >>> from metalearn.bilevel import regularization_constants
        >>> train = torch.arange(20), torch.randn(20, 8), torch.arange(20) % 5
        >>> val = torch.arange(10), torch.randn(10, 8), torch.arange(10) % 5
        >>> regularization_constants(train, val, 5)(torch.zeros(8)).mu
        0.2
    """
    inner, outer = (design_of(getattr(part[1], "matrix", part[1])) for part in (train, val))
    fixed = Constants(
        L_xy=GRADIENT * inner.column,
        rho_H=THIRD * inner.row * inner.eigenvalue,
        L_fxx=0.0,
        L_fxy=0.0,
        L_fyy=HESSIAN * outer.eigenvalue,
        M=GRADIENT * math.sqrt(outer.eigenvalue),
    )
    return partial(_find_constants, fixed, HESSIAN * inner.eigenvalue, classes)


def _find_constants(fixed: Constants, smoothness: float, classes: int, x: Tensor) -> Constants:
    low, high = torch.stack([x.min(), x.max()]).double().exp().div(classes).tolist()
    if not 0 < low <= high < math.inf:  # what is out of range, or not a number, is refused elsewhere
        return fixed
    return replace(fixed, mu=low, rho_J=high, L_upper=smoothness + high)
