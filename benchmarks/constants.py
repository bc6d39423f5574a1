"""What measuring constants and advising on step sizes costs, as a share of a training run.

    OMP_NUM_THREADS=1 python benchmarks/constants.py [--omniglot DIR] [--steps 500]

It times training steps of the default configuration of MAML on Glyphs, or on Omniglot, and one measurement of each kind on the
same machine. The share is of a run of so many steps.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import lightning as L
import torch
from machine import describe

from metalearn import MAML, Conv4
from metalearn.datamodules import GlyphsDataModule, OmniglotDataModule
from metalearn.theory import advise_steps, measure_constants
from metalearn.theory.gathering import take_tasks

__all__ = ["main"]


def measure_seconds(call: Callable[[], Any], rounds: int) -> float:
    """The median over some calls, after one that is not counted."""
    call()
    seconds = []
    for _ in range(rounds):
        begun = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begun)
    return median(seconds)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--omniglot", help="the folder of Omniglot; Glyphs without it")
    parser.add_argument("--steps", type=int, default=500, help="outer steps of the run that is compared with")
    parser.add_argument("--every", type=int, default=100, help="outer steps between two measurements of the advisor")
    parser.add_argument("--rounds", type=int, default=5, help="how often each is timed")
    options = parser.parse_args()
    L.seed_everything(0, verbose=False)
    kind = {"ways": 5, "shots": 1, "queries": 5, "tasks_per_batch": 16, "train_tasks": 64}
    data = OmniglotDataModule(root=options.omniglot, **kind) if options.omniglot else GlyphsDataModule(**kind)
    data.prepare_data()
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    network = Conv4(in_channels=1, hidden=64, image_size=28, downsample="stride", zero_head=True)
    module = MAML(network, inner_steps=1, eval_inner_steps=3, inner_lr=0.4)
    step = measure_seconds(lambda: module.training_step(batch, 0).backward(), options.rounds)
    few = take_tasks(batch, 4)[0]
    rows = {
        f"advisor, every {options.every} steps": (
            measure_seconds(lambda: advise_steps(module, few), options.rounds), -(-options.steps // options.every),
        ),
        "measure_constants, once": (measure_seconds(lambda: measure_constants(module, batch), options.rounds), 1),
    }  # fmt: skip
    print(describe())
    print(f"a training step takes {step:.3f} s; a run has {options.steps} of them; medians of {options.rounds}\n")
    print("| measurement | seconds each | training steps each | share of the run |")
    print("|---|---:|---:|---:|")
    for name, (seconds, times) in rows.items():
        share = seconds * times / (step * options.steps)
        print(f"| {name} | {seconds:.2f} | {seconds / step:.1f} | {share:.1%} |")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
