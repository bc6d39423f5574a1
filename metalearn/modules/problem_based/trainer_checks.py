"""Settings of the Trainer that would change an algorithm's step, or are not proven right with it."""

from __future__ import annotations

from typing import Any

from metalearn.errors import ConfigError
from metalearn.modules.problem_based.runner import AlgorithmRunner

__all__ = ["check_trainer_fits"]


def check_trainer_fits(trainer: Any, runner: AlgorithmRunner) -> None:
    """Raise unless the Trainer leaves the algorithm's step as it is.

    Raises:
        ConfigError: which setting, and what to do.
    """
    if str(trainer.precision).startswith("16"):
        raise ConfigError(
            f"precision is {trainer.precision}, but fp16 gradients of the inner problem underflow, since only the "
            "surrogate is scaled; use precision=bf16-mixed or 32-true"
        )
    name = type(runner.algorithm).__name__
    if runner.owns_step and trainer.accumulate_grad_batches != 1:
        raise ConfigError(
            f"accumulate_grad_batches is {trainer.accumulate_grad_batches}, but {name} makes its own step of x in each "
            "batch; use 1, and larger batches"
        )
    if runner.owns_step and trainer.gradient_clip_val is not None:
        raise ConfigError(
            f"gradient_clip_val is {trainer.gradient_clip_val}, but {name} makes its own step of x, which would be cut; "
            "leave it out, and lower the step size"
        )
    if trainer.world_size > 1 and not runner.problem.shared_x:
        raise ConfigError(
            f"shared_x is False on {trainer.world_size} ranks, but they average one x; use one rank, or shared_x=True"
        )
