"""Hyper-cleaning: which training labels are wrong."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from metalearn.bilevel.problem import BilevelProblem
from metalearn.bilevel.problems.cleaning import cleaning_constants, cleaning_problem, detection_auroc, linear_logits
from metalearn.checks import check_number
from metalearn.modules.problem_based.linear_models import LinearBilevel, check_size_arguments
from metalearn.modules.problem_based.names import AlgorithmName, AlgorithmOptions, EstimatorName
from metalearn.modules.problem_based.outcome import weights_picture
from metalearn.reports.outcome import Picture, RunRecord

__all__ = ["HyperCleaning"]


def find_corrupted(data: Any) -> Tensor | None:
    """Return which training labels a data module knows to be wrong, ``[n]`` bool; ``None`` unless some are and some are not."""
    corrupted: Tensor | None = getattr(data, "corrupted", None)
    return None if corrupted is None or not 0 < int(corrupted.sum()) < len(corrupted) else corrupted


@dataclass(frozen=True)
class _Cleaning:
    """The problem of :class:`HyperCleaning`."""

    l2: float
    initial_scale: float
    seed: int

    size_names = "examples", "features", "classes"

    def read_sizes(self, data: Any) -> dict[str, int]:
        train = data.part("train")
        largest = max(train.y.max(), data.part("val").y.max())
        return {"examples": len(train.y), "features": train.x.shape[1], "classes": 1 + int(largest)}

    def make(self, sizes: dict[str, int]) -> tuple[BilevelProblem, Tensor]:
        problem = cleaning_problem(
            features=sizes["features"],
            classes=sizes["classes"],
            l2=self.l2,
            init_scale=self.initial_scale,
            seed=self.seed,
        )
        return problem, torch.zeros(sizes["examples"])

    def add_constants(self, problem: BilevelProblem, train: Any, val: Any, sizes: dict[str, int]) -> BilevelProblem:
        return dataclasses.replace(problem, constants=cleaning_constants(train, val, self.l2))

    def logits(self, y: Tensor, x: Any) -> Tensor:
        return linear_logits(y, x)

    def measure(self, x: Tensor, data: Any) -> dict[str, float]:
        corrupted = find_corrupted(data)
        return {} if corrupted is None else {"auroc": detection_auroc(x, corrupted)}


class HyperCleaning(LinearBilevel):
    """Learn a weight for each training example, such that wrong labels weigh little.

    The linear model that minimises the weighted loss is to do well on clean validation examples (arXiv 2108.00330, section
    4.4.1); a weight is ``sigmoid(x_i)``::

        min_x mean_val CE(W*),  W* = argmin_W mean_i sigmoid(x_i) CE_i(W) + l2 |W|^2.

    Logs ``val/auroc`` and ``test/auroc``, how well small weights find the corrupted labels, where the data module knows them.

    Args:
        examples: how many training examples there are; ``None`` for as many as the data module has.
        features: how many features an example has; ``None`` for those of the data module.
        classes: how many classes the labels have; ``None`` for those of the data module.
        l2: the weight of ``|W|^2`` in the inner loss, above 0.
        algorithm: the outer algorithm: ``"bio"``, ``"mrbo"`` or ``"vrbo"``. For ``"bio"`` the estimator says which:
            AID-BiO, ITD-BiO, stocBiO or PZOBO.
        estimator: how the hypergradient is estimated: ``"aid_cg"``, ``"aid_fp"``, ``"aid_neumann"``, ``"itd"``,
            ``"stoc_bio"`` or ``"pzobo"``.
        outer_lr: the step size of ``x``. It is large, since a hypergradient has entries of the order 1 over the
            examples.
        inner_lr: the step size of ``W``.
        inner_steps: how many steps ``W`` takes in an outer step.
        inner_momentum: the momentum of Nesterov's method; 0 for gradient descent.
        linear_steps: how many iterations solve the linear system. For stocBiO and PZOBO this is ``Q``.
        linear_lr: the step size of the fixed point and of the Neumann series.
        period: how many outer steps lie between two large batches of VRBO.
        initial_scale: the standard deviation of the initial ``W``.
        outer_optimizer: makes another optimiser of ``x`` for ``"bio"``; ``None`` for SGD with ``outer_lr``.
        seed: the seed of the initial ``W`` and of PZOBO's directions.

    Raises:
        ConfigError: an argument is out of range.

    Example:
        >>> from metalearn import HyperCleaning
        >>> module = HyperCleaning(l2=0.001)
        >>> sizes = {"examples": 4, "features": 784, "classes": 10}  # a Trainer reads them from its data
        >>> module.build(sizes)
        >>> module.weights.tolist()
        [0.5, 0.5, 0.5, 0.5]
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
        check_size_arguments(examples=examples, features=features, classes=classes)
        check_number("l2", l2, "use 0.001", above=0)
        check_number("initial_scale", initial_scale, "use 0.01", least=0)
        options = AlgorithmOptions(
            algorithm=algorithm, estimator=estimator, outer_lr=outer_lr, inner_lr=inner_lr, inner_steps=inner_steps,
            inner_momentum=inner_momentum, linear_steps=linear_steps, linear_lr=linear_lr, period=period,
        )  # fmt: skip
        super().__init__(_Cleaning(l2, initial_scale, seed), options.make(), seed, outer_optimizer)
        self.save_hyperparameters(ignore=["outer_optimizer"])
        self.l2, self.initial_scale = l2, initial_scale

    @property
    def weights(self) -> Tensor:
        """The weights learned so far, ``[examples]``, in 0..1."""
        weights: Tensor = self.x.sigmoid()
        return weights

    @property
    def corrupted(self) -> Tensor | None:
        """Which training labels the data module knows to be wrong, ``[examples]`` bool; ``None`` where it knows of none."""
        return find_corrupted(self.data)

    def pictures(self, run: RunRecord) -> list[Picture]:
        """Return the learned weights, and the costs of a training."""
        return [weights_picture(self.weights, find_corrupted(run.data), run), *super().pictures(run)]
