"""How many processes a run has: those that torchrun has started, or as many as were asked for and can run here."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch.accelerators import CPUAccelerator

from metalearn.cli.interrupts import RELAYED, Signals
from metalearn.errors import ConfigError

__all__ = ["check_devices", "connect", "is_launched_child", "take_torchrun", "wait_for_children"]


def take_torchrun(asked: dict[str, Any]) -> dict[str, Any]:
    """The Trainer's arguments that follow from torchrun's environment; none without torchrun.

    Args:
        asked: the Trainer's arguments as the user gave them.

    Raises:
        ConfigError: they disagree with torchrun.
    """
    if not torch.distributed.is_available() or not torch.distributed.is_torchelastic_launched():
        return {}
    world, local = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
    counts = {"devices": str(local), "num_nodes": str(world // local)}
    for name, count in counts.items():
        value = str(asked.get(name))
        if value not in ("auto", "None", "-1", "1" if name == "num_nodes" else count, count):
            raise ConfigError(
                f"trainer.{name} is {value}, but torchrun has started {count} "
                f"{'processes on this machine' if name == 'devices' else 'machines'}; leave trainer.{name} out"
            )
    options: dict[str, Any] = {name: int(count) for name, count in counts.items()}
    if world > 1 and asked.get("strategy") in ("auto", None):
        options["strategy"] = "ddp"
    return options


def check_devices(trainer: L.Trainer) -> None:
    """Refuse more processes on a CPU than it has cores.

    Raises:
        ConfigError: there are fewer cores. Two processes may always be started, so that DDP can be tried anywhere.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if isinstance(trainer.accelerator, CPUAccelerator) and trainer.num_devices > max(cores, 2):
        raise ConfigError(
            f"trainer.devices is {trainer.num_devices}, but each is a process on the CPU, and this one may use {cores} "
            f"core{'s' * (cores > 1)}; use at most {max(cores, 2)}"
        )


def is_launched_child(trainer: L.Trainer) -> bool:
    """Whether another process of the run has started this one, and speaks for it."""
    torchrun = torch.distributed.is_available() and torch.distributed.is_torchelastic_launched()
    return not trainer.is_global_zero and not torchrun


def connect(signals: Signals, trainer: L.Trainer) -> None:
    """Let the processes of a run that Lightning starts tell each other of signals."""
    if trainer.world_size == 1 or sys.platform == "win32":
        return
    parent = os.getppid()
    relays = {signum: relay for relay, signum in RELAYED.items() if relay is not None}

    def kill(signum: int) -> None:
        for process in _children(trainer):
            with suppress(ProcessLookupError):
                process.send_signal(signum)

    def forward(signum: int) -> None:
        kill(relays[signal.Signals(signum)])
        if is_launched_child(trainer) and trainer.local_rank > 0 and os.getppid() == parent:
            os.kill(parent, relays[signal.Signals(signum)])

    signals.forward, signals.kill = forward, kill
    if not SLURMEnvironment.detect():  # whose signals are these very ones
        signals.listen()


def wait_for_children(trainer: L.Trainer, seconds: float) -> None:
    """Give the processes that this one has started so long to end, and then end them."""
    end = time.monotonic() + seconds
    for process in _children(trainer):
        try:
            process.wait(max(end - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            process.send_signal(getattr(signal, "SIGKILL", signal.SIGTERM))
            process.wait()


def _children(trainer: L.Trainer) -> list[subprocess.Popen[bytes]]:
    return list(getattr(trainer.strategy.launcher, "procs", []))
