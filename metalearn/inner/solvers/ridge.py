"""A linear head whose inner problem is solved in closed form (R2-D2, Bertinetto et al. 2019)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.errors import ConfigError
from metalearn.inner.adaptation import Adaptation, InnerMethod, Settings
from metalearn.inner.learner import Learner
from metalearn.inner.ridge import solve_ridge
from metalearn.inner.rules import Params
from metalearn.inner.solvers.base import TaskSolver

__all__ = ["RidgeMethod", "RidgeSolver"]


@dataclass(frozen=True)
class RidgeMethod(InnerMethod):
    """The head is the ridge regression of one-hot labels (or of float targets) on the support features, times a scale.

    It is so after any number of steps. The bias is the weight of a constant feature 1.

    Attributes:
        weight: the name of the head's weight ``[N, F]``.
        bias: the name of its bias ``[N]``, or ``None``.
    """

    needs_features = True
    fits_one_hot = True
    loss_order = 1

    weight: str
    bias: str | None

    def iterates(
        self,
        adaptation: Adaptation,
        params: Params,
        support: Tensor,
        targets: Tensor,
        steps: int,
        settings: Settings,
        order: int,
    ) -> Iterator[Params]:
        """Yield the initial head, then the solution. ``settings[0]`` holds ``"log_ridge"`` and ``"scale"``."""
        start, _ = adaptation.start(params, len(support))
        solved = {self.weight} if self.bias is None else {self.weight, self.bias}
        if start.keys() != solved:
            raise ConfigError(
                f"head_solver='ridge' solves for {' and '.join(sorted(solved))}, but of the head {', '.join(sorted(start))} "
                "adapts now; unfreeze the whole head and leave it a plain torch.nn.Linear, or use head_solver='gradient'"
            )
        yield start
        solution = self._solve(params[self.weight], support, targets, settings)
        if order < 2:
            solution = solution.detach()
        adapted = {self.weight: solution}
        if self.bias is not None:
            adapted = {self.weight: solution[..., :-1], self.bias: solution[..., -1]}
        for _ in range(steps):
            yield adapted

    def _solve(self, head: Tensor, features: Tensor, targets: Tensor, settings: Settings) -> Tensor:
        """The rows of the weight, with the bias as the last column: ``[..., N, F]`` or ``[..., N, F + 1]``."""
        with torch.autocast(features.device.type, enabled=False):
            features = features.to(head.dtype)
            if self.bias is not None:
                features = F.pad(features, (0, 1), value=1.0)
            if not targets.is_floating_point():
                targets = F.one_hot(targets, len(head))
            ridge = torch.as_tensor(settings[0]["log_ridge"]).exp()
            solution = solve_ridge(features, targets.to(head.dtype), ridge) * settings[0]["scale"]
        return solution.transpose(-1, -2)


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
        layer = learner.backbone.get_submodule(head)
        if type(layer) is not nn.Linear:
            raise ConfigError(
                f"head_solver is 'ridge', but the head {head!r} is a {type(layer).__name__}, and only that of a "
                "torch.nn.Linear has a closed form; use head_solver='gradient'"
            )
        self.log_ridge = nn.Parameter(torch.tensor(initial_ridge).log())
        self.scale = nn.Parameter(torch.tensor(1.0))
        self._method = RidgeMethod(f"{head}.weight", f"{head}.bias" if layer.bias is not None else None)

    def method(self) -> InnerMethod:
        return self._method

    def settings(self, tensors: Params) -> Settings:
        """The learned weight and scale."""
        return [{"log_ridge": self.log_ridge, "scale": self.scale}]
