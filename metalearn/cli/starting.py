"""``--start_from``: a run begins with the network of another run's checkpoint."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from metalearn.errors import CheckpointError, ConfigError
from metalearn.shipping.starting import lacks_statistics, start_from

__all__ = ["begin", "naming_start"]

log = logging.getLogger(__name__)


def begin(model: Any, command: str, options: Mapping[str, Any]) -> None:
    """Give a model the network of the checkpoint that ``start_from`` names.

    Args:
        model: of any class, with its network in ``backbone``.
        command: ``fit``, ``validate``, ``test`` or ``predict``.
        options: of the command.

    Raises:
        CheckpointError: the checkpoint holds no such network.
        ConfigError: the model has no network, or normalises by statistics that the checkpoint lacks.
    """
    checkpoint = options.get("start_from")
    if checkpoint is None:
        return
    if options.get("ckpt_path") is not None:
        log.warning("start_from is left out, since ckpt_path holds all weights")
        return
    network = getattr(model, "backbone", None)
    if not isinstance(network, nn.Module):
        raise ConfigError(
            f"start_from is {checkpoint}, but {type(model).__name__} has no network in its attribute backbone; leave it out"
        )
    with naming_start():
        start_from(network, checkpoint)
    if command != "fit" and getattr(model, "norm", None) == "running" and lacks_statistics(network):
        raise ConfigError(
            f"norm is 'running', but the network of {checkpoint} was trained without running statistics; use --model.norm "
            "transductive, or the norm that it was trained with"
        )


@contextlib.contextmanager
def naming_start() -> Iterator[None]:
    """Have messages about a checkpoint say which option has named it."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"start_from: {error}") from error
