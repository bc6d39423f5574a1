"""stocBiO's estimator: a Neumann series whose every product has a batch of its own."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.linalg import vector_norm

from metalearn.bilevel.estimators.base import Estimate, Estimator, check_reach_first, check_result, is_deterministic
from metalearn.bilevel.oracles import Oracles, check_finite
from metalearn.bilevel.problem import Constants
from metalearn.bilevel.solvers.curvature import curvature_along
from metalearn.bilevel.solvers.growth import check_step_size
from metalearn.bilevel.trees import dot
from metalearn.checks import check_number, check_whole
from metalearn.errors import BilevelError

__all__ = ["StocBiONeumann", "shrinking_sizes"]


def shrinking_sizes(batch: int, terms: int, contraction: float) -> list[int]:
    """Compute the sizes of stocBiO's batches for the Hessian, in the order of their use.

    ``|B_{Q+1-j}| = B Q (1 - eta mu)^{j-1}`` for ``j = 1..Q``, each at least 1

    Source: Ji, Yang and Liang 2021 (arXiv 2010.07962); thesis theorem 4.1: recalled.

    Args:
        batch: the number ``B``.
        terms: the number of products ``Q``.
        contraction: ``1 - eta mu``.

    Example:
        >>> from metalearn.bilevel import shrinking_sizes
        >>> shrinking_sizes(batch=8, terms=3, contraction=0.5)
        [24, 12, 6]
    """
    return [max(1, math.ceil(batch * terms * contraction**j)) for j in range(terms)]


@dataclass(frozen=True, kw_only=True)
class StocBiONeumann(Estimator):
    """stocBiO's Neumann series, in which every product has a batch of its own (arXiv 2108.00330, chapter 4).

    ``v = eta sum_{q=-1}^{Q-1} prod_{j=Q-q}^{Q} (I - eta H(B_j)) grad_y F(D_F)`` and ``G = grad_x F(D_F) - J(D_G) v``: ``Q + 1``
    terms from ``Q`` products. The bias is at most ``(1 - eta mu)^{Q+1} |grad_y F| L_xy / mu``.

    Attributes:
        inner: the solver of the inner problem; ``None`` to take ``y`` as it is.
        eta: the step size of the series, at most ``1/L``.
        Q: how many products the series takes.
        batch: the ``B`` of the Hessian batches, which shrink from ``B Q`` by ``1 - eta mu`` where the problem knows
            ``mu``; ``None`` for the stream's own size throughout.
        outer_size: how many examples ``D_F`` has; ``None`` for the stream's own size.
        jacobian_size: how many examples ``D_G`` has; ``None`` for the stream's own size.

    Raises, from an estimate:
        BilevelError: the terms grow tenfold; or, of a deterministic problem, the last product has negative curvature.

    Example:
        >>> import torch
        >>> from metalearn.bilevel import GradientDescent, StocBiONeumann, hypergradient, quadratic
        >>> made = quadratic(size=5, outer_size=3, kappa=10.0, seed=0)
        >>> x = torch.ones(3, dtype=torch.float64)
        >>> estimator = StocBiONeumann(inner=GradientDescent(step_size=1.0, steps=200), eta=1.0, Q=200)
        >>> value = hypergradient(made.problem, x, estimator=estimator).value
        >>> torch.allclose(value, made.hypergradient(x))
        True
    """

    eta: float
    Q: int
    batch: int | None = None
    outer_size: int | None = None
    jacobian_size: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("eta", self.eta, "use 1/L", above=0, owner="StocBiONeumann", loose=True)
        check_whole("Q", self.Q, 1, remedy="use 3", owner="StocBiONeumann", loose=True)
        object.__setattr__(self, "Q", int(self.Q))  # range(3.0) would raise
        remedy = "use None for the stream's size"
        for name in ("batch", "outer_size", "jacobian_size"):
            if getattr(self, name) is not None:
                check_whole(name, getattr(self, name), 1, remedy=remedy, owner="StocBiONeumann", loose=True)

    def check(self, constants: Constants) -> None:
        super().check(constants)
        if constants.L is not None:
            check_step_size("StocBiONeumann.eta", self.eta, 2 / constants.L, constants.L)

    def sizes(self, constants: Constants) -> list[int | None]:
        """The Hessian batches' sizes, in the order in which they are used."""
        if self.batch is None:
            return [None] * self.Q
        contraction = 1.0 if constants.mu is None else max(0.0, 1 - self.eta * constants.mu)
        return list(shrinking_sizes(self.batch, self.Q, contraction))

    def estimate(self, oracles: Oracles, x: Tensor, y: Tensor, v: Tensor | None, step: int) -> Estimate:
        solved = self.solve_inner(oracles, x, y, step)
        y = solved.y
        check_finite(y, "y", oracles.outer_step(step))
        outer = oracles.outer_gradient(x, y, oracles.sample("outer", step, 0, self.outer_size))
        before = term = total = outer.of_y
        for index, size in enumerate(self.sizes(oracles.problem.constants)):
            here = oracles.linearize(x, y, oracles.sample("hessian", step, index, size))
            before, term = term, term - self.eta * here.hvp(term)
            total = total + term
        with check_reach_first(outer, here):
            self._check_curvature(oracles, outer.of_y, before, term, oracles.outer_step(step))
        del here  # frees the graph too
        v = self.eta * total
        jacobian = oracles.sample("jacobian", step, 0, self.jacobian_size)
        value = (outer.of_x + oracles.linearize(x, y, jacobian).pull_back(v)[0]) / oracles.averages
        check_result(oracles, x, y, outer, value, step, v)
        return Estimate(
            value,
            y,
            v,
            outer.losses,
            inner_steps=solved.steps,
            iterations=self.Q,
            growth=solved.growth if is_deterministic(oracles) else None,
        )

    def _check_curvature(self, oracles: Oracles, first: Tensor, before: Tensor, last: Tensor, step: int) -> None:
        """Of the last product: the terms turn to the curvature that lies furthest from ``1/eta``."""
        length = dot(before, before)
        curvature = torch.where(length > 0, dot(before, before - last) / length, 0.0) / self.eta
        wrong = vector_norm(last, dim=-1) > 10 * vector_norm(first, dim=-1)
        if is_deterministic(oracles):  # the loss of one batch may curve the other way
            wrong = wrong | (curvature < -100 * torch.finfo(first.dtype).eps / self.eta)
        if bool(wrong.any()):
            worst = float((curvature_along(before, before - last) / self.eta)[wrong][0])
            raise BilevelError(
                f"the Neumann series met the curvature {worst:.3g} in inner_loss at outer step {step}, but it must be between 0 "
                f"and 2/eta = {2 / self.eta:.3g}; lower eta={self.eta:g}, add l2 regularisation to "
                "inner_loss, or use AID() or ITD"
            )
