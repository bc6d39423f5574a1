"""Checks of the Trainer's options, before a Trainer is built: Lightning takes some wrong numbers and fails much later."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch.accelerators import AcceleratorRegistry, XLAAccelerator
from lightning.pytorch.strategies import StrategyRegistry

from metalearn.checks import check_number, check_whole, find_nearest, quote_value
from metalearn.errors import ConfigError
from metalearn.reports.outcome import ReportsOutcome

__all__ = ["check_monitors", "check_optimizer", "check_run_name", "check_trainer"]

COUNTS = {
    "max_steps": (-1, "use 1000, or -1 to go by max_epochs"),
    "max_epochs": (-1, "use 1, or -1 for no end"),
    "min_steps": (0, "leave it out"),
    "min_epochs": (0, "leave it out"),
    "accumulate_grad_batches": (1, "use 1 to step after every batch"),
    "check_val_every_n_epoch": (1, "use 1, or limit_val_batches=0 for no validation"),
    "log_every_n_steps": (0, "use 50"),
    "num_sanity_val_steps": (-1, "use 0 for none, or -1 for all batches"),
    "num_nodes": (1, "use 1"),
    "reload_dataloaders_every_n_epochs": (0, "use 0 for never"),
}
"""The least value of each count, and a remedy."""
SHARES = ("limit_train_batches", "limit_val_batches", "limit_test_batches", "limit_predict_batches", "overfit_batches")
TIME = re.compile(r"\d+:\d\d:\d\d:\d\d")
UNITS = ("weeks", "days", "hours", "minutes", "seconds", "milliseconds", "microseconds")
PROFILERS = ("simple", "advanced", "pytorch", "xla")


def check_trainer(asked: Mapping[str, Any], seed: object = None) -> None:
    """Raise unless the options mean something.

    Args:
        asked: the ``trainer`` section, as it was parsed.
        seed: ``seed_everything``.
    """
    if seed is not None and not isinstance(seed, bool):
        check_whole("seed_everything", seed, 0, 2**32 - 1)
    for name, (least, remedy) in COUNTS.items():
        if asked.get(name) is not None:
            check_whole(f"trainer.{name}", asked[name], least, 10**15, remedy)
    for name in SHARES:
        _check_share(f"trainer.{name}", asked.get(name))
    _check_interval("trainer.val_check_interval", asked.get("val_check_interval"))
    if asked.get("max_time") is not None:
        _check_time("trainer.max_time", asked["max_time"], "00:01:30:00 for an hour and a half")
    if asked.get("gradient_clip_val") is not None:
        check_number("trainer.gradient_clip_val", asked["gradient_clip_val"], "use 1.0, or 0 for none", least=0)
    _check_name("trainer.gradient_clip_algorithm", asked.get("gradient_clip_algorithm"), ("norm", "value"))
    _check_name("trainer.profiler", asked.get("profiler"), PROFILERS)
    fast = asked.get("fast_dev_run")
    if fast is not None and not isinstance(fast, bool):
        check_whole("trainer.fast_dev_run", fast, 0, remedy="use true for one batch of each kind")
    _check_machine(asked)


def check_run_name(name: str | None) -> None:
    """Raise unless the name can be a folder's."""
    if name is None:
        return
    if not name.strip() or name in (".", "..") or "/" in name or "\\" in name:
        raise ConfigError(
            f"run_name is {quote_value(name)}, but it names one folder below the run's; use letters and digits, and "
            "--trainer.default_root_dir for another place"
        )
    if not name.isprintable() or len(name.encode("utf-8", "replace")) > 200:
        raise ConfigError(
            f"run_name is {quote_value(name)}, but a folder's name must be printable and have at most 200 bytes; shorten it"
        )


def check_monitors(callbacks: Sequence[Any], model: Any) -> None:
    """Raise where a callback waits for a value that the module, which says what it logs, never does."""
    logged = getattr(model, "log_keys", None) if isinstance(model, ReportsOutcome) else None
    if not logged:
        return
    for callback in callbacks:
        name = getattr(callback, "monitor", None)
        if name and name not in logged and not str(name).startswith(("oracles/", "train/")):
            near = find_nearest(str(name).replace("_", "/"), logged, 1) or logged[:1]
            raise ConfigError(
                f"{type(callback).__name__}.monitor is {quote_value(name)}, but the model logs {', '.join(logged)}; use {near[0]}"
            )


def check_optimizer(model: Any) -> None:
    """Raise where the outer optimiser of a module, or its schedule, does not take its arguments: seen on a parameter made up."""
    parts: Any = torch.zeros(1, requires_grad=True)
    for name in ("outer_optimizer", "outer_scheduler"):
        make = getattr(model, name, None)
        if not callable(make):
            return
        try:
            parts = make([parts] if isinstance(parts, torch.Tensor) else parts)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{name} cannot be built ({error}); correct its arguments") from error
        for group in getattr(parts, "param_groups", []):
            check_number(f"{name}.lr", float(group.get("lr", 0.0)), "use 0.001", least=0)


def _check_share(name: str, value: Any) -> None:
    if value is None:
        return
    if isinstance(value, float):
        if not (math.isfinite(value) and 0 <= value <= 1):
            raise ConfigError(
                f"{name} is {value}, but a share must lie in 0.0..1.0; use 1.0 for all batches, or a whole number of them"
            )
    else:
        check_whole(name, value, 0, remedy="use a whole number of batches, or 1.0 for all")


def _check_interval(name: str, value: Any) -> None:
    if value is None:
        return
    remedy = "use 1.0 to validate after every epoch, a share of one, or a whole number of batches"
    if isinstance(value, (str, Mapping)):
        _check_time(name, value, f"00:00:30:00, or {remedy.removeprefix('use ')}")
    elif isinstance(value, float):
        check_number(name, value, remedy, above=0, most=1.0)
    elif isinstance(value, int):
        check_whole(name, value, 1, remedy=remedy)


def _check_time(name: str, value: Any, such: str) -> None:
    if isinstance(value, str):
        fits = TIME.fullmatch(value.strip()) is not None
    elif isinstance(value, Mapping):
        amounts = [
            each for each in value.values() if isinstance(each, (int, float)) and math.isfinite(each) and each >= 0
        ]
        fits = set(value) <= set(UNITS) and len(amounts) == len(value) and sum(amounts) > 0
    else:
        fits = True  # a timedelta
    if not fits:
        raise ConfigError(f"{name} is {quote_value(value)}, but a time is written DD:HH:MM:SS; use {such}")


def _check_name(name: str, value: Any, choices: Sequence[str]) -> None:
    if isinstance(value, str) and value not in choices:
        near = find_nearest(value, choices, 1) or list(choices[:1])
        known = ", ".join(choices if len(choices) < 9 else [*choices[:5], "..."])
        raise ConfigError(f"{name} is {quote_value(value)}, but it must be one of {known}; use {near[0]}")


def _check_machine(asked: Mapping[str, Any]) -> None:
    accelerator = asked.get("accelerator")
    has_mps = torch.backends.mps.is_available()
    here = {"cuda": torch.cuda.is_available(), "mps": has_mps, "gpu": torch.cuda.is_available() or has_mps}
    if isinstance(accelerator, str):
        _check_name(
            "trainer.accelerator", accelerator, ["auto", "gpu", *sorted(AcceleratorRegistry.available_accelerators())]
        )
        exists = XLAAccelerator.is_available() if accelerator == "tpu" else here.get(accelerator, True)
        if not exists:
            raise ConfigError(
                f"trainer.accelerator is {accelerator!r}, but there is none here that torch can use; use cpu, or auto for "
                "what there is"
            )
    _check_name("trainer.strategy", asked.get("strategy"), ["auto", *StrategyRegistry.available_strategies()])
    devices = asked.get("devices")
    on_cpu = accelerator == "cpu" or (accelerator in (None, "auto") and not here["gpu"])
    text = str(devices).strip()
    if devices in (None, "auto") or not isinstance(devices, (str, int, list)):
        return
    whole = re.fullmatch(r"-?\d+", text) is not None and not isinstance(devices, bool)
    if on_cpu and not (whole and int(text) >= 1):
        raise ConfigError(
            f"trainer.devices is {quote_value(devices)}, but on the CPU it counts processes, at least 1; use 1, or auto"
        )
    chosen = devices if isinstance(devices, list) else text.rstrip(",").split(",")
    listed = [int(each) for each in chosen if re.fullmatch(r"\d+", str(each).strip())]
    if not on_cpu and text != "-1" and (
        not listed or len(listed) != len(chosen) or len(set(listed)) != len(listed) or (whole and listed[0] < 1)
    ):  # fmt: skip
        raise ConfigError(
            f"trainer.devices is {quote_value(devices)}, but it must count devices, at least 1, or list their numbers; use 1, "
            "-1 for all, or auto"
        )
