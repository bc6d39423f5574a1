"""The outer optimiser and its schedule as a user gives them, checked and put as Lightning takes them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import LRSchedulerConfig
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from metalearn.errors import ConfigError

__all__ = ["NEVER", "Scheduler", "adam", "check_outer", "make_optimizer", "name_default", "read_schedule"]

Scheduler = Literal["cosine"] | LRSchedulerCallable | None
"""The outer schedule as a user says it."""

NEVER = 1 << 62
"""A frequency at which Lightning steps no schedule: the module steps it after each validation."""


def adam(params: Iterable[Any]) -> torch.optim.Optimizer:
    """The outer optimiser of the signatures, under a name by which it can be pickled."""
    return torch.optim.Adam(params, lr=1e-3)


def name_default(make: OptimizerCallable) -> OptimizerCallable:
    """:func:`adam` for the lambda of our own signatures, from which the command line reads the class and its arguments."""
    is_ours = (
        str(getattr(make, "__module__", "")).startswith("metalearn.") and getattr(make, "__name__", "") == "<lambda>"
    )
    return adam if is_ours else make


def check_outer(optimizer: object, scheduler: object) -> None:
    """Raise unless both are what makes them, and not what they make.

    Raises:
        ConfigError: one of them is something else.
    """
    if isinstance(optimizer, Optimizer) or not callable(optimizer):
        raise ConfigError(
            f"outer_optimizer is a {type(optimizer).__name__}, but it must be a function of the parameters that makes one; use "
            "outer_optimizer=lambda params: torch.optim.Adam(params, lr=1e-3)"
        )
    if scheduler is None or scheduler == "cosine":
        return
    if isinstance(scheduler, (LRScheduler, ReduceLROnPlateau)) or not callable(scheduler):
        what = repr(scheduler) if isinstance(scheduler, str) else f"a {type(scheduler).__name__}"
        raise ConfigError(
            f"outer_scheduler is {what}, but it must be 'cosine', None, or a function of the optimiser that makes one; use "
            "outer_scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1000)"
        )


def make_optimizer(make: Callable[[Any], Any], params: Iterator[Any], learning_rate: float | None) -> Optimizer:
    """The optimiser, with another learning rate if there is one.

    Raises:
        ConfigError: ``make`` gives something else.
    """
    made = make(params)
    if not isinstance(made, Optimizer):
        raise ConfigError(
            f"outer_optimizer gives a {type(made).__name__}, but it must give one torch.optim.Optimizer; schedules are "
            "outer_scheduler's"
        )
    if learning_rate is not None:
        for group in made.param_groups:
            group["lr"] = learning_rate
    return made


def read_schedule(made: Any, optimizer: Optimizer, trainer: L.Trainer | None) -> dict[str, Any]:
    """Lightning's description of what ``outer_scheduler`` gave.

    A scheduler is stepped at every outer step, or at every validation if it watches a metric. Such a description itself is left
    as it is.

    Raises:
        ConfigError: it is neither, is of another optimiser, or would watch the loss for its maximum.
    """
    config = dict(made) if isinstance(made, dict) else {"scheduler": made}
    scheduler = config.get("scheduler")
    known = {field.name for field in fields(LRSchedulerConfig)}
    if not isinstance(scheduler, (LRScheduler, ReduceLROnPlateau)) or not config.keys() <= known:
        what = f"a dict of {', '.join(map(str, config))}" if isinstance(made, dict) else f"a {type(made).__name__}"
        raise ConfigError(
            f"outer_scheduler gives {what}, but it must give one scheduler of torch.optim.lr_scheduler, or Lightning's dict of "
            f"{', '.join(sorted(known))}; join several with SequentialLR or ChainedScheduler"
        )
    if getattr(scheduler, "optimizer", optimizer) is not optimizer:
        raise ConfigError(
            "outer_scheduler gives a scheduler of another optimiser, but it must be of the one that it is called with; use "
            "lambda optimizer: StepLR(optimizer, 1000)"
        )
    if not isinstance(scheduler, ReduceLROnPlateau):
        return config if isinstance(made, dict) else {"interval": "step", **config}
    monitor = config.get("monitor") or getattr(scheduler, "monitor", None)
    if monitor is None and scheduler.mode == "max":
        raise ConfigError(
            "outer_scheduler is a ReduceLROnPlateau with mode='max' that does not say what it watches, and val/loss falls; "
            "use lightning.pytorch.cli.ReduceLROnPlateau(optimizer, monitor='val/acc', mode='max')"
        )
    config["monitor"] = monitor or "val/loss"
    if not isinstance(made, dict) and trainer is not None and config["monitor"].startswith("val"):
        config |= _after_validation(trainer)
    return config


def _after_validation(trainer: L.Trainer) -> dict[str, Any]:
    """How often the schedule is stepped: once for every validation."""
    every = trainer.check_val_every_n_epoch
    if every is not None and trainer.val_check_interval == 1.0:
        return {"interval": "epoch", "frequency": every}
    return {"interval": "step", "frequency": NEVER}
