"""The thesis's few-shot setting at equal seconds: ITD-BiO and AID-BiO (BilevelFewShot) beside ANIL.

Each method trains the same network on the same tasks by the same outer optimiser, in turns of a few seconds, so that what else
the machine does falls on all alike; after each quarter of its seconds it is tested on the same tasks.

python benchmarks/few_shot.py --omniglot DIR --miniimagenet DIR --seconds 60 --seeds 2
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from typing import Any

import torch
from machine import describe

from metalearn import ANIL, BilevelFewShot, Conv4, MetaModule
from metalearn.allocator import keep_buffers
from metalearn.datamodules import ImageEpisodes, MiniImageNetDataModule, OmniglotDataModule

TURN = 5.0
QUARTERS = 4
METHODS = ("ANIL", "ITD-BiO", "AID-BiO")


def build(method: str, ways: int, image: dict[str, Any], seed: int) -> MetaModule:
    """A module over the network that the seed gives."""
    torch.manual_seed(seed)
    network = Conv4(ways=ways, zero_head=True, **image)
    if method == "ANIL":
        return ANIL(network, inner_steps=10, inner_lr=0.1)
    name = "itd" if method == "ITD-BiO" else "aid"
    return BilevelFewShot(network, estimator=name, inner_steps=20, inner_lr=0.1, l2=0.01, linear_steps=10)  # type: ignore[arg-type]


class Run:
    """One method's training, in turns."""

    def __init__(self, method: str, data: ImageEpisodes, image: dict[str, Any], seed: int) -> None:
        assert isinstance(data.ways, int)
        self.module = build(method, data.ways, image, seed)
        self.data = data
        self.optimizer = torch.optim.Adam(self.module.parameters(), lr=1e-3)
        self.batches: Iterator[Any] = iter(data.train_dataloader())
        self.seconds, self.steps = 0.0, 0
        self.module.training_step(next(self.batches), 0)  # chooses the execution; not counted

    def train(self, until: float) -> None:
        """Go on for a turn, or until the seconds are spent."""
        begun = time.perf_counter()
        first = self.seconds
        while self.seconds < until and self.seconds - first < TURN:
            loss = self.module.training_step(next(self.batches), self.steps)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.steps += 1
            self.seconds = first + time.perf_counter() - begun

    def accuracy(self, tasks: int) -> float:
        """The mean accuracy over test tasks."""
        found = []
        for index in range(tasks):
            support, query = self.data.episode(self.data.seed, "test", index)
            found.append(float((self.module.adapt(support)(query.x).argmax(-1) == query.y).float().mean()))
        return statistics.fmean(found)


def compare(title: str, data: ImageEpisodes, image: dict[str, Any], seconds: float, seeds: int, tasks: int) -> None:
    """Print the table of one data set."""
    found: dict[str, list[list[float]]] = {method: [] for method in METHODS}
    steps: dict[str, list[int]] = {method: [] for method in METHODS}
    for seed in range(seeds):
        runs = {method: Run(method, data, image, seed) for method in METHODS}
        rows: dict[str, list[float]] = {method: [] for method in METHODS}
        for quarter in range(1, QUARTERS + 1):
            until = seconds * quarter / QUARTERS
            while any(run.seconds < until for run in runs.values()):
                for run in runs.values():
                    run.train(until)
            for method, run in runs.items():
                rows[method].append(100 * run.accuracy(tasks))
        for method, run in runs.items():
            found[method].append(rows[method])
            steps[method].append(run.steps)
    marks = [f"{seconds * quarter / QUARTERS:g} s" for quarter in range(1, QUARTERS + 1)]
    print(
        f"{title}, test accuracy (%) after so many seconds of training, mean and deviation over {seeds} seeds, {tasks} tasks"
    )
    print(f"{'':10}" + "".join(f"{mark:>16}" for mark in marks) + f"{'outer steps':>14}")
    for method in METHODS:
        cells = []
        for column in zip(*found[method], strict=True):
            spread = statistics.stdev(column) if len(column) > 1 else float("nan")
            cells.append(f"{statistics.fmean(column):9.2f} ± {spread:4.2f}")
        print(f"{method:10}" + "".join(cells) + f"{statistics.fmean(steps[method]):14.0f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--omniglot", help="the folder of Omniglot's archives")
    parser.add_argument("--miniimagenet", help="miniImageNet, or data in its format")
    parser.add_argument("--seconds", type=float, default=60.0, help="training seconds of each method")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--tasks", type=int, default=50, help="test tasks")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    keep_buffers()
    print(describe())
    limits = (given.seconds, given.seeds, given.tasks)
    if given.omniglot:
        omniglot = OmniglotDataModule(
            given.omniglot, ways=20, shots=5, queries=5, tasks_per_batch=4, train_tasks=1 << 20
        )
        compare("Omniglot, 20-way 5-shot", omniglot, {"in_channels": 1, "hidden": 64, "image_size": 28}, *limits)
    if given.miniimagenet:
        mini = MiniImageNetDataModule(
            given.miniimagenet, ways=5, shots=5, queries=15, tasks_per_batch=2, train_tasks=1 << 20
        )
        compare(
            "miniImageNet's format, 5-way 5-shot", mini, {"in_channels": 3, "hidden": 32, "image_size": 84}, *limits
        )


if __name__ == "__main__":
    main()
