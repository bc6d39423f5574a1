"""Checks on the arguments of the modules: each raises one line that names the value, the constraint and the remedy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from metalearn.checks import check_choice, check_number, check_whole
from metalearn.errors import ConfigError
from metalearn.inner import Loss, ModuleLoss, UpdateRule, get_rule

__all__ = [
    "LossName",
    "adam",
    "check_backbone",
    "check_choice",
    "check_positive",
    "check_step_size",
    "check_steps",
    "find_rule",
    "get_loss",
    "mean_squared_error",
    "name_default",
]

LossName = Literal["cross_entropy", "mse"]


def adam(params: Iterable[Any]) -> torch.optim.Optimizer:
    """The outer optimiser of the signatures, under a name by which it can be pickled."""
    return torch.optim.Adam(params, lr=1e-3)


def name_default(make: OptimizerCallable) -> OptimizerCallable:
    """:func:`adam` for the lambda of our own signatures, from which the command line reads the class and its arguments."""
    is_ours = (
        str(getattr(make, "__module__", "")).startswith("metalearn.") and getattr(make, "__name__", "") == "<lambda>"
    )
    return adam if is_ours else make


def mean_squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """``mean((o - y)^2)``, written out because ``F.mse_loss`` has no forward-over-reverse derivative."""
    return ((outputs - targets) ** 2).mean()


def get_loss(loss: LossName | Callable[[Tensor, Tensor], Tensor], backbone: nn.Module) -> Loss:
    """The loss function of a name; a callable as it is; a module with tensors of its own as one whose parameters are outer ones.

    Raises:
        ConfigError: it is none of these, or shares a parameter with the network.
    """
    losses: dict[Any, Loss] = {"cross_entropy": F.cross_entropy, "mse": mean_squared_error}
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
    check_choice("loss", loss, list(losses))
    return losses[loss]


def check_steps(name: str, value: object, most: int = 1_000_000) -> None:
    """Raise unless ``value`` is a whole number in ``1..most``."""
    check_whole(name, value, 1, most, f"use {name}=1 or more")


def check_step_size(name: str, value: object, remedy: str = "use 0.4 for Omniglot or 0.01 for miniImageNet") -> None:
    """Raise unless ``value`` is a finite number above 0."""
    check_number(name, value, remedy=remedy)


def check_positive(name: str, value: object, or_zero: bool = False) -> None:
    """Raise unless ``value`` is a finite number above 0 (or 0 itself)."""
    check_number(name, value, or_least=or_zero)


def find_rule(rule: str | UpdateRule | Mapping[str, Any]) -> UpdateRule:
    """The update rule of a name, of a description, or of a class of ``torch.optim`` by its full name."""
    if isinstance(rule, str) and rule.startswith("torch.optim."):
        from metalearn.compat.higher import HigherRule

        return HigherRule(rule)
    return get_rule(rule)


def check_backbone(backbone: object) -> None:
    """Raise unless ``backbone`` is a network that an eager second-order inner loop can differentiate."""
    if not isinstance(backbone, nn.Module):
        raise ConfigError(
            f"backbone is a {type(backbone).__name__}, but it must be a torch.nn.Module that maps [n, ...] to logits "
            "[n, ways]; pass for example metalearn.backbones.Conv4(ways=5)"
        )
    for name, layer in backbone.named_modules():
        where = "backbone" if not name else f"layer {name!r} of the backbone"
        if isinstance(layer, torch._dynamo.OptimizedModule) or layer._compiled_call_impl is not None:
            raise ConfigError(
                f"{where} is compiled, but torch.compile has no double backward, so second-order gradients would fail; pass the "
                "network as it was before, and compile=True for a step that is compiled whole"
            )
        if isinstance(layer, torch.jit.ScriptModule):
            raise ConfigError(
                f"{where} is TorchScript, which cannot be called with other weights than its own, as adaptation does; pass the "
                "network that it was made from"
            )
        if isinstance(layer, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            raise ConfigError(
                f"{where} is a {type(layer).__name__}, which calls copies of the network with weights of its own, not with "
                "adapted ones; pass its .module, and strategy='ddp' to the trainer"
            )
        lazy = [key for key, value in layer._parameters.items() if isinstance(value, UninitializedParameter)]
        if lazy:
            raise ConfigError(
                f"{where} is a {type(layer).__name__} whose {lazy[0]} has no shape before its first call; call the network on an "
                "example once, backbone(x), before you pass it"
            )
    if not any(True for _ in backbone.parameters()):
        raise ConfigError(
            "backbone has no trainable parameters, but the inner loop needs some; pass a network with weights"
        )
