"""A linear head that is solved for, where gradient steps would approach it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from metalearn.errors import ConfigError, ShapeError
from metalearn.inner.adaptation import Adaptation, InnerMethod, Settings
from metalearn.inner.learner import Learner
from metalearn.inner.parts import choose_head
from metalearn.inner.rules import Params
from metalearn.inner.solvers.base import TaskSolver

__all__ = ["FittedHead", "HeadFit", "SolvedHead", "SupportFeatures", "check_labels", "mark_absent", "name_tensors"]


@dataclass(frozen=True)
class SupportFeatures:
    """What a head is fitted to.

    Attributes:
        x: the features ``[..., n, F]`` of the support set, in the head's type.
        y: its targets ``[..., n]``.
        ways: how many outputs the head has, ``N``.
        biased: whether it has a bias.
    """

    x: Tensor
    y: Tensor
    ways: int
    biased: bool


HeadFit = Callable[[SupportFeatures, Mapping[str, Tensor | float]], tuple[Tensor, Tensor | None]]
"""``fit(features, settings) -> weight [..., N, F], bias [..., N]``; the bias is ``None`` for a head without one."""


@dataclass(frozen=True)
class SolvedHead(InnerMethod):
    """The head is what a function makes of the support features, after any number of steps.

    Attributes:
        fit: that function; its settings are the solver's.
        needed_by: what asks for it, for messages.
        remedy: what to use instead, for messages.
        weight: the name of the head's weight ``[N, F]``.
        bias: the name of its bias ``[N]``, or ``None``.
    """

    needs_features = True
    fits_one_hot = True
    loss_order = 1

    fit: HeadFit
    needed_by: str
    remedy: str
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
        """Yield the initial head, then the solution."""
        start, _ = adaptation.start(params, len(support))
        solved = {self.weight} if self.bias is None else {self.weight, self.bias}
        if start.keys() != solved:
            raise ConfigError(
                f"{self.needed_by} solves for {' and '.join(sorted(solved))}, but of the head {', '.join(sorted(start))} "
                f"adapts now; unfreeze the whole head and leave it a plain torch.nn.Linear, or {self.remedy}"
            )
        yield start
        head = params[self.weight]
        with torch.autocast(support.device.type, enabled=False):
            features = SupportFeatures(support.to(head.dtype), targets, len(head), self.bias is not None)
            weight, bias = self.fit(features, settings[0])
        adapted = {self.weight: weight}
        if self.bias is not None and bias is not None:
            adapted[self.bias] = bias
        if order < 2:
            adapted = {name: value.detach() for name, value in adapted.items()}
        for _ in range(steps):
            yield adapted


def name_tensors(learner: Learner, head: str, needed_by: str, remedy: str) -> tuple[str, str | None]:
    """The names of the weight and the bias of a head, which an argument ``head`` means.

    Raises:
        ConfigError: it is no plain ``torch.nn.Linear``.
    """
    head = choose_head(learner.backbone, head)
    layer = learner.backbone.get_submodule(head)
    if type(layer) is not nn.Linear:
        raise ConfigError(
            f"{needed_by} solves for the head, but {head!r} is a {type(layer).__name__}, and only a torch.nn.Linear is "
            f"solved for; {remedy}"
        )
    return f"{head}.weight", f"{head}.bias" if layer.bias is not None else None


class FittedHead(TaskSolver):
    """Sets a head to what a function makes of the support features; it learns nothing itself.

    Args:
        learner: the learner that holds the network.
        head: the name of the network's head, a ``torch.nn.Linear`` with a bias.
        fit: makes the head's tensors.
        needed_by: the algorithm that asks for it, for messages.

    Raises:
        ConfigError: the head is another layer, or has no bias.

    Example:
        >>> from metalearn import MLP
        >>> from metalearn.inner import HeadLearner, TaskNorm
        >>> from metalearn.inner.solvers import FittedHead
        >>> from metalearn.inner.solvers.prototypes import fit_prototypes
        >>> network = MLP(outputs=5, inputs=8)
        >>> learner = HeadLearner(network, TaskNorm(network, "transductive"), head="head")
        >>> FittedHead(learner, "head", fit_prototypes, "ProtoNet").method().bias
        'head.bias'
    """

    def __init__(self, learner: Learner, head: str, fit: HeadFit, needed_by: str) -> None:
        super().__init__()
        remedy = "use ANIL, whose head takes gradient steps"
        weight, bias = name_tensors(learner, head, needed_by, remedy)
        if bias is None:
            name = weight.removesuffix(".weight")
            raise ConfigError(
                f"{needed_by} solves for the head, but {name!r} has no bias, which its solution needs; build it with bias=True"
            )
        self._method = SolvedHead(fit, needed_by, remedy, weight, bias)

    def method(self) -> InnerMethod:
        return self._method

    def settings(self, tensors: Params) -> Settings:
        """Nothing."""
        return [{}]


def check_labels(support: SupportFeatures) -> None:
    """Raise unless targets are class labels.

    Raises:
        ShapeError: they are not.
    """
    y = support.y
    if y.is_floating_point() or y.ndim != support.x.ndim - 1:
        raise ShapeError(
            f"support.y is {str(y.dtype).removeprefix('torch.')} of shape {list(y.shape)}, but this head needs integer class "
            "labels, one for each example; use ANIL for other targets"
        )


def mark_absent(counts: Tensor) -> Tensor:
    """What is added to the outputs of each class: very little for classes without examples, so that they are never told.

    Args:
        counts: the support examples of each class, ``[..., N]``, as floats.
    """
    return torch.zeros_like(counts).masked_fill(counts == 0, torch.finfo(counts.dtype).min / 4)
