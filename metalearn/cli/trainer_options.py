"""Options of the Trainer that need something of ours: said in one line where they cannot do what they are for."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from lightning.pytorch.plugins.io import CheckpointIO

from metalearn.errors import ConfigError
from metalearn.modules.training.checkpoint_io import AtomicCheckpointIO

__all__ = ["check_finders", "choose_plugins", "contains_kind", "saves_checkpoints", "turn_off_for_barebones"]

IN_THE_WAY = ("logger", "log_every_n_steps", "num_sanity_val_steps", "enable_model_summary", "enable_progress_bar",
              "enable_checkpointing", "profiler", "fast_dev_run", "detect_anomaly")  # fmt: skip
"""What a configuration may set and a Trainer refuses beside ``barebones``, which turns it off anyway."""


def turn_off_for_barebones(asked: dict[str, Any]) -> dict[str, Any]:
    """The Trainer's arguments that ``barebones`` leaves to itself; none where it is not asked for."""
    return {name: None for name in IN_THE_WAY if asked.get(name)} if asked.get("barebones") else {}


def check_finders(callbacks: list[L.Callback], model: Any, data: Any) -> None:
    """Refuse callbacks that look for an attribute which is not there.

    Raises:
        ConfigError: with the attribute that is.
    """
    for callback in callbacks:
        if isinstance(callback, LearningRateFinder) and not _has(("lr", "learning_rate"), model):
            raise ConfigError(
                "LearningRateFinder sets the attribute lr of a module, but this one's learning rate is an argument of "
                "outer_optimizer; compare runs with different --model.outer_optimizer.lr"
            )
        if isinstance(callback, BatchSizeFinder):
            name = str(getattr(callback, "_batch_arg_name", "batch_size"))
            if not _has((name,), model, data):
                has = "tasks_per_batch" if _has(("tasks_per_batch",), data) else "NAME"
                raise ConfigError(
                    f"BatchSizeFinder sets {name}, which neither the module nor the data has; say which attribute is the size of "
                    f"a batch: --trainer.callbacks.batch_arg_name {has}"
                )


def contains_kind(values: Any, kind: type) -> bool:
    """Whether an object of a kind is there, alone or in a list."""
    return any(isinstance(value, kind) for value in (values if isinstance(values, list) else [values]))


def choose_plugins(asked: Any) -> list[Any]:
    """The user's plugins, and checkpoints that are written whole unless they name how checkpoints are written."""
    plugins = asked.get("plugins") or []
    plugins = list(plugins) if isinstance(plugins, (list, tuple)) else [plugins]
    strategy = getattr(asked.get("strategy"), "_checkpoint_io", None)
    return plugins if strategy or contains_kind(plugins, CheckpointIO) else [*plugins, AtomicCheckpointIO()]


def saves_checkpoints(asked: Any) -> bool:
    """Whether a training writes checkpoints; Lightning refuses what does beside ``barebones``."""
    return (
        asked.get("enable_checkpointing") is not False and not asked.get("fast_dev_run") and not asked.get("barebones")
    )


def _has(names: tuple[str, ...], *owners: Any) -> bool:
    return any(hasattr(owner, name) or name in getattr(owner, "hparams", {}) for owner in owners for name in names)
