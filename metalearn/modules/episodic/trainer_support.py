"""What must hold for a trainer to run a module: its settings, and the network."""

from __future__ import annotations

import lightning as L
from torch import nn

from metalearn.errors import ConfigError
from metalearn.modules.training.eager import say_if_compiled
from metalearn.modules.training.precision import say_if_slow

__all__ = ["check_run", "check_trainer"]


def check_run(trainer: L.Trainer, backbone: nn.Module, network: nn.Module) -> None:
    """Raise unless meta-gradients are right under a trainer, and reach all that the optimiser sees of a network.

    Args:
        trainer: that runs the module.
        backbone: of the module.
        network: that the inner loop runs.

    Raises:
        ConfigError: they are not, or do not.
    """
    check_trainer(trainer)
    reached = {id(value) for value in network.parameters()}
    if any(id(value) not in reached for value in backbone.parameters()):
        raise ConfigError(
            "backbone is another network than the one that the module was built with, which the inner loop still runs; "
            "change its layers in place, or build a new module"
        )


def check_trainer(trainer: L.Trainer) -> None:
    """Raise unless meta-gradients are right under a trainer's precision and strategy; say it if they are slow.

    Raises:
        ConfigError: they are not.
    """
    precision = str(trainer.precision)
    if precision.startswith("16"):
        raise ConfigError(
            f"precision is {precision}, but no algorithm here runs in fp16, where gradients of inner loops underflow, since only "
            "the outer loss is scaled; use precision=bf16-mixed or 32-true"
        )
    strategy = type(trainer.strategy).__name__
    if "FSDP" in strategy or "DeepSpeed" in strategy or "ModelParallel" in strategy:
        raise ConfigError(
            f"strategy is {strategy}, but the inner loop needs every parameter whole on each device; use strategy=ddp"
        )
    say_if_slow(trainer)
    say_if_compiled(trainer)
