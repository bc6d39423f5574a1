"""A linear head whose inner problem is solved in closed form (R2-D2, Bertinetto et al. 2019)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn.errors import ConfigError
from metalearn.inner.adaptation import Adaptation
from metalearn.inner.rules import Params, StepSizes

__all__ = ["RidgeAdaptation", "solve_ridge"]


def solve_ridge(features: Tensor, targets: Tensor, ridge: Tensor | float) -> Tensor:
    """The minimiser ``W`` of ``mean_i |z_i W - y_i|^2 / 2 + ridge |W|^2 / 2``: ``(Z'Z/n + ridge I)^-1 Z'Y/n``.

    Solves the smaller of the primal and the dual system, in float32 or wider; differentiable in all arguments.

    Args:
        features: ``Z`` ``[..., n, F]``.
        targets: ``Y`` ``[..., n, N]``.
        ridge: above 0.

    Returns:
        ``[..., F, N]``.
    """
    count, width = features.shape[-2:]
    across = features.transpose(-1, -2)
    if count <= width:
        eye = torch.eye(count, dtype=features.dtype, device=features.device)
        return across @ torch.linalg.solve(features @ across + count * ridge * eye, targets)
    eye = torch.eye(width, dtype=features.dtype, device=features.device)
    return torch.linalg.solve(across @ features / count + ridge * eye, across @ targets / count)


@dataclass(frozen=True)
class RidgeAdaptation(Adaptation):
    """The head's weight and bias after any number of steps are the ridge regression of one-hot labels (or of float targets)
    on the support features, times a scale; the bias is the weight of a constant feature 1.

    Attributes:
        weight: the name of the head's weight ``[N, F]``.
        bias: the name of its bias ``[N]``, or ``None``.
    """

    needs_features: ClassVar[bool] = True

    weight: str = "head.weight"
    bias: str | None = "head.bias"

    def iterates(
        self, params: Params, support: Tensor, targets: Tensor, steps: int, step_sizes: StepSizes, order: int
    ) -> Iterator[Params]:
        """Yield the initial head, then the solution. ``step_sizes[0]`` holds ``"log_ridge"`` and ``"scale"``."""
        start, _ = self.split(params)
        solved = {self.weight} if self.bias is None else {self.weight, self.bias}
        if start.keys() != solved:
            raise ConfigError(
                f"head_solver='ridge' solves for {' and '.join(sorted(solved))}, but of the head {', '.join(sorted(start))} "
                "adapts now; unfreeze the whole head and leave it a plain torch.nn.Linear, or use head_solver='gradient'"
            )
        if self.stacked:
            start = {name: value.expand(len(support), *value.shape) for name, value in start.items()}
        yield start
        head = params[self.weight]
        with torch.autocast(support.device.type, enabled=False):
            features = support.to(head.dtype)
            if self.bias is not None:
                features = F.pad(features, (0, 1), value=1.0)
            if not targets.is_floating_point():
                targets = F.one_hot(targets, len(head))
            ridge = torch.as_tensor(step_sizes[0]["log_ridge"]).exp()
            solution = solve_ridge(features, targets.to(head.dtype), ridge) * step_sizes[0]["scale"]
        solution = solution.transpose(-1, -2)
        if order < 2:
            solution = solution.detach()
        adapted = {self.weight: solution}
        if self.bias is not None:
            adapted = {self.weight: solution[..., :-1], self.bias: solution[..., -1]}
        for _ in range(steps):
            yield adapted
