"""Linear heads fitted to fixed features by the cross-entropy: a few steps, or to the end."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn.errors import BilevelError
from metalearn.inner.solvers.solved_head import SupportFeatures, check_labels, mark_absent

__all__ = ["fit_cosine", "fit_logistic", "fit_softmax"]

MOST_NEWTON_STEPS = 100
TOLERANCE = 1e-9
Settings = Mapping[str, Tensor | float]
Head = tuple[Tensor, Tensor]


def fit_softmax(support: SupportFeatures, settings: Settings, steps: int, rate: float, decay: float) -> Head:
    """A head from zero, by gradient steps on the mean cross-entropy of all support examples (Baseline, Chen et al. 2019).

    Args:
        support: the features and the class labels.
        settings: unused.
        steps: how many.
        rate: their size.
        decay: of the weight; the bias has none.
    """
    labels, absent = _read_labels(support)
    x = support.x
    weight, bias = _start(labels, x)
    for _ in range(steps):
        error = (_outputs(x, weight, bias + absent).softmax(-1) - labels) / x.shape[-2]
        weight, bias = (
            weight - rate * (error.transpose(-1, -2) @ x + decay * weight),
            bias - rate * error.sum(-2),
        )
    return weight, bias + absent


def fit_cosine(support: SupportFeatures, settings: Settings, steps: int, rate: float, scale: float) -> Head:
    """A head of directions, by gradient steps on the cross-entropy of scaled cosines (Baseline++, Chen et al. 2019).

    Directions start at the class means. The outputs are ``scale`` times the cosine of the angle between feature and direction.

    Args:
        support: features of length one, and the class labels.
        settings: unused.
        steps: how many.
        rate: their size.
        scale: what cosines are multiplied by.
    """
    labels, absent = _read_labels(support)
    x = support.x
    weight = labels.transpose(-1, -2) @ x
    for _ in range(steps):
        length = weight.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        unit = weight / length
        error = (_outputs(x, scale * unit, absent).softmax(-1) - labels) / x.shape[-2]
        grad = scale * (error.transpose(-1, -2) @ x)
        weight = weight - rate * (grad - (grad * unit).sum(-1, keepdim=True) * unit) / length
    return scale * F.normalize(weight, dim=-1), absent.expand(weight.shape[:-1])


def fit_logistic(support: SupportFeatures, settings: Settings, inverse_penalty: float) -> Head:
    """Multinomial logistic regression, solved to ``1e-9`` by Newton's method (Tian et al. 2020).

    It is the minimum of ``C sum_i cross_entropy_i + |W|^2 / 2``, as in scikit-learn. The bias has no penalty.
    Features are first turned into the space that the support set spans, where the solution lies. So a system has at most
    ``N (n + 1)`` unknowns.

    Args:
        support: the features and the class labels.
        settings: unused.
        inverse_penalty: ``C``.

    Raises:
        BilevelError: it does not get there.
    """
    labels, absent = _read_labels(support)
    x, kind = support.x.double(), support.x.dtype
    labels, absent = labels.double(), absent.double()
    basis, triangle = torch.linalg.qr(x.transpose(-1, -2))
    turned = F.pad(triangle.transpose(-1, -2), (0, 1), value=1.0)
    solution = _Newton(turned, labels, absent, inverse_penalty).solve()
    weight = solution[..., :-1] @ basis.transpose(-1, -2)
    return weight.to(kind), (solution[..., -1] + absent).clamp(min=torch.finfo(kind).min / 4).to(kind)


class _Newton:
    """Minimises ``C sum_i cross_entropy_i + |W|^2 / 2`` over ``[..., N, r + 1]``, whose last column is the bias.

    Newton's systems are solved by conjugate gradients, the more exactly the nearer the end is. No probability depends on the sum
    of the biases, nor on the bias of an absent class: a penalty holds them at 0.

    Args:
        x: ``[..., n, r + 1]``, with a last column of ones.
        labels: one-hot ``[..., n, N]``.
        absent: ``[..., N]``, very low for classes that no example has.
        inverse_penalty: ``C``; where there are two classes, scikit-learn has one row, and so half of it here.
    """

    def __init__(self, x: Tensor, labels: Tensor, absent: Tensor, inverse_penalty: float) -> None:
        self._x, self._labels, self._absent, self._asked = x, labels, absent, inverse_penalty
        pair = (absent == 0).sum(-1, keepdim=True).unsqueeze(-1) == 2
        self._c = torch.where(pair, inverse_penalty / 2, float(inverse_penalty)).to(x.dtype)

    def solve(self) -> Tensor:
        w = self._x.new_zeros(*self._labels.shape[:-2], self._labels.shape[-1], self._x.shape[-1])
        for _ in range(MOST_NEWTON_STEPS):
            shares = self._outputs(w).softmax(-1)
            grad = self._c * (shares - self._labels).transpose(-1, -2) @ self._x + self._pull(w)
            size = float(grad.abs().max())
            if size <= TOLERANCE * max(1.0, 1e-3 * self._asked):
                return w
            w = self._search(w, self._solve_system(shares, grad, min(0.1, size)), grad)
        raise BilevelError(
            f"the logistic regression of a task has not come to an end in {MOST_NEWTON_STEPS} steps; use a smaller "
            f"inverse_penalty (it is {self._asked:g})"
        )

    def _solve_system(self, shares: Tensor, grad: Tensor, tolerance: float) -> Tensor:
        """``H^-1 grad`` of each task, to a residual of ``tolerance`` times ``grad``."""
        solution, residual, along = torch.zeros_like(grad), grad, grad
        square = _dot(residual, residual)
        enough = tolerance**2 * square
        for _ in range(grad.shape[-1] * grad.shape[-2]):
            if bool((square <= enough).all()):
                break
            product = self._multiply(shares, along)
            size = torch.where(square > enough, square / _dot(along, product), 0.0)
            solution, residual = solution + size * along, residual - size * product
            before, square = square, _dot(residual, residual)
            along = residual + square / before.clamp(min=1e-300) * along
        return solution

    def _multiply(self, shares: Tensor, w: Tensor) -> Tensor:
        """The Hessian times ``w``."""
        change = shares * (self._x @ w.transpose(-1, -2))
        change = change - shares * change.sum(-1, keepdim=True)
        return self._c * change.transpose(-1, -2) @ self._x + self._pull(w)

    def _search(self, w: Tensor, step: Tensor, grad: Tensor) -> Tensor:
        """The longest of ``step, step / 2, ...`` that lowers each task's objective enough."""
        before, slope = self._value(w), _dot(grad, step)
        size = torch.ones_like(before)
        for _ in range(40):
            short = self._value(w - size * step) > before - 1e-4 * size * slope + 1e-13 * before.abs()
            if not bool(short.any()):
                break
            size = torch.where(short, size / 2, size)
        return w - size * step

    def _value(self, w: Tensor) -> Tensor:
        return 0.5 * _dot(w, self._pull(w)) - self._c * _dot(self._labels, self._outputs(w).log_softmax(-1))

    def _outputs(self, w: Tensor) -> Tensor:
        return _outputs(self._x, w, self._absent)

    def _pull(self, w: Tensor) -> Tensor:
        """The gradient of the penalty."""
        bias = w[..., -1:]
        bias = bias.sum(-2, keepdim=True) + bias * (self._absent < 0).unsqueeze(-1)
        return torch.cat([w[..., :-1], bias], -1)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Of each task, ``[..., 1, 1]``."""
    return (a * b).sum((-1, -2), keepdim=True)


def _outputs(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x @ weight.transpose(-1, -2) + bias.unsqueeze(-2)


def _start(labels: Tensor, x: Tensor) -> Head:
    weight = x.new_zeros(*labels.shape[:-2], labels.shape[-1], x.shape[-1])
    return weight, weight[..., 0].clone()


def _read_labels(support: SupportFeatures) -> tuple[Tensor, Tensor]:
    """One-hot labels, and what is added to outputs: very little for classes without examples, which are never told."""
    check_labels(support)
    labels = F.one_hot(support.y, support.ways).to(support.x.dtype)
    return labels, mark_absent(labels.sum(-2))
