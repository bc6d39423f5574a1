"""A linear head whose inner problem is solved in closed form (R2-D2, Bertinetto et al. 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.inner.adaptation import InnerMethod, Settings
from metalearn.inner.learner import Learner
from metalearn.inner.ridge import solve_ridge
from metalearn.inner.rules import Params
from metalearn.inner.solvers.base import TaskSolver
from metalearn.inner.solvers.solved_head import SolvedHead, SupportFeatures, name_tensors

__all__ = ["RidgeSolver"]


def fit_ridge(support: SupportFeatures, settings: Mapping[str, Tensor | float]) -> tuple[Tensor, Tensor | None]:
    """The ridge regression of one-hot labels, or of float targets, times a scale; the bias is the weight of a feature 1.

    Args:
        support: the features and targets.
        settings: ``"log_ridge"``, the logarithm of the weight of the squared norm, and ``"scale"``.
    """
    features = F.pad(support.x, (0, 1), value=1.0) if support.biased else support.x
    targets = support.y if support.y.is_floating_point() else _encode(support.y, support.ways)
    ridge = torch.as_tensor(settings["log_ridge"]).exp()
    solution = solve_ridge(features, targets.to(features.dtype), ridge) * settings["scale"]
    rows = solution.transpose(-1, -2)
    return (rows[..., :-1], rows[..., -1]) if support.biased else (rows, None)


def _encode(labels: Tensor, ways: int) -> Tensor:
    """One-hot vectors ``[..., ways]``; ``F.one_hot`` asks for the largest label."""
    return labels.unsqueeze(-1) == torch.arange(ways, device=labels.device)


class RidgeSolver(TaskSolver):
    """Solves for a linear head, and learns the weight of its squared norm and the scale of its outputs.

    Args:
        learner: the learner that holds the network.
        head: the name of the network's head, a ``torch.nn.Linear``.
        initial_ridge: the value at which the weight starts.

    Attributes:
        log_ridge: the logarithm of the weight.
        scale: the factor that multiplies the solution.

    Raises:
        ConfigError: the head is another layer.

    Example:
        >>> from metalearn import MLP
        >>> from metalearn.inner import HeadLearner, RidgeSolver, TaskNorm
        >>> network = MLP(outputs=5, inputs=8)
        >>> learner = HeadLearner(network, TaskNorm(network, "transductive"), head="head")
        >>> [name for name, _ in RidgeSolver(learner, "head", initial_ridge=1.0).named_parameters()]
        ['log_ridge', 'scale']
    """

    comes_first: ClassVar[bool] = True

    def __init__(self, learner: Learner, head: str, initial_ridge: float) -> None:
        super().__init__()
        asks = "head_solver='ridge'", "use head_solver='gradient'"
        names = name_tensors(learner, head, *asks)
        self.log_ridge = nn.Parameter(torch.tensor(initial_ridge).log())
        self.scale = nn.Parameter(torch.tensor(1.0))
        self._method = SolvedHead(fit_ridge, *asks, *names)

    def method(self) -> InnerMethod:
        return self._method

    def settings(self, tensors: Params) -> Settings:
        """The learned weight and scale."""
        return [{"log_ridge": self.log_ridge, "scale": self.scale}]
