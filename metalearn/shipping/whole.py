"""Files that hold all tensors of a network of ours, and so can say how it is built: they need no checkpoint beside them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metalearn.carried import build_network, check_network
from metalearn.errors import CheckpointError
from metalearn.inner.learner import Learner
from metalearn.inner.norm.task_norm import TaskNorm
from metalearn.shipping.description import Description, damaged

__all__ = ["build_learner", "find_whole"]

WHERE = "its network"


def find_whole(
    network: nn.Module, description: dict[str, Any] | None, adapted: Mapping[str, Tensor]
) -> dict[str, Any] | None:
    """How a network is built, if all its parameters adapted and its description builds the same layers; else ``None``.

    Args:
        network: as the user passed it.
        description: ``{"class_path", "init_args"}``; ``None`` for a network that does not say it.
        adapted: the parameters that adapted, by name.
    """
    own = dict(network.named_parameters())
    if description is None or adapted.keys() != own.keys():
        return None
    numbers = sum(value.numel() for value in own.values())
    try:
        checked = check_network(description, numbers, WHERE)
        with torch.device("meta"):
            built = build_network(checked, numbers, WHERE)
    except CheckpointError:  # a network of the user's own, or with arguments that are no plain types
        return None
    alike = repr(built) == repr(network) and _shapes(built) == _shapes(network)
    return checked if alike else None


def build_learner(path: str | Path, tensors: dict[str, Tensor], saved: Description) -> Learner:
    """The network that a file describes, with the file's buffers, which are taken out of ``tensors``.

    Raises:
        CheckpointError: the file does not describe its network, or another one.
    """
    if saved.backbone is None:
        raise CheckpointError(
            f"adapted model {path} does not hold a whole network, but {len(tensors)} tensors of a {saved.network}; name the "
            "checkpoint that it was adapted from (--ckpt_path), or pass that module"
        )
    try:
        network = build_network(saved.backbone, sum(value.numel() for value in tensors.values()), WHERE)
    except CheckpointError as error:
        raise damaged(path, str(error).rpartition("; ")[0] or str(error)) from error
    own = dict(network.named_parameters())
    absent = [name for name in own if name not in tensors]
    if absent:
        raise damaged(path, f"it lacks {absent[0]}")
    network.to(tensors[next(iter(own))].dtype).eval()
    kept = network.state_dict()
    for name in [name for name in tensors if name in kept and name not in own]:
        value = tensors.pop(name)
        if value.shape != kept[name].shape or value.dtype != kept[name].dtype:
            raise damaged(path, f"its {name} is {list(value.shape)} of {value.dtype}")
        kept[name].copy_(value)
    return Learner(network, TaskNorm(network, "transductive"))


def _shapes(network: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in network.state_dict().items() if isinstance(value, Tensor)}
