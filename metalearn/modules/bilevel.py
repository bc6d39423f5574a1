"""A bilevel problem and an algorithm for it, as a LightningModule."""

from __future__ import annotations

from lightning.pytorch.cli import OptimizerCallable

from metalearn.bilevel.algorithms import Algorithm
from metalearn.bilevel.problem import BilevelProblem
from metalearn.bilevel.trees import Tree
from metalearn.modules.problem_based.core import BilevelCore

__all__ = ["BilevelModule"]


class BilevelModule(BilevelCore):
    """``min_x f(x, y*(x))`` by an algorithm of :mod:`metalearn.bilevel`, under any Trainer with automatic optimisation.

    ``x`` are the module's parameters. A step returns ``sum((p * d).sum())`` with a constant ``d`` for each parameter ``p``, so
    that backward, DDP and the optimiser see ``d`` as its gradient. For :class:`~metalearn.bilevel.BiO`, ``d`` is the
    hypergradient, and any optimiser moves ``x``: SGD with the algorithm's step size unless another one is named.
    ``AccBiO``, ``AccBiOBG``, ``MRBO``, ``VRBO`` and ``ProximalBiO`` own their step. They make ``d`` the change of ``x`` that they
    want, and SGD with ``lr=1`` makes it, up to the rounding of ``x - (x - x_new)``.

    Data come from the problem's stream (then ``trainer.fit(module)`` needs none), or, where it has none, from any loader of
    pairs ``(outer, inner)``. On several ranks each has its own batches; the mean of ``d`` moves ``x``, and ``y``, ``v`` and
    momentum are averaged after each step. Where each rank has its own tasks (``batched``), ``y`` and ``v`` stay with them.

    Logs ``train/loss`` (``f`` before the step), ``train/hypergradient_norm``, and where they are known the largest over problems
    of ``train/inner_residual``, ``train/dual_residual`` and ``train/certificate``; and ``oracles/gc_f``, ``gc_g``, ``jvp``,
    ``hvp``: the calls so far, over all ranks.

    Args:
        problem: the problem to solve.
        algorithm: the algorithm that solves it.
        x: where the outer variable starts: a tensor, or a tree of tensors.
        y: where the inner solver starts; ``None`` for ``init_inner(x)``.
        seed: the seed of every draw. Rank 0 draws what ``run(..., seed=seed)`` draws.
        steps_per_epoch: how many outer steps make an epoch, where the module brings its own loader.
        outer_optimizer: makes the optimiser of ``x``, for ``BiO``; ``None`` for SGD with the algorithm's step size.

    Raises:
        ConfigError: an optimiser for an algorithm that owns its step, or a setting of the Trainer that would change it.
        ShapeError: trees that do not fit together.

    Example:
        >>> import torch
        >>> from metalearn import BilevelModule
        >>> from metalearn.bilevel import aid_bio, quadratic
        >>> made = quadratic(size=5, outer_size=3, kappa=10.0, seed=0)
        >>> algorithm = aid_bio(made.problem.constants)
        >>> x = torch.zeros(3, dtype=torch.float64)
        >>> module = BilevelModule(made.problem, algorithm, x)
        >>> [value.shape for value in module.parameters()]
        [torch.Size([3])]
    """

    def __init__(
        self,
        problem: BilevelProblem,
        algorithm: Algorithm,
        x: Tree,
        y: Tree | None = None,
        seed: int = 0,
        steps_per_epoch: int = 100,
        outer_optimizer: OptimizerCallable | None = None,
    ) -> None:
        super().__init__(seed, steps_per_epoch, outer_optimizer)
        self.begin(problem, algorithm, x, y)
