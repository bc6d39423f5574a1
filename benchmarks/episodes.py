"""Tasks drawn per second of Omniglot, 5 ways x 16 images: ours beside learn2learn's Taskset, alternately in one process.

Ours is what the DataModule's DataLoader yields, and the draw alone. Theirs are the FusedNWaysKShots of its own Omniglot
benchmark, to which the ratio is, and the NWays with KShots of its guide; both over images in memory as float tensors.

python benchmarks/episodes.py --root DIR
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from machine import describe

from metalearn.datamodules import OmniglotDataModule

FUSED = "learn2learn: FusedNWaysKShots"


def learn2learn_tasksets(data: OmniglotDataModule) -> dict[str, Callable[[int], None]]:
    """Its draws of one task, over the same images in memory as float tensors; none where it is not installed."""
    try:
        import learn2learn as l2l
    except ImportError:
        return {}
    store, classes = data._store, data._splits["train"]
    assert store is not None
    rows = (store.offsets[classes][:, None] + np.arange(20)).ravel()
    images = torch.from_numpy(np.asarray(store.images[rows])).float() / 255
    labels = torch.arange(len(classes)).repeat_interleave(20)
    pairs = l2l.data.MetaDataset(torch.utils.data.TensorDataset(images, labels))
    known = l2l.data.transforms
    samplers = {
        FUSED: [known.FusedNWaysKShots(pairs, n=5, k=16)],
        "learn2learn: NWays, KShots": [known.NWays(pairs, 5), known.KShots(pairs, 16)],
    }
    rest = [known.LoadData(pairs), known.RemapLabels(pairs), known.ConsecutiveLabels(pairs)]
    kind = getattr(l2l.data, "TaskDataset", None) or l2l.data.Taskset

    def drawing(sampler: list[Any]) -> Callable[[int], None]:
        tasks = kind(pairs, [*sampler, *rest], num_tasks=-1)

        def draw(count: int) -> None:
            for _ in range(count):
                tasks.sample()

        return draw

    return {name: drawing(sampler) for name, sampler in samplers.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", required=True, help="the folder of Omniglot's archives")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tasks", type=int, default=960, help="tasks a round and row")
    given = parser.parse_args()
    torch.set_num_threads(1)
    data = OmniglotDataModule(given.root, ways=5, shots=1, queries=15, tasks_per_batch=16, train_tasks=1 << 30)
    data.prepare_data()
    data.setup()
    position = itertools.count()
    batches = iter(data.train_dataloader())

    def gather(count: int) -> None:
        for _ in range(count // 16):
            first = next(position) * 16
            data.gather(0, "train", np.arange(first, first + 16))

    def load(count: int) -> None:
        for _ in range(count // 16):
            next(batches)

    rows: dict[str, Callable[[int], None]] = {
        "ours: draw and gather, uint8": gather,
        "ours: the DataLoader, float32": load,
        **learn2learn_tasksets(data),
    }
    rates: dict[str, list[float]] = {name: [] for name in rows}
    for turn in range(given.rounds + 1):
        for name, run in rows.items():
            begun = time.perf_counter()
            run(given.tasks)
            if turn:  # the first round warms up
                rates[name].append(given.tasks / (time.perf_counter() - begun))
    print(describe())
    print(f"{'5 ways x 16 images of 28 x 28, tasks/s':42}{'median':>9}{'min':>9}{'max':>9}{'ratio':>8}")
    base = statistics.median(rates[FUSED]) if FUSED in rates else None
    for name, found in rates.items():
        middle = statistics.median(found)
        ratio = f"{middle / base:8.1f}" if base else "       -"
        print(f"{name:42}{middle:9.0f}{min(found):9.0f}{max(found):9.0f}{ratio}")
    if base is None:
        print("learn2learn is not installed, so there is no ratio: .ci/build_learn2learn builds it")


if __name__ == "__main__":
    main()
