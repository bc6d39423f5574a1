"""What a run goes on from, held against the run that goes on: where its loops were, its callbacks, its optimisers."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import BaseFinetuning, ModelCheckpoint
from torch import Tensor

from metalearn.carried import check_arguments, read_entry
from metalearn.carried.classes import short
from metalearn.errors import CheckpointError, on_one_line
from metalearn.inner.described import is_ours
from metalearn.modules.training.checkpoint import check_state, rename_old_keys

__all__ = ["check_before", "check_progress"]

_REMEDY = "go on from the last.ckpt of a run of this configuration"
MOST = 1 << 62
SAVER: dict[str, tuple[type, ...]] = {
    "monitor": (str, type(None)), "best_model_score": (Tensor, type(None)), "best_model_path": (str,),
    "current_score": (Tensor, type(None)), "dirpath": (str, type(None)), "best_k_models": (dict,),
    "kth_best_model_path": (str,), "kth_value": (Tensor,), "last_model_path": (str,),
}  # fmt: skip
"""The state of a ``ModelCheckpoint``."""


def check_progress(module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
    """Raise unless a checkpoint that a Trainer has read is what such a run writes, apart from its weights and optimisers.

    An evaluation needs no loops: they are taken out.

    Raises:
        CheckpointError: a part is missing, or of another type.
    """
    trainer: Any = module._trainer
    if trainer is None:
        return
    if trainer.state.fn == "fit":
        check_loops(trainer, checkpoint)
    else:
        checkpoint.pop("loops", None)
    check_callbacks(trainer, checkpoint)
    check_averages(module, checkpoint)


def check_before(module: L.LightningModule, trainer: L.Trainer, checkpoint: dict[str, Any], trains: bool) -> None:
    """As :func:`check_progress`, with weights and optimisers, before a Trainer has begun or written anything.

    Raises:
        CheckpointError: a part is missing, of another type or shape, or not finite.
    """
    read_entry(checkpoint)
    own = dict(module.hparams)
    held = {
        name: value
        for name, value in checkpoint.get("hyper_parameters", {}).items()
        if not _is_users_own(value, own.get(name))
    }
    check_arguments(type(module), held, "the checkpoint's hyper_parameters", strict=False)
    rename_old_keys(module, checkpoint["state_dict"])
    check_state(module, checkpoint["state_dict"])
    check_callbacks(trainer, checkpoint)
    check_averages(module, checkpoint)
    if trains:
        check_loops(trainer, checkpoint)
        check_optimizers(module, trainer.callbacks, checkpoint)  # type: ignore[attr-defined]


def _is_users_own(value: Any, own: Any) -> bool:
    """Whether a checkpoint names the class of a user's own that the module was given; it is not built from the file."""
    names = [part.get("class_path") if isinstance(part, Mapping) else None for part in (value, own)]
    if not all(isinstance(name, str) for name in names):
        return False
    spelled, here = map(str, names)
    # earlier versions wrote the name alone
    return not is_ours(here) and spelled in (here, here.rpartition(".")[2])


def check_callbacks(trainer: Any, checkpoint: Mapping[str, Any]) -> None:
    """Raise unless the states of the Trainer's callbacks are what such callbacks write."""
    callbacks = checkpoint.get("callbacks", {})
    if not isinstance(callbacks, dict) or not all(isinstance(name, str) for name in callbacks):
        raise _wrong("callbacks", callbacks)
    for callback in trainer.callbacks:
        if callback.state_key in callbacks:
            _check_callback(callback, callbacks[callback.state_key], f"callbacks.{type(callback).__name__}")


def check_averages(module: L.LightningModule, checkpoint: Mapping[str, Any]) -> None:
    """Raise unless weights that a run has averaged are there with those that they are the average of."""
    if "current_model_state" not in checkpoint and "averaging_state" not in checkpoint:
        return
    current, averaging = checkpoint.get("current_model_state"), checkpoint.get("averaging_state")
    if not isinstance(current, dict):
        raise _wrong("current_model_state", current)
    rename_old_keys(module, current)
    check_state(module, current)
    count = averaging.get("n_averaged") if isinstance(averaging, dict) and len(averaging) == 1 else None
    if not isinstance(count, Tensor) or count.numel() != 1 or count.is_floating_point() or int(count) < 0:
        raise _wrong("averaging_state", averaging)


def check_loops(trainer: Any, checkpoint: Mapping[str, Any]) -> None:
    """Raise unless a checkpoint says where a fit of this Trainer was."""
    loops = checkpoint.get("loops")
    if not isinstance(loops, dict) or "fit_loop" not in loops:
        raise _wrong("loops", loops)
    check_alike(loops["fit_loop"], trainer.fit_loop.state_dict(), "loops.fit_loop")
    loaders = loops["fit_loop"]["state_dict"].get("combined_loader", [])
    if not isinstance(loaders, list) or not all(isinstance(state, dict) for state in loaders):
        raise _wrong("loops.fit_loop.state_dict.combined_loader", loaders)
    for state in loaders:
        if state.keys() == {"batches", "epoch"}:  # others are of a user's own loader
            check_alike(state, {"batches": 0, "epoch": 0}, "loops.fit_loop.state_dict.combined_loader")


def check_alike(value: Any, own: Any, where: str, grows: bool = False) -> None:
    """Raise unless a value is of the type of one that this run has; whatever it says beside is not looked at.

    Args:
        value: what the checkpoint has.
        own: what this run has.
        where: the value's place, for the error.
        grows: whether it changes while a run goes on: mappings and lists gain entries, so that either may have more of them;
            what is none at first becomes a text, a list or a mapping; a whole number becomes a fraction.
    """
    if grows and value is None and isinstance(own, (str, dict, list, tuple)):
        return
    if grows and type(own) is int and isinstance(value, float) and math.isfinite(value):
        return
    if isinstance(own, dict):
        if not isinstance(value, dict):
            raise _wrong(where, value)
        for name, part in own.items():
            if name not in value:
                # loaders had not begun in a tuner's own checkpoint
                if grows or name == "combined_loader":
                    continue
                raise CheckpointError(f"the checkpoint's {where} says no {name}; {_REMEDY}")
            check_alike(value[name], part, f"{where}.{name}", grows)
    elif isinstance(own, (list, tuple)):
        if not isinstance(value, (list, tuple)) or (len(value) != len(own) and not grows):
            raise _wrong(where, value)
        for number, (entry, part) in enumerate(zip(value, own, strict=True) if len(value) == len(own) else ()):
            check_alike(entry, part, f"{where}[{number}]", grows)
    elif isinstance(own, (bool, str)):
        if type(value) is not type(own):
            raise _wrong(where, value)
    elif isinstance(own, int):
        if isinstance(value, bool) or not isinstance(value, int) or not (0 if own >= 0 else -MOST) <= value < MOST:
            raise _wrong(where, value)
    elif isinstance(own, float):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
            raise _wrong(where, value)
    elif isinstance(own, Tensor) and (
        not isinstance(value, Tensor) or value.shape != own.shape or bool(value.isnan().any())
    ):
        raise _wrong(where, value)


def _check_callback(callback: L.Callback, state: Any, where: str) -> None:
    if not isinstance(state, dict):
        raise _wrong(where, state)
    if not isinstance(callback, ModelCheckpoint):
        # what a user's own callback keeps may be anything
        if type(callback).state_dict.__module__.startswith(("lightning.", "pytorch_lightning.", "metalearn.")):
            check_alike(state, callback.state_dict(), where, grows=True)
        return
    for name, kinds in SAVER.items():
        value = state.get(name)
        scalar = not isinstance(value, Tensor) or (value.numel() == 1 and value.is_floating_point())
        if name not in state or not isinstance(value, kinds) or not scalar:
            raise _wrong(f"{where}.{name}", value)
        if isinstance(value, str) and not value.isprintable():
            raise _wrong(f"{where}.{name}", value)
    for path, score in state["best_k_models"].items():
        if not isinstance(path, str) or not isinstance(score, Tensor) or score.numel() != 1:
            raise _wrong(f"{where}.best_k_models", state["best_k_models"])


def check_optimizers(module: L.LightningModule, callbacks: Sequence[L.Callback], checkpoint: Mapping[str, Any]) -> None:
    """Raise unless the module's optimiser and schedule can go on from a checkpoint.

    What an optimiser's state is only the optimiser knows: a copy of it, over copies of the parameters, takes it up and makes a
    step without gradients.

    Raises:
        CheckpointError: there is none, it is of another optimiser, or not finite.
    """
    states, schedules = checkpoint.get("optimizer_states"), checkpoint.get("lr_schedulers")
    if states is None or schedules is None:
        raise CheckpointError(
            "the checkpoint holds weights without an optimiser's state, so training cannot go on from it; use the run's last.ckpt"
        )
    if not type(module).configure_optimizers.__module__.startswith("metalearn."):
        return  # a user's own may be anything
    made: Any = module.configure_optimizers()
    optimizer = made["optimizer"] if isinstance(made, dict) else made
    scheduler = made["lr_scheduler"]["scheduler"] if isinstance(made, dict) else None
    if not isinstance(states, list) or len(states) != 1 or not isinstance(states[0], dict):
        raise _wrong("optimizer_states", states)
    if not any(isinstance(callback, BaseFinetuning) for callback in callbacks):  # it adds groups of its own
        rehearse(optimizer, states[0])
    if not isinstance(schedules, list) or len(schedules) != (scheduler is not None):
        raise _wrong("lr_schedulers", schedules)
    for schedule in schedules:
        _check_schedule(scheduler, schedule)


def rehearse(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Raise unless an optimiser can go on from a state; it is left alone, and so are its parameters."""
    stand_in = copy.deepcopy(optimizer)
    name = type(optimizer).__name__
    own = [{key: value for key, value in group.items() if key != "params"} for group in stand_in.param_groups]
    params = [value for group in stand_in.param_groups for value in group["params"]]

    def closure() -> float:
        stand_in.zero_grad()
        loss = torch.stack([(value * 0).sum() for value in params]).sum()
        loss.backward()
        return float(loss.detach())

    try:
        stand_in.load_state_dict(copy.deepcopy(state))
        for number, (group, before) in enumerate(zip(stand_in.param_groups, own, strict=True)):
            known = {key: value for key, value in group.items() if key in before}
            wanted = {
                key: float(value) if type(value) is int else value for key, value in before.items() if key in known
            }
            check_alike(known, wanted, f"param_groups[{number}]")
        if params:
            with torch.enable_grad():
                stand_in.step(closure)
        values = [value for entry in stand_in.state.values() for value in entry.values() if isinstance(value, Tensor)]
        if not all(bool(value.isfinite().all()) for value in (*params, *values)):
            raise ValueError("it is not finite")
    except Exception as error:  # what optimisers raise on a foreign state is any of a dozen classes
        reason = on_one_line(error)
        raise CheckpointError(
            f"the checkpoint's optimizer_states are not of this {name} ({reason}); {_REMEDY}"
        ) from error


def _check_schedule(scheduler: Any, state: Any) -> None:
    where = "lr_schedulers[0]"
    own = scheduler.state_dict()
    if not isinstance(state, dict):
        raise _wrong(where, state)
    for name in state:
        if not isinstance(name, str) or (name not in own and hasattr(scheduler, name)):
            raise _wrong(where, name)
    # private names come and go between versions of torch
    kept = {name: value for name, value in own.items() if name in state or not name.startswith("_")}
    check_alike(state, kept, where)


def _wrong(where: str, value: object) -> CheckpointError:
    return CheckpointError(f"the checkpoint's {where} is {short(value)}, which this run cannot go on from; {_REMEDY}")
