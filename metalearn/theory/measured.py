"""What was measured over tasks: values with their spread, and a table of them."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["MeasuredConstants", "Spread"]


class Spread(NamedTuple):
    """A value over tasks.

    Attributes:
        mean: over tasks.
        std: the sample standard deviation over tasks; 0 of one task.
        least: the smallest.
        most: the largest.
        tasks: how many there were.

    Example:
        >>> import torch
        >>> from metalearn.theory import Spread
        >>> print(Spread.of(torch.tensor([1.0, 2.0, 3.0])))
        2 ± 1 (1 to 3, 3 tasks)
    """

    mean: float
    std: float
    least: float
    most: float
    tasks: int

    @classmethod
    def of(cls, values: Tensor) -> Spread:
        """The spread of values ``[B]``."""
        numbers = values.detach().double().flatten().cpu()
        std = float(numbers.std()) if len(numbers) > 1 else 0.0
        return cls(float(numbers.mean()), std, float(numbers.min()), float(numbers.max()), len(numbers))

    def __str__(self) -> str:
        values = f"{self.mean:.3g} ± {self.std:.3g} ({self.least:.3g} to {self.most:.3g}"
        return f"{values}, {self.tasks} task{'s' * (self.tasks != 1)})"


@dataclass(frozen=True)
class MeasuredConstants:
    """The constants of a module's inner problems, as :func:`measure_constants` has measured them.

    The support loss of a task is a function of what adapts, ``w``. Its Hessian is ``H(w)``, and ``w_0, ..., w_N`` are the
    weights after each inner step. Names are those of the thesis (arXiv 2108.00330).

    Attributes:
        L: the smoothness ``|H(w_0)|``: the largest absolute eigenvalue.
        sharpness: the largest eigenvalue of ``H(w_0)``.
        path_L: ``|H(w_j)|`` for ``j = 0, ..., N``.
        mu: the smallest eigenvalue of ``H(w_0)`` within the head; ``None`` where no head adapts. Below 0, the problem of the
            head is not convex.
        rho: the largest ``|H(w_{j+1}) - H(w_j)| / |w_{j+1} - w_j|`` on the path. It is a lower bound of the Lipschitz constant.
        support_gradient: the norm of the gradient of the support loss at ``w_0``.
        query_gradient: the norm of the gradient of the query loss by ``w`` at ``w_N``.
        meta_gradient: the norm of a task's meta-gradient by what adapts; ``None`` where it does not pass through the steps.
        query_variance: the mean of ``|g - mean(g)|^2`` over tasks, of that query gradient.
        meta_variance: likewise of the meta-gradient.
        products: the Hessian-vector products that were taken for each task.

    Example:
        >>> import torch
        >>> from metalearn import MAML, MLP, Batch, Episode
        >>> from metalearn.theory import measure_constants
        >>> x = torch.linspace(-1.0, 1.0, 10).reshape(1, 10, 1).repeat(4, 1, 1)
        >>> episode = Episode(Batch(x, 2 * x), Batch(x, 2 * x))
        >>> module = MAML(torch.nn.Linear(1, 1), inner_steps=2, inner_lr=0.1, loss="mse")
        >>> constants = measure_constants(module, episode)
        >>> round(constants.L.mean, 3), constants.L.tasks, round(constants.rho.mean, 3)
        (2.0, 4, 0.0)
    """

    L: Spread
    sharpness: Spread
    path_L: tuple[Spread, ...]
    mu: Spread | None
    rho: Spread | None
    support_gradient: Spread
    query_gradient: Spread
    meta_gradient: Spread | None
    query_variance: float
    meta_variance: float | None
    products: int = field(default=0)

    @property
    def largest_L(self) -> float:
        """The largest smoothness of any task at any point of its path."""
        return max(spread.most for spread in self.path_L)

    def as_dict(self) -> dict[str, Any]:
        """All values in plain types, for JSON."""
        values = {part.name: getattr(self, part.name) for part in dataclasses.fields(self)}
        return {name: _plain(value) for name, value in values.items()}

    def __str__(self) -> str:
        """A table, a line for each constant."""
        last = len(self.path_L) - 1
        lines: list[tuple[str, Any]] = [
            ("L at w_0", self.L), ("largest eigenvalue at w_0", self.sharpness), (f"L at w_{last}", self.path_L[-1]),
            ("mu of the head", self.mu), ("rho on the path", self.rho), ("|support gradient| at w_0", self.support_gradient),
            (f"|query gradient| at w_{last}", self.query_gradient), ("|meta-gradient|", self.meta_gradient),
            ("variance of query gradient", self.query_variance), ("variance of meta-gradient", self.meta_variance),
        ]  # fmt: skip
        rows = [(name, "not measured" if value is None else _format(value)) for name, value in lines]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name.ljust(width)}  {value}" for name, value in rows)


def summarise(parts: list[dict[str, Tensor]], steps: int, products: int) -> MeasuredConstants:
    """The constants of what was measured in parts of some tasks each."""
    joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0] if not name.startswith("sum_")}
    spreads = {name: Spread.of(values) for name, values in joined.items()}
    return MeasuredConstants(
        L=spreads["L_0"],
        sharpness=spreads["sharpness"],
        path_L=tuple(spreads[f"L_{step}"] for step in range(steps + 1)),
        mu=spreads.get("mu"),
        rho=spreads.get("rho"),
        support_gradient=spreads["support"],
        query_gradient=spreads["query"],
        meta_gradient=spreads.get("meta"),
        query_variance=_find_variance(parts, joined, "query"),
        meta_variance=_find_variance(parts, joined, "meta") if "meta" in joined else None,
        products=products,
    )


def _find_variance(parts: list[dict[str, Tensor]], joined: dict[str, Tensor], name: str) -> float:
    """``mean |g - mean(g)|^2`` over tasks, with one task less below, from the norms and the sum of the gradients."""
    lengths = joined[name].double()
    tasks = len(lengths)
    mean = torch.stack([part[f"sum_{name}"] for part in parts]).sum(0) / tasks
    if tasks == 1:
        return 0.0
    return max(float(lengths.square().sum() - tasks * mean.square().sum()), 0.0) / (tasks - 1)


def _plain(value: Any) -> Any:
    if isinstance(value, Spread):
        return value._asdict()
    return [part._asdict() for part in value] if isinstance(value, tuple) else value


def _format(value: Spread | float) -> str:
    return str(value) if isinstance(value, Spread) else f"{value:.3g}" if math.isfinite(value) else str(value)
