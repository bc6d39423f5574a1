"""The losses of the inner and the outer problem: by name, a function, or a module whose parameters are outer ones."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from metalearn.checks import check_choice
from metalearn.errors import ConfigError
from metalearn.inner.bands import BandLoss, GaussianNLL, Quantiles
from metalearn.inner.learner import evaluating
from metalearn.inner.named_losses import NAMED
from metalearn.inner.rules import Params

__all__ = [
    "HALVES",
    "Loss",
    "LossFunction",
    "LossName",
    "ModuleLoss",
    "compute_loss",
    "describe_loss",
    "double_loss",
    "evaluating_loss",
    "get_loss",
    "loss_tensors",
    "network_tensors",
    "share_loss",
]

Loss = Callable[[Tensor, Tensor], Tensor]
"""``loss(outputs [n, ...], targets [n, ...]) -> scalar``, a mean over the ``n`` examples."""

LossName = Literal["cross_entropy", "mse", "l1", "huber", "gaussian_nll", "quantile", "binary_cross_entropy"]
LossFunction = LossName | nn.Module | BandLoss | Callable[[Tensor, Tensor], Tensor]
"""A loss as a user gives it; see :func:`get_loss`."""

PREFIX = ".loss."
"""Begins the names of a loss's parameters among the outer tensors; no tensor of a network has a name that begins so."""

HALVES = (torch.float16, torch.bfloat16)


class ModuleLoss:
    """A ``torch.nn.Module`` as a loss.

    Args:
        module: ``module(outputs, targets) -> scalar``.

    Example:
        >>> import torch
        >>> from metalearn.inner import ModuleLoss
        >>> loss = ModuleLoss(torch.nn.MSELoss())
        >>> loss(torch.tensor([1.0, 3.0]), torch.tensor([0.0, 3.0]))
        tensor(0.5000)
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def outer(self) -> Params:
        """Its trainable parameters, under names that no network's tensor has."""
        return {PREFIX + name: value for name, value in self.module.named_parameters() if value.requires_grad}

    def over(self, module: nn.Module) -> ModuleLoss:
        """The same loss over another module of the same structure."""
        return ModuleLoss(module)

    def __call__(self, outputs: Tensor, targets: Tensor, params: Params | None = None) -> Tensor:
        """The loss at the parameters among ``params``, or at its own; what it writes into its buffers is dropped."""
        tensors: Params = dict(self.module.named_parameters())
        tensors |= {name: value.clone() for name, value in self.module.named_buffers()}
        tensors |= {
            name.removeprefix(PREFIX): value for name, value in (params or {}).items() if name.startswith(PREFIX)
        }
        wide = {name: value.float() if value.dtype in HALVES else value for name, value in tensors.items()}
        value: Tensor = functional_call(self.module, wide, (outputs, targets))
        return value


DESCRIBED: dict[str, Callable[..., BandLoss]] = {"GaussianNLL": GaussianNLL, "Quantiles": Quantiles}
"""The losses that plain types describe, so that a checkpoint can hold them."""


def describe_loss(loss: object) -> object:
    """A loss as a checkpoint keeps it, in plain types; ``None`` if it can keep none."""
    if isinstance(loss, BandLoss) and type(loss) in DESCRIBED.values():
        return loss.describe()
    return None if callable(loss) else loss


def get_loss(loss: LossFunction | Mapping[str, Any], backbone: nn.Module) -> Loss:
    """The loss function of a name; a callable as it is; a module with tensors of its own as one whose parameters are outer ones.

    A loss that :func:`describe_loss` has described is made again.

    Raises:
        ConfigError: it is none of these, or shares a parameter with the network.
    """
    if isinstance(loss, Mapping):
        name = str(loss.get("class_path")).rpartition(".")[2]
        check_choice("loss", name, list(DESCRIBED))
        return DESCRIBED[name](**loss.get("init_args") or {})
    if isinstance(loss, type):
        raise ConfigError(f"loss is the class {loss.__name__}, but it must be an instance; use loss={loss.__name__}()")
    if isinstance(loss, nn.Module):
        own = {id(value) for value in backbone.parameters()}
        for name, value in loss.named_parameters():
            if id(value) in own:
                raise ConfigError(
                    f"loss shares its parameter {name} with the backbone, but the inner loop moves only the network's own; "
                    "compute the term from the outputs, or use inner_weight_decay"
                )
        return ModuleLoss(loss) if [*loss.parameters(), *loss.buffers()] else loss
    if callable(loss):
        return loss
    check_choice("loss", loss, list(NAMED))
    return NAMED[loss]


def compute_loss(loss: Loss, params: Params, outputs: Tensor, targets: Tensor) -> Tensor:
    """The loss, in float32 where outputs are shorter.

    Args:
        loss: the loss.
        params: tensors by name, those of the loss among them.
        outputs: ``[n, ...]``.
        targets: ``[n, ...]``.
    """
    if outputs.dtype in HALVES:
        outputs = outputs.float()
        targets = targets.float() if targets.dtype in HALVES else targets
    return loss(outputs, targets, params) if isinstance(loss, ModuleLoss) else loss(outputs, targets)


def evaluating_loss(loss: Loss) -> contextlib.AbstractContextManager[None]:
    """Within this context a loss that is a module is in ``eval()``."""
    return evaluating(loss.module) if isinstance(loss, ModuleLoss) else contextlib.nullcontext()


def loss_tensors(loss: Loss) -> Params:
    """The outer tensors that a loss adds to the network's."""
    return loss.outer() if isinstance(loss, ModuleLoss) else {}


def network_tensors(params: Params) -> Params:
    """The tensors of the network alone."""
    if not any(name.startswith(PREFIX) for name in params):
        return params
    return {name: value for name, value in params.items() if not name.startswith(PREFIX)}


def share_loss(loss: Loss) -> Loss:
    """A loss of a structure of its own over the same tensors; a function as it is."""
    if not isinstance(loss, ModuleLoss):
        return loss
    shared = {id(tensor): tensor for tensor in (*loss.module.parameters(), *loss.module.buffers())}
    return loss.over(copy.deepcopy(loss.module, shared))


def double_loss(loss: Loss) -> Loss:
    """A copy in float64, of the arguments of a ``functools.partial`` too; another function as it is."""
    if isinstance(loss, ModuleLoss):
        return loss.over(copy.deepcopy(loss.module).double())
    if isinstance(loss, functools.partial):
        named = {name: _double(value) for name, value in loss.keywords.items()}
        return functools.partial(loss.func, *map(_double, loss.args), **named)
    return loss


def _double(value: object) -> object:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
