"""Which settings of a trainer the inner loop is right under."""

from __future__ import annotations

import lightning as L

from metalearn.errors import ConfigError
from metalearn.modules.training.precision import say_if_slow

__all__ = ["check_trainer"]


def check_trainer(trainer: L.Trainer) -> None:
    """Raise unless meta-gradients are right under a trainer's precision and strategy; say it if they are slow.

    Raises:
        ConfigError: they are not.
    """
    precision = str(trainer.precision)
    if precision.startswith("16"):
        raise ConfigError(
            f"precision is {precision}, but fp16 gradients of the inner loop underflow, since only the outer loss is "
            "scaled; use precision=bf16-mixed or 32-true"
        )
    strategy = type(trainer.strategy).__name__
    if "FSDP" in strategy or "DeepSpeed" in strategy or "ModelParallel" in strategy:
        raise ConfigError(
            f"strategy is {strategy}, but the inner loop needs every parameter whole on each device; use strategy=ddp"
        )
    say_if_slow(trainer)
