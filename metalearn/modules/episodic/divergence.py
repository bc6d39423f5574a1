"""Stops a training that has diverged."""

from __future__ import annotations

import math

import lightning as L
import torch

from metalearn.errors import DivergenceError
from metalearn.modules.episodic.trainers import get_step, is_run

__all__ = ["DivergenceWatch"]

EXPLOSION = 1e3
"""A meta-loss this many times the first one (or 1, if that is larger) has exploded."""


class DivergenceWatch:
    """Holds every meta-loss of a run against its first one."""

    def __init__(self) -> None:
        self._first: float | None = None

    def start(self) -> None:
        """Forget the first loss: a run begins."""
        self._first = None

    def check_loss(self, module: L.LightningModule, value: float) -> None:
        """Raise if a meta-loss is not finite, or has exploded.

        Raises:
            DivergenceError: it is, and has.
        """
        if self._first is None and math.isfinite(value):
            self._first = value
        if not math.isfinite(value) or value > EXPLOSION * max(self._first or 0.0, 1.0):
            self.stop(module, "the meta-loss", value)

    def check_gradient(self, module: L.LightningModule) -> None:
        """Raise if a gradient of the module's parameters is not finite.

        Raises:
            DivergenceError: it is not.
        """
        grads = [value.grad for value in module.parameters() if value.grad is not None]
        if grads:
            length = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
            if not torch.isfinite(length):
                self.stop(module, "the meta-gradient", float(length))

    def stop(self, module: L.LightningModule, what: str, value: float) -> None:
        """Raise, but where Lightning's LearningRateFinder looks for where a run diverges, and puts the weights back.

        Raises:
            DivergenceError: always else.
        """
        callbacks = module.trainer.callbacks if is_run(module) else []  # type: ignore[attr-defined]
        if any(type(callback).__name__ == "_LRCallback" for callback in callbacks):
            return
        raise DivergenceError(
            f"{what} is {value:.3g} at step {get_step(module)}, so training has diverged and stops; use a smaller inner_lr (it "
            f"is {module.hparams.get('inner_lr')}), fewer inner_steps, or a smaller outer learning rate"
        )
