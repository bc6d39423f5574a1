"""Hyper-cleaning: which training labels are wrong."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from metalearn.bilevel.problem import BilevelProblem
from metalearn.bilevel.problems.cleaning import cleaning_constants, cleaning_problem, detection_auroc, linear_logits
from metalearn.checks import check_number
from metalearn.modules.problem_based.linear_models import LinearBilevel
from metalearn.modules.problem_based.names import AlgorithmName, EstimatorName, make_algorithm
from metalearn.modules.problem_based.outcome import weights_picture
from metalearn.reports.outcome import Picture, RunRecord

__all__ = ["HyperCleaning"]


class HyperCleaning(LinearBilevel):
    """Learn a weight ``sigmoid(x_i)`` for each training example such that the linear model that minimises the weighted loss does
    well on clean validation examples (arXiv 2108.00330, section 4.4.1):

        min_x mean_val CE(W*),  W* = argmin_W mean_i sigmoid(x_i) CE_i(W) + l2 |W|^2.

    Logs ``val/auroc`` and ``test/auroc``, how well small weights find the corrupted labels, where the data module knows them.

    Args:
        examples: training examples; ``None`` for those of the data module, as for the next two.
        features: of an example.
        classes: of the labels.
        l2: of the inner loss, above 0.
        algorithm: ``"bio"`` (AID-BiO, ITD-BiO, stocBiO, PZOBO by their estimator), ``"mrbo"`` or ``"vrbo"``.
        estimator: ``"aid_cg"``, ``"aid_fp"``, ``"aid_neumann"``, ``"itd"``, ``"stoc_bio"`` or ``"pzobo"``.
        outer_lr: step size of ``x``; a hypergradient has entries of the order 1 over the examples.
        inner_lr: of ``W``.
        inner_steps: of ``W`` in an outer step.
        inner_momentum: of Nesterov's method; 0 for gradient descent.
        linear_steps: iterations for the linear system; ``Q`` of stocBiO and PZOBO.
        linear_lr: step size of the fixed point and the Neumann series.
        period: of VRBO, outer steps between its large batches.
        initial_scale: deviation of the initial ``W``.
        outer_optimizer: makes another optimiser of ``x`` for ``"bio"``; ``None`` for SGD with ``outer_lr``.
        seed: of the initial ``W`` and of the directions of PZOBO.

    Raises:
        ConfigError: an argument is out of range.
    """

    def __init__(
        self,
        examples: int | None = None,
        features: int | None = None,
        classes: int | None = None,
        l2: float = 0.001,
        algorithm: AlgorithmName = "bio",
        estimator: EstimatorName = "aid_cg",
        outer_lr: float = 3e4,
        inner_lr: float = 0.3,
        inner_steps: int = 5,
        inner_momentum: float = 0.0,
        linear_steps: int = 3,
        linear_lr: float = 0.3,
        period: int = 3,
        initial_scale: float = 0.01,
        outer_optimizer: OptimizerCallable | None = None,
        seed: int = 0,
    ) -> None:
        check_number("l2", l2, "use 0.001", above=0)
        check_number("initial_scale", initial_scale, "use 0.01", least=0)
        made = make_algorithm(
            algorithm, estimator, outer_lr, inner_lr, inner_steps, inner_momentum, linear_steps, linear_lr, period
        )
        super().__init__(made, seed, outer_optimizer)
        self.save_hyperparameters(ignore=["outer_optimizer"])
        self.l2, self.initial_scale = l2, initial_scale
        self.corrupted: Tensor | None = None

    @property
    def size_names(self) -> tuple[str, ...]:
        return "examples", "features", "classes"

    def sizes(self, data: Any) -> dict[str, int]:
        train = data.part("train")
        largest = max(train.y.max(), data.part("val").y.max())
        return {"examples": len(train.y), "features": train.x.shape[1], "classes": 1 + int(largest)}

    def make_problem(self, sizes: dict[str, int]) -> tuple[BilevelProblem, Tensor]:
        problem = cleaning_problem(
            features=sizes["features"],
            classes=sizes["classes"],
            l2=self.l2,
            init_scale=self.initial_scale,
            seed=self.seed,
        )
        return problem, torch.zeros(sizes["examples"])

    def with_constants(self, problem: BilevelProblem, train: Any, val: Any) -> BilevelProblem:
        return dataclasses.replace(problem, constants=cleaning_constants(train, val, self.l2))

    def logits(self, y: Tensor, x: Any) -> Tensor:
        return linear_logits(y, x)

    @property
    def weights(self) -> Tensor:
        """``[examples]``, those learned so far, in 0..1."""
        found: Tensor = self.x.sigmoid()
        return found

    def pictures(self, run: RunRecord) -> list[Picture]:
        """The learned weights, and the costs of a training."""
        return [weights_picture(self.weights, self.corrupted, run), *super().pictures(run)]

    def more_results(self) -> dict[str, float]:
        data = getattr(self.trainer, "datamodule", None)
        corrupted = getattr(data, "corrupted", None)
        if corrupted is None or not 0 < int(corrupted.sum()) < len(corrupted):
            return {}
        self.corrupted = corrupted
        return {"auroc": detection_auroc(self.x.cpu(), corrupted)}
