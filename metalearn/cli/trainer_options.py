"""Options of the Trainer that need something of ours: said in one line where they cannot do what they are for."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from lightning.pytorch.plugins.io import CheckpointIO

from metalearn.errors import ConfigError
from metalearn.modules.training.checkpoint_io import AtomicCheckpointIO

__all__ = ["barebones", "check_finders", "names", "with_whole_checkpoints"]

IN_THE_WAY = ("logger", "log_every_n_steps", "num_sanity_val_steps", "enable_model_summary", "enable_progress_bar",
              "enable_checkpointing", "profiler", "fast_dev_run", "detect_anomaly")  # fmt: skip
"""What a configuration may set and a Trainer refuses beside ``barebones``, which turns it off anyway."""


def barebones(asked: dict[str, Any]) -> dict[str, Any]:
    """The Trainer's arguments that ``barebones`` leaves to itself; none where it is not asked for."""
    return {name: None for name in IN_THE_WAY if asked.get(name)} if asked.get("barebones") else {}


def check_finders(callbacks: list[L.Callback], model: Any, data: Any) -> None:
    """Refuse callbacks that look for an attribute which is not there.

    Raises:
        ConfigError: with the attribute that is.
    """
    for each in callbacks:
        if isinstance(each, LearningRateFinder) and not _has(("lr", "learning_rate"), model):
            raise ConfigError(
                "LearningRateFinder sets the attribute lr of a module, but this one's learning rate is an argument of "
                "outer_optimizer; compare runs with different --model.outer_optimizer.lr"
            )
        if isinstance(each, BatchSizeFinder):
            name = str(getattr(each, "_batch_arg_name", "batch_size"))
            if not _has((name,), model, data):
                has = "tasks_per_batch" if _has(("tasks_per_batch",), data) else "NAME"
                raise ConfigError(
                    f"BatchSizeFinder sets {name}, which neither the module nor the data has; say which attribute is the size of "
                    f"a batch: --trainer.callbacks.batch_arg_name {has}"
                )


def names(callbacks: Any, kind: type) -> bool:
    """Whether a user names an object of a kind, alone or in a list."""
    every = callbacks if isinstance(callbacks, list) else [callbacks]
    return any(isinstance(each, kind) for each in every)


def with_whole_checkpoints(asked: Any) -> list[Any]:
    """The user's plugins, and checkpoints that are written whole unless they name how checkpoints are written."""
    plugins = asked.get("plugins") or []
    plugins = list(plugins) if isinstance(plugins, (list, tuple)) else [plugins]
    strategy = getattr(asked.get("strategy"), "_checkpoint_io", None)
    return plugins if strategy or names(plugins, CheckpointIO) else [*plugins, AtomicCheckpointIO()]


def _has(names: tuple[str, ...], *objects: Any) -> bool:
    return any(hasattr(each, name) or name in getattr(each, "hparams", {}) for each in objects for name in names)
