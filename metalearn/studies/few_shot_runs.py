"""The data sets of the few-shot study, and the training of one method in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from metalearn.bilevel import OracleCounts
from metalearn.datamodules import ImageEpisodes, MiniImageNetDataModule, OmniglotDataModule
from metalearn.modules import MetaModule

__all__ = ["SETTINGS", "Run", "Setting", "anil_calls"]

TURN = 5.0
"""CPU seconds that a method trains before the next one goes on."""


@dataclass(frozen=True)
class Setting:
    """A data set of the study.

    Attributes:
        title: its heading.
        data: its class, of a root.
        episodes: the arguments of its tasks.
        network: the arguments of :class:`Conv4`.
        inner_lr: the theory's ``1 / L``, rounded; ``L`` is the largest curvature of the support loss at a head of zero, on the
            features of the untrained network: about 4 and 120 here.
    """

    title: str
    data: Callable[..., ImageEpisodes]
    episodes: Mapping[str, int]
    network: Mapping[str, int]
    inner_lr: float


SETTINGS: dict[str, Setting] = {
    "omniglot": Setting(
        "Omniglot, 20-way 5-shot",
        OmniglotDataModule,
        {"ways": 20, "shots": 5, "queries": 5, "tasks_per_batch": 4},
        {"ways": 20, "in_channels": 1, "hidden": 64, "image_size": 28},
        0.2,
    ),
    "miniimagenet": Setting(
        "miniImageNet's format, 5-way 5-shot",
        MiniImageNetDataModule,
        {"ways": 5, "shots": 5, "queries": 15, "tasks_per_batch": 2},
        {"ways": 5, "in_channels": 3, "hidden": 32, "image_size": 84},
        0.01,
    ),
}


def anil_calls(tasks: int, inner_steps: int) -> OracleCounts:
    """Return what an outer step of ANIL costs, in the unit of :class:`BilevelFewShot`'s own counts.

    ``f`` is the query loss, ``g`` the support loss, ``y`` the head and ``x`` the body. A task takes one gradient of ``f`` and
    ``N`` gradients of ``g``. Backwards through each of the ``N`` steps it takes one product with ``grad_xy g`` and one with
    ``grad_yy g``. ITD-BiO saves the last of these, since it does not learn where the head starts.
    """
    steps = tasks * inner_steps
    return OracleCounts(gc_f=tasks, gc_g=steps, jvp=steps, hvp=steps)


class Run:
    """The training of one method from one seed, in turns.

    Attributes:
        seconds: of the process's own time, without the first step and without tests.
        steps: outer steps.
    """

    def __init__(
        self,
        module: MetaModule,
        data: ImageEpisodes,
        seed: int,
        outer_lr: float,
        count: Callable[[int, int], OracleCounts] | None = None,
    ) -> None:
        """Take a first step that changes nothing and counts nowhere: it chooses how tasks are executed.

        Args:
            module: what is trained.
            data: draws the tasks.
            seed: of the training tasks.
            outer_lr: Adam's.
            count: gives what a number of tasks and of inner steps cost; :func:`anil_calls` where nothing is said.
        """
        self.module, self.data, self.seed = module, data, seed
        self._count = count or anil_calls
        self.optimizer = torch.optim.Adam(module.parameters(), lr=outer_lr)
        self.seconds, self.steps = 0.0, 0
        self._find_gradients()
        if module.counts is not None:
            module.counts = OracleCounts()

    def train(self, until: float) -> None:
        """Go on for a turn, or until the seconds are spent."""
        first = self.seconds
        while self.seconds < until and self.seconds - first < TURN:
            self.take_step()

    def take_step(self) -> None:
        """Take one outer step."""
        begun = time.process_time()
        self._find_gradients()
        self.optimizer.step()
        self.steps += 1
        self.seconds += time.process_time() - begun

    @property
    def counts(self) -> OracleCounts:
        """Oracle calls of these steps."""
        if self.module.counts is not None:
            return self.module.counts
        return self._count(self.steps * self.data.tasks_per_batch, self.module.inner_steps)

    def accuracy(self, tasks: int) -> float:
        """Return the mean accuracy (%) over the first ``tasks`` test tasks, which are the same for all runs."""
        accuracies = []
        for index in range(tasks):
            support, query = self.data.episode(self.data.seed, "test", index)
            accuracies.append(float((self.module.adapt(support)(query.x).argmax(-1) == query.y).float().mean()))
        return 100 * statistics.fmean(accuracies)

    def point(self, mark: float, tasks: int) -> dict[str, float]:
        """Return all that is kept of a mark."""
        counts = self.counts.as_dict()
        return {
            "mark": mark, "step": float(self.steps), "calls": float(sum(counts.values())), "seconds": self.seconds,
            **counts, "accuracy": self.accuracy(tasks),
        }  # fmt: skip

    def _find_gradients(self) -> None:
        size = self.data.tasks_per_batch
        batch = self.data.draw(self.seed, "train", list(range(self.steps * size, (self.steps + 1) * size)))
        self.optimizer.zero_grad()
        self.module.training_step(batch, self.steps).backward()
