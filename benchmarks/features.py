"""Tasks of stored features drawn per second, through the loader that trains on them; and the bound of memory for the same bytes.

    python benchmarks/features.py

Features are noise of 64 or 512 numbers, in 200 classes. The bound is how often as many bytes are copied from one place to
another. Both take turns in one process with one thread.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial

import numpy as np
import torch
from machine import describe
from measure import take_turns
from torch import nn

from metalearn.datamodules import ArrayEpisodes, FeatureEpisodes

CLASSES, TASKS = 200, 6400
CASES = ((64, 20, 1, 15), (64, 100, 5, 15), (512, 20, 1, 15), (512, 100, 5, 15))
"""Features, examples of a class, shots and queries, of tasks of 5 classes."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    print(describe())
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            measure(folder, rounds, *case)


def measure(folder: str, rounds: int, width: int, each: int, shots: int, queries: int) -> None:
    """Print the rate of one case, the median of some rounds."""
    numbers = np.random.default_rng(0)
    y = np.repeat(np.arange(CLASSES), each)
    x = numbers.normal(size=(len(y), width)).astype(np.float32)
    images = ArrayEpisodes(x, y, ways=5, shots=shots, queries=queries, tasks_per_batch=64, train_tasks=TASKS)
    data = FeatureEpisodes(images, nn.Identity(), cache_dir=folder)
    data.prepare_data()
    data.setup()
    loader = data.train_dataloader()
    size = 5 * (shots + queries) * width * 64
    source, target = torch.zeros(size), torch.zeros(size)

    def copy() -> None:
        for _ in range(TASKS // 64):
            target.copy_(source)

    seconds = take_turns({"loader": partial(exhaust, loader), "copy": copy}, rounds)
    rate, bound = (TASKS / float(np.median(values)) for values in seconds.values())
    print(
        f"{width:4} features, {each:3} a class, 5 ways x ({shots} + {queries}): {rate:10,.0f} tasks/s; as many bytes are copied "
        f"{bound:10,.0f} times a second"
    )


def exhaust(loader: object) -> None:
    """Draw all batches of an epoch."""
    count = sum(len(batch.support.x) for batch in loader)  # type: ignore[attr-defined]
    assert count == TASKS


if __name__ == "__main__":
    main()
