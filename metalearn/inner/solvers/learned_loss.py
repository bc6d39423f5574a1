"""Gradient steps on the support loss plus a loss that is learned, and fits itself to the task (MeTAL, Baik et al. 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.errors import ConfigError, ShapeError
from metalearn.inner.adaptation import InnerMethod, Settings
from metalearn.inner.inner_loop import InnerLoop
from metalearn.inner.learner import Learner
from metalearn.inner.rules import Params
from metalearn.inner.solvers.base import TaskSolver
from metalearn.inner.step_sizes import InnerStepSizes
from metalearn.inner.support_gradient import Setting, StepwiseMethod

__all__ = ["LearnedLossSteps", "LearnedTerm", "StepLoss", "count_outputs"]

PREFIX = ".term."
"""Begins the names of a loss network's tensors in a step's setting; no tensor of a network has a name that begins so."""

TENSORS = ("loss.0.weight", "loss.0.bias", "loss.2.weight", "loss.2.bias")
"""Of a loss network, in the order of the factors and shifts that a task makes for them."""

LEAST_VARIANCE = 1e-5


@dataclass(frozen=True)
class LearnedTerm:
    """The learned loss of a task, ``mean_i MLP(z_i)``.

    ``t`` holds the support loss, and the mean of each tensor of the task's weights. ``z_i`` holds ``t``, the outputs for example
    ``i`` and its target, one-hot where that is a label. A second MLP makes factors and shifts of ``t``, by which each tensor of
    the first is scaled and shifted. ``t`` and the ``z_i`` of a task are brought to mean 0 and variance 1 before that.

    Attributes:
        names: of the network's tensors, in the order in which the loss network knows them. Those that do not move count as 0.
        outputs: how many outputs it takes. Where a task has fewer, the others count as 0.
    """

    names: tuple[str, ...]
    outputs: int

    def tensors(self, setting: Setting) -> Params:
        """Those of the loss network of this step."""
        return {name: torch.as_tensor(value) for name, value in setting.items() if name.startswith(PREFIX)}

    def __call__(self, own: Params, adapted: Params, outputs: Tensor, targets: Tensor, loss: Tensor) -> Tensor:
        """The learned loss, a scalar; the arguments are those of one task."""
        with torch.autocast(loss.device.type, enabled=False):
            tensors = {name.removeprefix(PREFIX): value.to(loss.dtype) for name, value in own.items()}
            means = [
                adapted[name].to(loss.dtype).mean() if name in adapted else loss.new_zeros(()) for name in self.names
            ]
            state = torch.stack([loss, *means])
            first_weight, first_bias, last_weight, last_bias = _fit(tensors, state)
            rows, weights = self._join(outputs.to(loss.dtype), targets, state)
            hidden = F.linear(_standardise(rows, weights), first_weight, first_bias).relu()
            return _average(F.linear(hidden, last_weight, last_bias).squeeze(-1), weights)

    def _join(self, outputs: Tensor, targets: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """A row for each example or place in it, and 0 for those whose label the loss leaves out, else 1."""
        if not targets.is_floating_point() and outputs.ndim == targets.ndim + 1 and outputs.shape[1] > 1:
            values = outputs.movedim(1, -1).flatten(0, -2)
            classes = torch.arange(values.shape[1], device=targets.device)
            wanted = (targets.flatten().unsqueeze(-1) == classes).to(values.dtype)
            weights = wanted.sum(-1)
        else:
            values = outputs.unsqueeze(-1) if outputs.ndim == 1 else outputs.flatten(0, -2)
            if targets.numel() % len(values):
                raise ShapeError(
                    f"the learned loss gets outputs of shape {list(outputs.shape)} and targets of shape {list(targets.shape)}, "
                    "but each row of outputs needs targets of its own; use MAML"
                )
            wanted = targets.reshape(len(values), -1).to(values.dtype)
            weights = values.new_ones(len(values))
        most = max(values.shape[1], wanted.shape[1])
        if most > self.outputs:
            raise ConfigError(
                f"a task has {most} outputs, but the learned loss was made for {self.outputs}; use tasks of at most "
                f"{self.outputs} classes, or outputs={most} in training"
            )
        padded = [F.pad(part, (0, self.outputs - part.shape[1])) for part in (values, wanted)]
        return torch.cat([state.expand(len(values), -1), *padded], -1), weights


class StepLoss(nn.Module):
    """The loss network of one inner step, and the network that fits it to a task.

    Args:
        tensors: how many tensors the task's network has.
        outputs: how many outputs it has.

    Attributes:
        loss: the loss network. Its last layer starts at 0, so that the first steps are those on the support loss alone.
        generator: gives a factor and a shift for each of its four tensors.
        factors: what multiplies the factors, from 0.
        shifts: what multiplies the shifts, from 0.
    """

    def __init__(self, tensors: int, outputs: int) -> None:
        super().__init__()
        state, width = 1 + tensors, 1 + tensors + 2 * outputs
        self.loss = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))
        self.generator = nn.Sequential(nn.Linear(state, state), nn.ReLU(), nn.Linear(state, 2 * len(TENSORS)))
        self.factors = nn.Parameter(torch.zeros(len(TENSORS)))
        self.shifts = nn.Parameter(torch.zeros(len(TENSORS)))
        for value in self.loss[2].parameters():
            nn.init.zeros_(value)


class LearnedLossSteps(TaskSolver):
    """Takes gradient steps on the support loss plus a :class:`LearnedTerm`, and owns a loss network for each step.

    Args:
        options: says how many steps there are.
        steps: takes the steps, by a method that is a :class:`StepwiseMethod`.
        learner: says which tensors adapt.
        outputs: how many outputs the network has; ``None`` for those of its last linear layer.

    Attributes:
        steps: as it was passed.
        losses: a :class:`StepLoss` for each step; the last serves all later steps.

    Raises:
        ConfigError: the network has no linear layer whose outputs could be counted.

    Example:
        >>> from metalearn import MLP, MeTAL
        >>> module = MeTAL(MLP(hidden=[8]), loss="mse", inner_steps=2, inner_lr=0.01)
        >>> len(module.solver.losses), module.solver.losses[0].loss[0]  # a loss, 4 tensors, an output and its target
        (2, Linear(in_features=7, out_features=7, bias=True))
    """

    def __init__(self, options: InnerLoop, steps: TaskSolver, learner: Learner, outputs: int | None = None) -> None:
        super().__init__()
        self.steps = steps
        self._learner, self._count, self._asked = learner, options.inner_steps, outputs
        self._build(learner.able())

    @property
    def step_sizes(self) -> InnerStepSizes:
        """The sizes of every step for every tensor; where they are generated there are none."""
        return cast(InnerStepSizes, self.steps.step_sizes)

    def method(self) -> InnerMethod:
        steps = self.steps.method()
        assert isinstance(steps, StepwiseMethod)
        return steps.with_term(self._term)

    def settings(self, tensors: Params) -> Settings:
        """What takes each step, such as its sizes, and the tensors of its loss network."""
        sizes = self.steps.settings(tensors)
        return [
            {**sizes[min(step, len(sizes) - 1)], **{PREFIX + name: value for name, value in loss.named_parameters()}}
            for step, loss in enumerate(self.losses)
        ]

    def follow(self, tensors: Mapping[str, Tensor]) -> None:
        """Begin anew where the tensors that may adapt have other names, or the network another number of outputs."""
        self.steps.follow(tensors)
        outputs = self._asked or count_outputs(self._learner.backbone)
        if (tuple(tensors), outputs) != (self._term.names, self._term.outputs):
            self._build(tensors)

    def _build(self, tensors: Mapping[str, Tensor]) -> None:
        self._term = LearnedTerm(tuple(tensors), self._asked or count_outputs(self._learner.backbone))
        losses = [StepLoss(len(tensors), self._term.outputs) for _ in range(self._count)]
        self.losses = nn.ModuleList(losses).to(next(iter(tensors.values())).device)


def count_outputs(network: nn.Module) -> int:
    """How many outputs a network has, by the last linear layer of its submodule ``head``, or of the whole.

    Raises:
        ConfigError: there is no such layer.
    """
    head = dict(network.named_children()).get("head", network)
    for part in (head, network):
        counts = [layer.out_features for layer in part.modules() if isinstance(layer, nn.Linear)]
        if counts:
            return counts[-1]
    raise ConfigError(
        f"outputs is None, but {type(network).__name__} has no torch.nn.Linear whose outputs could be counted; say how many "
        "outputs it has: outputs=5"
    )


def _fit(tensors: Params, state: Tensor) -> list[Tensor]:
    """The four tensors of the loss network, scaled and shifted for the task."""
    inputs = _standardise(state, torch.ones_like(state[:1]))
    hidden = F.linear(inputs, tensors["generator.0.weight"], tensors["generator.0.bias"]).relu()
    made = F.linear(hidden, tensors["generator.2.weight"], tensors["generator.2.bias"])
    factors, shifts = made.chunk(2)
    factors, shifts = 1 + tensors["factors"] * factors, tensors["shifts"] * shifts
    return [factors[index] * tensors[name] + shifts[index] for index, name in enumerate(TENSORS)]


def _standardise(rows: Tensor, weights: Tensor) -> Tensor:
    """All entries together to mean 0 and variance 1, where rows of weight 0 do not count."""
    mean = _average(rows.mean(-1), weights)
    variance = _average((rows - mean).square().mean(-1), weights)
    return (rows - mean) * (variance + LEAST_VARIANCE).rsqrt()


def _average(values: Tensor, weights: Tensor) -> Tensor:
    return (values * weights).sum() / weights.sum().clamp(min=1.0)
