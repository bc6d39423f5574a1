"""What ``torch.compile`` of a whole module leaves as it is: steps that differentiate within themselves."""

from __future__ import annotations

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info

__all__ = ["keep_eager", "say_if_compiled"]

STEPS = (
    "training_step", "validation_step", "test_step", "predict_step", "forward",
    "meta_loss", "meta_gradient", "adapt", "adapt_many",
)  # fmt: skip


def keep_eager(cls: type) -> None:
    """Keep ``torch.compile`` out of the steps that a class of ours defines.

    Traced from outside, a step that takes gradients of its own breaks into many graphs. That takes minutes, and their compiled
    backwards refuse second derivatives.
    """
    if cls.__module__.startswith("metalearn."):
        for name in vars(cls).keys() & STEPS:
            setattr(cls, name, torch.compiler.disable(vars(cls)[name]))


def say_if_compiled(trainer: L.Trainer) -> None:
    """One line where the module went through ``torch.compile``."""
    module = trainer.lightning_module
    if module._compiler_ctx is not None:
        remedy = "; an option of its own, compile=True, does" if "compile" in module.hparams else ""
        rank_zero_info(
            f"{type(module).__name__}: torch.compile compiles nothing of it, since its steps take gradients within "
            f"themselves{remedy}"
        )
