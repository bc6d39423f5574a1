"""The module that a checkpoint holds, whatever its class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from metalearn.carried import read_checkpoint, read_entry
from metalearn.carried.classes import MODULES, find_class, short
from metalearn.checks import quote_value
from metalearn.errors import CheckpointError, ConfigError
from metalearn.inner.adaptation import Adaptation
from metalearn.inner.adapters import Adapter
from metalearn.inner.learner import Learner

__all__ = ["find_learner", "load"]


def load(
    checkpoint: str | Path,
    backbone: nn.Module | None = None,
    loss: Any = None,
    map_location: Any = "cpu",
    adapter: Adapter | None = None,
) -> Any:
    """Build the module that a checkpoint holds, in ``eval()``. Nothing in the file is run.

    Args:
        checkpoint: a file, or the name of a shipped one: ``metalearn list checkpoints`` shows these.
        backbone: the network, where it is one of your own; ``None`` for the one that the checkpoint describes.
        loss: the loss, where it was a function; ``None`` for the one that the checkpoint names.
        map_location: the device, as in ``torch.load``.
        adapter: the adapter, where it is one of your own; ``None`` for the one that the checkpoint describes.

    Returns:
        A ``MAML``, an ``ANIL``, or whatever was trained.

    Raises:
        CheckpointError: the file cannot be read, or is of a class of your own.

    Example:
        >>> import metalearn
        >>> module = metalearn.load("maml_glyphs_5w1s")
        >>> type(module).__name__, type(module.backbone).__name__, module.training
        ('MAML', 'Conv4', False)
    """
    name = read_entry(read_checkpoint(checkpoint), checkpoint).class_path
    kind = find_class(name, MODULES)
    if kind is None:
        raise CheckpointError(
            f"checkpoint {checkpoint} is of {short(name) if name else 'no class of ours'}, which is not built from a "
            "file unasked; use YourModule.load_from_checkpoint(path)"
        )
    parts = {
        name: value
        for name, value in (("backbone", backbone), ("loss", loss), ("adapter", adapter))
        if value is not None
    }
    return kind.load_from_checkpoint(checkpoint, map_location=map_location, **parts).eval()


def find_learner(source: Any) -> Learner:
    """The strategy of a module.

    Args:
        source: the module, or its checkpoint.

    Raises:
        ConfigError: it is neither.
    """
    module = load(source) if isinstance(source, (str, Path)) else source
    adaptation = getattr(module, "adaptation", None)
    if not isinstance(adaptation, Adaptation):
        raise ConfigError(
            f"source is {quote_value(source)}, but it must be a module that adapts to tasks, or its checkpoint; pass the one "
            "that was adapted"
        )
    return adaptation.learner
