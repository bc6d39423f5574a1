"""Regularisation tuning: one l2 penalty for each feature."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from metalearn.bilevel.algorithms import Algorithm, BiO, ProximalBiO
from metalearn.bilevel.problem import BilevelProblem
from metalearn.bilevel.problems.regularization import feature_logits, regularization_constants, regularization_problem
from metalearn.bilevel.solvers.prox import Box
from metalearn.checks import check_number, check_numbers
from metalearn.errors import ConfigError
from metalearn.modules.problem_based.linear_models import LinearBilevel, check_size_arguments
from metalearn.modules.problem_based.names import AlgorithmName, AlgorithmOptions, EstimatorName
from metalearn.modules.problem_based.outcome import penalties_picture
from metalearn.reports.outcome import Picture, RunRecord

__all__ = ["RegularizationTuning"]


@dataclass(frozen=True)
class _Regularization:
    """The problem of :class:`RegularizationTuning`."""

    initial_log_penalty: float

    size_names = "features", "classes"

    def read_sizes(self, data: Any) -> dict[str, int]:
        train = data.part("train")
        return {"features": train.x.shape[1], "classes": 1 + int(max(train.y.max(), data.part("val").y.max()))}

    def make(self, sizes: dict[str, int]) -> tuple[BilevelProblem, Tensor]:
        problem = regularization_problem(features=sizes["features"], classes=sizes["classes"])
        return problem, torch.full((sizes["features"],), float(self.initial_log_penalty))

    def add_constants(self, problem: BilevelProblem, train: Any, val: Any, sizes: dict[str, int]) -> BilevelProblem:
        return dataclasses.replace(problem, constants_at=regularization_constants(train, val, int(sizes["classes"])))

    def logits(self, y: Tensor, x: Any) -> Tensor:
        return feature_logits(y, x)

    def measure(self, x: Tensor, data: Any) -> dict[str, float]:
        return {}


class RegularizationTuning(LinearBilevel):
    """Learn an l2 penalty for each feature of a linear model, such that it does well on validation examples.

    A penalty is ``exp(x_j)`` (arXiv 2108.00330, section 2.4; Grazzi et al. 2020):

        min_x mean_val CE(W*),  W* = argmin_W mean_train CE(W) + sum_j exp(x_j) mean_c W_jc^2 / 2.

    Args:
        features: how many features an example has; ``None`` for those of the data module.
        classes: how many classes the labels have; ``None`` for those of the data module.
        initial_log_penalty: the value at which every ``x_j`` starts.
        log_penalty_range: the least and the largest ``x_j``, which proximal steps of ``"bio"`` keep; ``None`` for no
            bounds. Above ``log(classes / inner_lr)`` a penalty alone takes up half of the curvature that a step of
            ``inner_lr`` bears.
        algorithm: the outer algorithm: ``"bio"``, ``"mrbo"`` or ``"vrbo"``. For ``"bio"`` the estimator says which:
            AID-BiO, ITD-BiO, stocBiO or PZOBO. Every batch of the data module is all examples.
        estimator: how the hypergradient is estimated: ``"aid_cg"``, ``"aid_fp"``, ``"aid_neumann"``, ``"itd"``,
            ``"stoc_bio"`` or ``"pzobo"``.
        outer_lr: the step size of ``x``.
        inner_lr: the step size of ``W``.
        inner_steps: how many steps ``W`` takes in an outer step.
        inner_momentum: the momentum of Nesterov's method; 0 for gradient descent.
        linear_steps: how many iterations solve the linear system. For stocBiO and PZOBO this is ``Q``.
        linear_lr: the step size of the fixed point and of the Neumann series.
        period: how many outer steps lie between two large batches of VRBO.
        outer_optimizer: makes another optimiser of ``x`` for ``"bio"``; ``None`` for SGD with ``outer_lr``.
        seed: the seed of PZOBO's directions.

    Raises:
        ConfigError: an argument is out of range.

    Example:
        >>> from metalearn import RegularizationTuning
        >>> module = RegularizationTuning(initial_log_penalty=-4.0)
        >>> module.build({"features": 3, "classes": 2})  # a Trainer reads them from its data
        >>> module.x.tolist()
        [-4.0, -4.0, -4.0]
    """

    def __init__(
        self,
        features: int | None = None,
        classes: int | None = None,
        initial_log_penalty: float = -9.0,
        log_penalty_range: tuple[float, float] | None = None,
        algorithm: AlgorithmName = "bio",
        estimator: EstimatorName = "aid_cg",
        outer_lr: float = 1000.0,
        inner_lr: float = 20.0,
        inner_steps: int = 10,
        inner_momentum: float = 0.9,
        linear_steps: int = 5,
        linear_lr: float = 20.0,
        period: int = 3,
        outer_optimizer: OptimizerCallable | None = None,
        seed: int = 0,
    ) -> None:
        check_size_arguments(features=features, classes=classes)
        check_number("initial_log_penalty", initial_log_penalty, "use -9, since it is a logarithm", least=-50, most=50)
        options = AlgorithmOptions(
            algorithm=algorithm, estimator=estimator, outer_lr=outer_lr, inner_lr=inner_lr, inner_steps=inner_steps,
            inner_momentum=inner_momentum, linear_steps=linear_steps, linear_lr=linear_lr, period=period,
        )  # fmt: skip
        made = options.make()
        if log_penalty_range is not None:
            made = _project(made, log_penalty_range, initial_log_penalty, outer_optimizer is not None)
        super().__init__(_Regularization(initial_log_penalty), made, seed, outer_optimizer)
        self.save_hyperparameters(ignore=["outer_optimizer"])
        self.initial_log_penalty = initial_log_penalty

    def pictures(self, run: RunRecord) -> list[Picture]:
        """Return the learned penalties, and the costs of a training."""
        return [penalties_picture(self.x, run), *super().pictures(run)]


def _project(
    algorithm: Algorithm, bounds: tuple[float, float], initial_log_penalty: float, has_optimizer: bool
) -> ProximalBiO:
    """Make the algorithm whose steps stay within the bounds."""
    check_numbers("log_penalty_range", bounds, "use [-12.0, 0.0], or leave it out", count=2)
    low, high = bounds
    box = Box(low, high)  # refuses a range that is the wrong way round
    if not low <= initial_log_penalty <= high:
        raise ConfigError(
            f"initial_log_penalty is {initial_log_penalty}, outside of log_penalty_range=({low}, {high}); start within it"
        )
    if not isinstance(algorithm, BiO) or has_optimizer:
        raise ConfigError(
            f"log_penalty_range is ({low}, {high}), but only the steps of algorithm='bio' without an outer_optimizer are "
            "projected; leave one of them out"
        )
    return ProximalBiO(estimator=algorithm.estimator, step_size=algorithm.step_size, prox=box)
