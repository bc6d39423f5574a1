"""Update rules of the inner loop, as pure functions of parameters, gradients and state that autograd can differentiate."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metalearn.checks import check_flag, check_number, check_numbers, find_nearest
from metalearn.errors import ConfigError
from metalearn.inner.described import describe_object, is_ours

__all__ = ["RULES", "SGD", "Adam", "AdamW", "Momentum", "Params", "UpdateRule", "get_rule"]

Params = dict[str, Tensor]


class UpdateRule(ABC):
    """One inner step. A rule keeps nothing itself: its state is passed in and returned, so that tasks cannot meet in it.

    Example:
        >>> import torch
        >>> from metalearn.inner import UpdateRule
        >>> class SignDescent(UpdateRule):
        ...     def step(self, params, grads, state, step_sizes):
        ...         signs = {name: grad.sign() for name, grad in grads.items()}
        ...         return {k: w - step_sizes[k] * signs[k] for k, w in params.items()}, state
        >>> params, grads = {"w": torch.tensor([1.0])}, {"w": torch.tensor([7.0])}
        >>> SignDescent().step(params, grads, None, {"w": 0.5})[0]
        {'w': tensor([0.5000])}
    """

    batches = True
    """Whether the rule may run on tensors with a leading task axis."""

    decoupled = False
    """Whether weight decay shrinks the weights themselves, in the place of joining the gradient."""

    def describe(self) -> dict[str, Any]:
        """The rule in plain types, from which :func:`get_rule` makes it again."""
        return describe_object(self)

    def with_decay(self, rate: float) -> UpdateRule:
        """The rule with a rate of weight decay above 0: itself, unless its decay is decoupled and so part of its own step."""
        return self

    def start(self, params: Params) -> Any:
        """The state before the first step."""
        return None

    @abstractmethod
    def step(
        self, params: Params, grads: Params, state: Any, step_sizes: Mapping[str, Tensor | float]
    ) -> tuple[Params, Any]:
        """The parameters and the state after one step, differentiable in all arguments."""


@dataclass(frozen=True)
class SGD(UpdateRule):
    """``w <- w - lr * g`` for each tensor (Finn et al. 2017, equation 1).

    Example:
        >>> import torch
        >>> from metalearn.inner import SGD
        >>> params, grads = {"w": torch.tensor([1.0])}, {"w": torch.tensor([2.0])}
        >>> SGD().step(params, grads, None, {"w": 0.25})[0]
        {'w': tensor([0.5000])}
    """

    def step(
        self, params: Params, grads: Params, state: Any, step_sizes: Mapping[str, Tensor | float]
    ) -> tuple[Params, Any]:
        return {name: _minus(value, grads[name], step_sizes[name]) for name, value in params.items()}, state


@dataclass(frozen=True)
class Momentum(UpdateRule):
    """``m <- momentum * m + g; w <- w - lr * m``, or with ``nesterov`` ``w <- w - lr * (g + momentum * m)``; as torch's SGD.

    Args:
        momentum: the share of the last step that is kept, at least 0 and below 1.
        nesterov: take the gradient's look-ahead form (Sutskever et al. 2013).

    Example:
        >>> import torch
        >>> from metalearn.inner import Momentum
        >>> rule, params, state = Momentum(momentum=0.5), {"w": torch.tensor([1.0])}, None
        >>> for _ in range(2):
        ...     params, state = rule.step(params, {"w": torch.tensor([1.0])}, state, {"w": 0.25})
        >>> params  # 1 - 0.25 (1 + 1.5)
        {'w': tensor([0.3750])}
    """

    momentum: float = 0.9
    nesterov: bool = False

    def __post_init__(self) -> None:
        check_number("momentum", self.momentum, "use 0.9", least=0, below=1)
        check_flag("nesterov", self.nesterov)

    def step(
        self, params: Params, grads: Params, state: Any, step_sizes: Mapping[str, Tensor | float]
    ) -> tuple[Params, Any]:
        velocity = grads if state is None else {k: self.momentum * state[k] + g for k, g in grads.items()}
        moves = {k: g + self.momentum * velocity[k] for k, g in grads.items()} if self.nesterov else velocity
        return {name: _minus(value, moves[name], step_sizes[name]) for name, value in params.items()}, velocity


@dataclass(frozen=True)
class Adam(UpdateRule):
    """Adam with bias correction (Kingma and Ba 2015), as torch's.

    Where the second moment is 0 the step is 0, and so is the derivative that its square root would not have.

    Args:
        betas: the decay rates of the first and second moment, each at least 0 and below 1.
        eps: a small number that is added to the root of the second moment.

    Example:
        >>> from metalearn import MAML, MLP
        >>> from metalearn.inner import Adam
        >>> module = MAML(MLP(), inner_lr=0.01, inner_optimizer=Adam(betas=(0.5, 0.9)), loss="mse")
        >>> module.hparams["inner_optimizer"]["class_path"]
        'Adam'
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        check_numbers("betas", self.betas, "use (0.9, 0.999)", count=2)
        check_number("eps", self.eps, "use 1e-8", least=0)
        for index, beta in enumerate(self.betas):
            check_number(f"betas[{index}]", beta, "use (0.9, 0.999)", least=0, below=1)

    def step(
        self, params: Params, grads: Params, state: Any, step_sizes: Mapping[str, Tensor | float]
    ) -> tuple[Params, Any]:
        beta1, beta2 = self.betas
        count, first, second = state or (0, None, None)
        count += 1
        first = {k: (1 - beta1) * g + (0 if first is None else beta1 * first[k]) for k, g in grads.items()}
        second = {k: (1 - beta2) * g * g + (0 if second is None else beta2 * second[k]) for k, g in grads.items()}
        updated = {}
        for name, value in params.items():
            corrected = second[name] / (1 - beta2**count)
            moves = corrected > 0
            root = torch.where(moves, torch.where(moves, corrected, 1.0).sqrt(), 0.0)
            move = first[name] / (1 - beta1**count) / (root + self.eps)
            updated[name] = _minus(self._decay(value, step_sizes[name]), move, step_sizes[name])
        return updated, (count, first, second)

    def _decay(self, value: Tensor, step_size: Tensor | float) -> Tensor:
        return value


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay, ``w <- (1 - lr * weight_decay) w`` before each step (Loshchilov and Hutter 2019).

    Args:
        betas: the decay rates of the first and second moment, each at least 0 and below 1.
        eps: a small number that is added to the root of the second moment.
        weight_decay: the rate of decay, at least 0.

    Example:
        >>> from metalearn.inner import AdamW
        >>> AdamW(weight_decay=0.1)
        AdamW(betas=(0.9, 0.999), eps=1e-08, weight_decay=0.1)
    """

    weight_decay: float = 0.01

    decoupled = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("weight_decay", self.weight_decay, "use 0.01", least=0)

    def with_decay(self, rate: float) -> UpdateRule:
        """The rule with this rate in the place of the default one.

        Raises:
            ConfigError: it has another rate of its own.
        """
        if self.weight_decay not in (AdamW.weight_decay, rate):
            raise ConfigError(
                f"inner_weight_decay is {rate}, but AdamW's own weight_decay is {self.weight_decay}; leave one of them out"
            )
        return dataclasses.replace(self, weight_decay=rate)

    def _decay(self, value: Tensor, step_size: Tensor | float) -> Tensor:
        return value * (1 - step_size * self.weight_decay)


RULES: dict[str, UpdateRule] = {
    "sgd": SGD(),
    "momentum": Momentum(),
    "nesterov": Momentum(nesterov=True),
    "adam": Adam(),
    "adamw": AdamW(),
}


CLASSES: dict[str, type[UpdateRule]] = {kind.__name__: kind for kind in (SGD, Momentum, Adam, AdamW)}


def get_rule(rule: str | UpdateRule | Mapping[str, Any]) -> UpdateRule:
    """Look an update rule up by its name, or build it from its description; a rule is returned as it is.

    Raises:
        ConfigError: there is no rule of that name.

    Example:
        >>> from metalearn.inner import get_rule
        >>> get_rule("nesterov")
        Momentum(momentum=0.9, nesterov=True)
    """
    if isinstance(rule, UpdateRule):
        return rule
    if isinstance(rule, Mapping):
        spelled = str(rule.get("class_path"))
        name = spelled.rpartition(".")[2]
        if name in CLASSES and is_ours(spelled):
            arguments = dict(rule.get("init_args") or {})
            return CLASSES[name](**{k: tuple(v) if isinstance(v, list) else v for k, v in arguments.items()})
    elif rule in RULES:
        return RULES[rule]
    near = find_nearest(str(rule), list(RULES), 1) or ["sgd"]
    raise ConfigError(
        f"inner_optimizer is {rule!r}, but it must be one of {', '.join(RULES)}, or a class of torch.optim by its full "
        f"name such as 'torch.optim.Adagrad'; use {near[0]!r}"
    )


def _minus(value: Tensor, move: Tensor, step_size: Tensor | float) -> Tensor:
    if isinstance(step_size, Tensor):
        return value - step_size * move
    return value.add(move, alpha=-step_size)  # keeps nothing for the backward pass, which sub would give a pass more
