"""Stops a training that has diverged."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor

from metalearn.errors import DivergenceError
from metalearn.modules.episodic.late_answers import LateNumber, UpdateGuard, answers_at_once
from metalearn.modules.episodic.trainers import get_step, is_run

__all__ = ["DivergenceWatch"]

EXPLOSION = 1e3
"""A meta-loss this many times the first one (or 1, if that is larger) has exploded."""

Explain = Callable[[int], object]
"""Called with the number of an outer step whose loss is not finite: raises if it is the data's fault."""


class _Step(NamedTuple):
    """An outer step whose numbers are not read yet."""

    number: int
    loss: LateNumber
    length: LateNumber | None
    sound: Tensor
    explain: Explain


class DivergenceWatch:
    """Holds every meta-loss of a run against its first one.

    A run on a device that works ahead of Python is asked for a step's numbers when the next step is under way. Until then the
    device itself leaves out an update that is not finite.
    """

    def __init__(self) -> None:
        self._first: float | None = None
        self._step: _Step | None = None
        self._guard = UpdateGuard()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_step": None}

    def start(self) -> None:
        """Forget the first loss: a run begins."""
        self._first = self._step = None

    def may_wait(self, module: L.LightningModule, device: torch.device) -> bool:
        """Whether the numbers of a training step are asked for later: where a trainer runs it, so that updates are guarded."""
        return not answers_at_once(device) and is_run(module) and module.trainer.training

    def watch(self, module: L.LightningModule, loss: Tensor, explain: Explain) -> None:
        """Raise if a meta-loss, or that of the step before, is not finite, or has exploded.

        Args:
            module: whose step it is.
            loss: a scalar, the mean over all processes.
            explain: see :data:`Explain`.

        Raises:
            DivergenceError: it is, and has.
        """
        if not self.may_wait(module, loss.device):
            self._check_loss(module, float(loss), get_step(module), explain)
            return
        self.read(module)
        sound = loss.isfinite() & (loss <= self._bound())
        self._step = _Step(get_step(module), LateNumber(loss), None, sound, explain)

    def check_gradient(self, module: L.LightningModule, optimizer: Any) -> None:
        """Raise before an update if a gradient of the module's parameters is not finite, or let the device leave it out.

        Raises:
            DivergenceError: it is not.
        """
        grads = [value.grad for value in module.parameters() if value.grad is not None]
        if not grads:
            return
        length = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
        if self._step is None or not self._guard.watches(optimizer):
            self.read(module)
            self._check_length(module, float(length), get_step(module))
            return
        self._step = self._step._replace(length=LateNumber(length), sound=self._step.sound & length.isfinite())
        self._guard.begin(optimizer, self._step.sound)

    def read(self, module: L.LightningModule) -> None:
        """Raise if the last step was not sound, and has not been asked yet.

        Raises:
            DivergenceError: it was not.
        """
        if self._step is None:
            return
        step, self._step = self._step, None
        self._check_loss(module, step.loss.read(), step.number, step.explain)
        if step.length is not None:
            self._check_length(module, step.length.read(), step.number)

    def _bound(self) -> float:
        return math.inf if self._first is None else EXPLOSION * max(self._first, 1.0)

    def _check_loss(self, module: L.LightningModule, value: float, step: int, explain: Explain) -> None:
        if not math.isfinite(value):
            explain(step)
        if self._first is None and math.isfinite(value):
            self._first = value
        if not math.isfinite(value) or value > self._bound():
            self._stop(module, "the meta-loss", value, step)

    def _check_length(self, module: L.LightningModule, length: float, step: int) -> None:
        if not math.isfinite(length):
            self._stop(module, "the meta-gradient", length, step)

    def _stop(self, module: L.LightningModule, what: str, value: float, step: int) -> None:
        """Raise, but where Lightning's LearningRateFinder looks for where a run diverges, and puts the weights back."""
        callbacks = module.trainer.callbacks if is_run(module) else []  # type: ignore[attr-defined]
        if any(type(callback).__name__ == "_LRCallback" for callback in callbacks):
            return
        raise DivergenceError(
            f"{what} is {value:.3g} at step {step}, so training has diverged and stops; use a smaller inner_lr (it "
            f"is {module.hparams.get('inner_lr')}), fewer inner_steps, or a smaller outer learning rate"
        )
