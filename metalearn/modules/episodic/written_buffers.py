"""The buffers that a network writes in its forward pass, moved on once a training step and alike on every rank."""

from __future__ import annotations

from typing import Any

from metalearn.episode import Episode
from metalearn.inner import Learner
from metalearn.inner.buffers import find_written, writable_buffers, write_buffers

__all__ = ["WrittenBuffers"]


class WrittenBuffers:
    """Keeps in mind whether a network writes any; see :mod:`metalearn.inner.buffers` for what is written."""

    def __init__(self) -> None:
        self._unwritten: Any = None

    def update(self, learner: Learner, episodes: list[Episode], trainer: Any) -> None:
        """Write what the support sets of ``episodes`` (of rank 0's, as DDP does) leave in the buffers of the learner's network.

        Args:
            learner: of the training step.
            episodes: its tasks.
            trainer: knows the ranks; ``None`` where there is one process.
        """
        network = learner.backbone
        if not writable_buffers(network):
            return
        with learner.running() as running:
            key = running.structure.version, tuple(layer.training for layer in network.modules())
            if key == self._unwritten:
                return
            values = find_written(running, (x for episode in episodes for x in episode.support.x))
        if trainer is not None and trainer.world_size > 1:
            values = trainer.strategy.broadcast({name: value.cpu() for name, value in values.items()})
        self._unwritten = None if values else key
        write_buffers(network, values)
