"""The network that a checkpoint describes: laid out without memory first, and built if the checkpoint has its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from metalearn.carried.classes import LAYERS, NETWORKS, find_class, short
from metalearn.carried.names import class_path
from metalearn.carried.values import check_arguments, check_class, signature
from metalearn.errors import CheckpointError, on_one_line

__all__ = ["build_network", "check_network"]

MOST_CALLS = 20_000
"""Calls of torch in a constructor; a DenseNet-201 makes some 7,000."""
NOT_BUILT = (
    TypeError, ValueError, RuntimeError, ZeroDivisionError, IndexError, KeyError, AssertionError, OverflowError,
)  # fmt: skip
"""What constructors raise for arguments that do not fit."""
COUNTING = (torch.arange, torch.linspace, torch.tensor)
MOST_COUNTED = 10_000
"""Numbers that a constructor may compute its widths from, as that of a RegNet does."""


def check_network(description: object, elements: int, where: str) -> dict[str, Any]:
    """The description in plain types, of a network that is no larger than the weights there are.

    Args:
        description: ``{"class_path": NAME, "init_args": {...}}``.
        elements: the numbers in all tensors of the checkpoint's ``state_dict``.
        where: how messages call it.

    Raises:
        CheckpointError: it names a class or an argument that is not on a closed list, or describes a larger network.
    """
    kind, arguments = check_class(description, NETWORKS, where)
    checked = check_arguments(kind, arguments, where)
    if "weights" in checked:
        checked["weights"] = None  # it has the weights itself, and no file here is read because it names one
    if isinstance(checked.get("config"), str):
        raise CheckpointError(
            f"{where}.config is {short(checked['config'])}, but a checkpoint holds the fields of a config; use a checkpoint as a "
            "run wrote it"
        )
    try:
        network = _lay_out(kind, _resolve(checked, signature(kind)), where)
    except NOT_BUILT as error:
        raise CheckpointError(
            f"{where}: a {kind.__name__} of these arguments cannot be built ({on_one_line(error)})"
        ) from error
    size = sum(value.numel() for value in network.parameters())
    if size > elements:
        raise CheckpointError(
            f"{where} describes a network of {size:,} weights, but there are {elements:,} in the file; use a checkpoint as a run "
            "wrote it"
        )
    return {"class_path": class_path(kind), "init_args": checked}


def build_network(description: object, elements: int, where: str) -> nn.Module:
    """The network that a checkpoint describes, with fresh weights.

    Raises:
        CheckpointError: see :func:`check_network`.
    """
    checked = check_network(description, elements, where)
    kind, arguments = check_class(checked, NETWORKS, where)
    network: nn.Module = kind(**_resolve(arguments, signature(kind)))
    return network


def _lay_out(kind: type[Any], arguments: Mapping[str, Any], where: str) -> nn.Module:
    """The network without memory for its weights."""
    try:
        with torch.device("meta"), _Bounded(where):
            network: nn.Module = kind(**arguments)
    except NOT_BUILT as error:
        if "meta tensor" not in str(error):
            raise
        with torch.device("meta"), _Bounded(where, counts=True):
            network = kind(**arguments)
    return network


def _resolve(arguments: Mapping[str, Any], hints: Mapping[str, Any]) -> dict[str, Any]:
    """Checked arguments with the classes that they name."""

    def resolve(name: str, value: Any) -> Any:
        if isinstance(value, dict) and "class_path" in value:
            layer, inside = check_class(value, LAYERS, name)
            return lambda *sizes, **more: layer(*sizes, **{**inside, **more})
        named = find_class(value, LAYERS) if isinstance(value, str) and hints.get(name) is not str else None
        return value if named is None else named

    return {name: resolve(name, value) for name, value in arguments.items()}


class _Bounded(TorchFunctionMode):
    """Raises where a constructor makes more layers than a network has.

    Args:
        where: how messages call the network.
        counts: whether short ranges have values, although all else is on the device ``meta``.
    """

    def __init__(self, where: str, counts: bool = False) -> None:
        super().__init__()
        self.where, self.left, self.counts = where, MOST_CALLS, counts

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.left -= 1
        if self.left < 0:
            raise CheckpointError(
                f"{self.where} describes a network of too many layers; use a checkpoint as a run wrote it"
            )
        named = kwargs or {}
        made = func(*args, **named)
        if self.counts and func in COUNTING and made.is_meta and made.numel() <= MOST_COUNTED:
            return func(*args, **{**named, "device": "cpu"})
        return made
