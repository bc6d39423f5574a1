"""What a checkpoint says of the network inside it, and how the network is built again from that."""

from __future__ import annotations

import importlib
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from metalearn.errors import CheckpointError
from metalearn.inner import StepStatistics

__all__ = ["KEY", "build_backbone", "check_state", "describe_backbone", "read_checkpoint", "rename_old_keys"]

KEY = "metalearn"
"""The checkpoint entry that holds our own description: plain types only."""

TRUSTED = ("metalearn.", "torchvision.models.")
"""A checkpoint may name classes of these packages; building any other class from a file would run foreign code."""


def describe_backbone(backbone: nn.Module) -> dict[str, Any] | None:
    """``{"class_path", "init_args"}`` of a network that records its own arguments, else ``None``."""
    arguments = getattr(backbone, "init_args", None)
    if not isinstance(arguments, dict):
        return None
    return {"class_path": f"{type(backbone).__module__}.{type(backbone).__qualname__}", "init_args": dict(arguments)}


def build_backbone(description: dict[str, Any] | None, path: str | Path) -> nn.Module:
    """Build the network that a checkpoint describes, with fresh weights.

    Raises:
        CheckpointError: the checkpoint does not describe it, or names a class outside :data:`TRUSTED`.
    """
    name = (description or {}).get("class_path", "")
    if not description or not str(name).startswith(TRUSTED):
        what = f"names the backbone {name}" if name else "does not say how its backbone is built"
        raise CheckpointError(
            f"checkpoint {path} {what}, which is not built from a file unasked; pass it: "
            "load_from_checkpoint(path, backbone=YourNetwork())"
        )
    module, _, attribute = name.rpartition(".")
    try:
        network = getattr(importlib.import_module(module), attribute)(**description["init_args"])
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"checkpoint {path} describes the backbone {name}, which this version cannot build ({error}); pass it: "
            "load_from_checkpoint(path, backbone=YourNetwork())"
        ) from error
    if not isinstance(network, nn.Module):
        raise CheckpointError(
            f"checkpoint {path} names {name} as its backbone, but that is no network; use another file"
        )
    return network


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a Lightning checkpoint of plain types and tensors; nothing in it is executed.

    Raises:
        CheckpointError: the file is missing, truncated, not a checkpoint, or holds more than plain types.
    """
    if "://" in str(path):
        raise CheckpointError(f"checkpoint {path} is remote, and remote files are not loaded; download it first")
    if not Path(path).is_file():
        raise CheckpointError(f"checkpoint {path} does not exist; the summary of a fit names the one that it wrote")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, zipfile.BadZipFile, OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"checkpoint {path} cannot be read as plain tensors ({reason}); it is truncated, foreign or unsafe: use the "
            "last.ckpt or best.ckpt of a run"
        ) from error
    if not isinstance(found, dict) or "state_dict" not in found:
        raise CheckpointError(
            f"checkpoint {path} has no state_dict, so it is no Lightning checkpoint; use a run's best.ckpt"
        )
    return found


def rename_old_keys(state: dict[str, Any]) -> None:
    """Give the statistics of the policy ``"per_step"`` their name where an older version kept them among the backbone's."""
    for name in [name for name in state if name.startswith("backbone.") and name.endswith((".step_mean", ".step_var"))]:
        layer, _, kind = name.removeprefix("backbone.").rpartition(".")
        state[f"norm_statistics.{StepStatistics.key(layer)}:{kind}"] = state.pop(name)


def check_state(module: nn.Module, state: dict[str, Any]) -> None:
    """Raise in one line if the weights do not fit the module.

    Raises:
        CheckpointError: a tensor is missing, left over, or of another shape.
    """
    own = module.state_dict()
    for name in sorted(own.keys() | state.keys()):
        here = list(own[name].shape) if name in own else "absent"
        there = list(state[name].shape) if name in state else "absent"
        if here != there:
            raise CheckpointError(
                f"the checkpoint is of another architecture: {name} is {there} in it and {here} in this model; build the "
                "model with the checkpoint's own arguments (ways, hidden, image_size), or use the matching checkpoint"
            )
