"""What a module may ask of the trainer that runs it, if one does."""

from __future__ import annotations

import lightning as L

__all__ = ["get_step", "is_run", "may_log"]


def is_run(module: L.LightningModule) -> bool:
    """Whether a trainer runs this very module, and not one that it is a part of."""
    return module._trainer is not None and module._trainer.lightning_module is module


def may_log(module: L.LightningModule) -> bool:
    """Whether ``self.log`` has somewhere to go: not where a step is called by hand, or by a module around this one."""
    return is_run(module) and module._current_fx_name is not None and not module.trainer.barebones


def get_step(module: L.LightningModule) -> int:
    """The number of outer steps so far; 0 without a trainer."""
    return module.global_step if module._trainer is not None else 0
