"""What a test's records of classes and its answers to queries alone cost: a test with each of them against one without.

python benchmarks/reports.py --rounds 9
"""

from __future__ import annotations

import argparse
import logging
import statistics
from collections.abc import Callable, Sequence

import torch
from measure import take_turns

from metalearn import ANIL, MAML, Batch, Conv4, Episode
from metalearn.modules.episodic.records import QueryRecords

MODULES: dict[str, tuple[Callable[[], MAML | ANIL], int]] = {
    "MAML, 1 step, 5 queries": (lambda: MAML(Conv4(ways=5), inner_steps=1), 5),
    "MAML, 3 steps, 5 queries": (lambda: MAML(Conv4(ways=5), inner_steps=1, eval_inner_steps=3), 5),
    "MAML, 10 steps, 15 queries": (lambda: MAML(Conv4(ways=5), inner_steps=5, eval_inner_steps=10, inner_lr=0.1), 15),
    "ANIL, 3 steps, 5 queries": (lambda: ANIL(Conv4(ways=5), inner_steps=3), 5),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tasks", type=int, default=8)
    options = parser.parse_args()
    logging.disable(logging.INFO)
    for name, (make, queries) in MODULES.items():
        module, episode = make().eval(), make_episode(options.tasks, queries)
        seconds = take_turns(make_sides(module, episode), options.rounds)
        plain = seconds["neither"]
        records, alone = (divide(seconds[side], plain) for side in ("records", "alone"))
        print(
            f"{name}: {records:.3f} times with records, {alone:.3f} with queries alone, of {min(plain):.2f} s",
            flush=True,
        )


def make_episode(tasks: int, queries: int) -> Episode:
    y = torch.arange(5)
    return Episode(
        Batch(torch.rand(tasks, 5, 1, 28, 28), y.expand(tasks, -1)),
        Batch(torch.rand(tasks, 5 * queries, 1, 28, 28), y.repeat(queries).expand(tasks, -1)),
    )


def make_sides(module: MAML | ANIL, episode: Episode) -> dict[str, Callable[[], object]]:
    """A test of the tasks with one of the two, or with neither."""
    update = QueryRecords.update

    def run(records: bool, alone: bool) -> None:
        QueryRecords.update = update if records else lambda *arguments: None  # type: ignore[method-assign]
        module.tests_independently = alone
        with torch.inference_mode():
            module.on_test_epoch_start()
            module.test_step(episode, 0)
            module.on_test_epoch_end()

    return {
        "neither": lambda: run(False, False),
        "records": lambda: run(True, False),
        "alone": lambda: run(False, True),
    }


def divide(seconds: Sequence[float], others: Sequence[float]) -> float:
    """The median of the ratios of turns that stood side by side."""
    return statistics.median(a / b for a, b in zip(seconds, others, strict=True))


if __name__ == "__main__":
    main()
