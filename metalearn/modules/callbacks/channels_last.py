"""The memory format in which convolutions are quickest."""

from __future__ import annotations

import lightning as L
import torch

__all__ = ["ChannelsLast"]


class ChannelsLast(L.Callback):
    """Keeps the weights of convolutions in ``torch.channels_last`` while a module is fitted, of any Lightning project.

    Torch then runs whole networks of convolutions in that format. Values stay what they are, up to rounding, and so do
    checkpoints. It pays for modules that run the network as it is, such as :class:`~metalearn.Baseline`, and more so with
    ``precision="bf16-mixed"``, where the machine has that. An inner loop over several tasks at once has operators and formats of
    its own.

    Example:
        >>> import lightning as L
        >>> from metalearn import ChannelsLast
        >>> trainer = L.Trainer(callbacks=[ChannelsLast()], accelerator="cpu", barebones=False, logger=False)
    """

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit":
            pl_module.to(memory_format=torch.channels_last)
