"""How a module's weights and its network get into a checkpoint, and what must hold before they are taken out of one."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from metalearn.carried import build_network, class_path
from metalearn.carried.files import is_extra_state
from metalearn.errors import CheckpointError
from metalearn.inner import StepStatistics

__all__ = ["build_backbone", "check_state", "describe_backbone", "rename_old_keys", "with_versions"]

STATISTICS = ("running_mean", "running_var")


def describe_backbone(backbone: nn.Module) -> dict[str, Any] | None:
    """``{"class_path", "init_args"}`` of a network that records its own arguments, else ``None``."""
    arguments = getattr(backbone, "init_args", None)
    if not isinstance(arguments, dict):
        return None
    return {"class_path": class_path(type(backbone)), "init_args": dict(arguments)}


def build_backbone(description: dict[str, Any] | None, elements: int, path: str | Path) -> nn.Module:
    """Build the network that a checkpoint describes, with fresh weights.

    Args:
        description: of a network of ours, of torchvision, or ``torch.nn.Linear``.
        elements: the numbers in the checkpoint's tensors, which bound its size.
        path: how messages call the checkpoint.

    Raises:
        CheckpointError: the checkpoint does not describe it, names another class, or describes a larger network.
    """
    remedy = "pass it: load_from_checkpoint(path, backbone=YourNetwork())"
    if not description:
        raise CheckpointError(f"checkpoint {path} does not say how its backbone is built; {remedy}")
    try:
        return build_network(description, elements, "its backbone")
    except CheckpointError as error:
        raise CheckpointError(f"checkpoint {path}: {str(error).rpartition('; ')[0]}; {remedy}") from error


def rename_old_keys(module: nn.Module, state: dict[str, Any], prefix: str = "") -> None:
    """Give tensors of an older version's state dict the names that they have now.

    The statistics of the policy ``"per_step"`` stood among the backbone's, and what a solver learns stood in the module itself.

    Args:
        module: that the state is for.
        state: is changed.
        prefix: begins the module's names in it.
    """
    inside = f"{prefix}backbone."
    for name in [name for name in state if name.startswith(inside) and name.endswith((".step_mean", ".step_var"))]:
        layer, _, kind = name.removeprefix(inside).rpartition(".")
        state[f"{prefix}norm_statistics.{StepStatistics.key(layer)}:{kind}"] = state.pop(name)
    solver = module._modules.get("solver")
    own = {name for name, _ in module.named_parameters()}
    for name in [] if solver is None else solver.state_dict():
        old, new = prefix + name, f"{prefix}solver.{name}"
        if old in state and new not in state and name not in own:
            state[new] = state.pop(old)


def check_state(module: nn.Module, state: dict[str, Any]) -> None:
    """Raise in one line if the weights do not fit the module, or say nothing.

    Raises:
        CheckpointError: a tensor is missing, left over, of another shape or kind of number, or not finite.
    """
    own = module.state_dict()
    own, state = ({name: value for name, value in each.items() if not is_extra_state(name)} for each in (own, state))
    for name in sorted(own.keys() | state.keys(), key=str):
        here = list(own[name].shape) if name in own else "absent"
        there = list(state[name].shape) if isinstance(state.get(name), Tensor) else "absent"
        if here != there:
            raise CheckpointError(
                f"the checkpoint is of another architecture: {name} is {there} in it and {here} in this model; build the "
                "model with the checkpoint's own arguments (ways, hidden, image_size), or use the matching checkpoint"
            )
        if _kind(state[name]) != _kind(own[name]):
            raise CheckpointError(
                f"the checkpoint is damaged: {name} is of {state[name].dtype}, but this model's is of {own[name].dtype}; use "
                "another checkpoint of the run"
            )
    learned = {name for name, _ in module.named_parameters()}
    for name, value in state.items():
        # buffers may hold infinities that are meant, such as an attention mask
        bad = ~value.isfinite() if name in learned or name.endswith(STATISTICS) else value.isnan()
        if bool(bad.any()):
            raise CheckpointError(
                f"the checkpoint's weights are not finite: {int(bad.sum())} of the {value.numel()} numbers of {name}; use an "
                "earlier checkpoint of the run"
            )


def with_versions(module: nn.Module, state: dict[str, Any]) -> dict[str, Any]:
    """The weights of a checkpoint with the versions of the layers that they fit, which a file of plain types has not.

    Some layers, such as torchvision's MNASNet, load nothing without them.
    """
    versioned: Any = OrderedDict(state)
    versioned._metadata = cast(Any, module.state_dict())._metadata
    return cast("dict[str, Any]", versioned)


def _kind(value: Tensor) -> str:
    if value.dtype.is_floating_point:
        return "real"
    return "complex" if value.dtype.is_complex else "truth" if value.dtype is torch.bool else "whole"
