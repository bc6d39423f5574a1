"""Whether the advisor brings runs of ten wrong step sizes to the accuracy of a tuned one.

    OMP_NUM_THREADS=1 python benchmarks/advice.py --output runs/advice [--omniglot DIR] [--steps 300] [--hidden 64] [--seeds 1]

First it trains at fixed step sizes, of which the best is the tuned one. Then it trains from ten wrong step sizes with
``StepSizeAdvisor(apply=True)``. Each run is one JSON file in the output folder, and is not trained again: stop it when you like.
The table says the mean over seeds and the largest distance to the tuned accuracy.
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from statistics import mean
from typing import Any

import lightning as L
import torch
from machine import describe

from metalearn import MAML, Conv4, StepSizeAdvisor
from metalearn.datamodules import GlyphsDataModule, OmniglotDataModule

__all__ = ["main"]

FIXED = (0.03, 0.1, 0.2, 0.4, 0.8, 1.6)
WRONG = (1e-4, 1e-3, 5e-3, 2e-2, 2.0, 5.0, 10.0, 30.0, 60.0, 100.0)


def train(options: argparse.Namespace, inner_lr: float, advised: bool, seed: int) -> dict[str, Any]:
    """One run: its test accuracy, and the step size that it ended with."""
    L.seed_everything(seed, verbose=False)
    kind = {
        "ways": 5, "shots": 1, "queries": 5, "tasks_per_batch": 16, "train_tasks": 16 * options.steps, "val_tasks": 16,
        "test_tasks": options.tasks, "seed": seed,
    }  # fmt: skip
    data = OmniglotDataModule(root=options.omniglot, **kind) if options.omniglot else GlyphsDataModule(**kind)
    network = Conv4(in_channels=1, hidden=options.hidden, image_size=28, downsample="stride", zero_head=True)
    module = MAML(
        network, inner_steps=options.inner_steps, eval_inner_steps=options.eval_inner_steps, inner_lr=inner_lr,
        outer_optimizer=lambda params: torch.optim.Adam(params, lr=3e-3), outer_scheduler="cosine",
    )  # fmt: skip
    callbacks: list[Any] = [StepSizeAdvisor(apply=True)] if advised else []
    trainer = L.Trainer(
        max_steps=options.steps, callbacks=callbacks, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0, num_sanity_val_steps=0, accelerator="cpu",
    )  # fmt: skip
    trainer.fit(module, data)
    (result,) = trainer.test(module, data, verbose=False)
    return {"accuracy": result["test/acc"], "inner_lr": module.hparams["inner_lr"]}


def collect(options: argparse.Namespace, inner_lr: float, advised: bool) -> tuple[float, float]:
    """The mean accuracy over seeds and the last step size, of runs that are read where they are there."""
    runs = []
    for seed in range(options.seeds):
        where = "omniglot" if options.omniglot else "glyphs"
        way = "advised" if advised else "fixed"
        steps = f"{options.inner_steps}of{options.eval_inner_steps}"
        path = options.output / f"{where}_{options.steps}_{options.hidden}_{steps}_{way}_{inner_lr:g}_{seed}.json"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(train(options, inner_lr, advised, seed)))
        runs.append(json.loads(path.read_text()))
    return mean(run["accuracy"] for run in runs), mean(run["inner_lr"] for run in runs)


def main() -> None:
    """Train what is not there yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="the folder of the runs")
    parser.add_argument("--omniglot", help="the folder of Omniglot; Glyphs without it")
    parser.add_argument("--steps", type=int, default=300, help="outer steps of a run")
    parser.add_argument("--hidden", type=int, default=64, help="filters of Conv4")
    parser.add_argument("--inner_steps", type=int, default=1, help="inner steps in training")
    parser.add_argument("--eval_inner_steps", type=int, default=3, help="inner steps in the test")
    parser.add_argument("--tasks", type=int, default=600, help="test tasks")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each row")
    options = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    fixed = {size: collect(options, size, False) for size in FIXED}
    best = max(accuracy for accuracy, _ in fixed.values())
    print(describe())
    print(f"\n{options.steps} steps, {options.seeds} seeds; the tuned accuracy is {best:.2%}\n")
    print("| inner_lr asked for | advised | inner_lr at the end | accuracy | points below the tuned one |")
    print("|---:|---|---:|---:|---:|")
    rows = [(size, "no", *values) for size, values in fixed.items()]
    rows += [(size, "yes", *collect(options, size, True)) for size in WRONG]
    for size, advised, accuracy, last in rows:
        print(f"| {size:g} | {advised} | {last:.3g} | {accuracy:.2%} | {100 * (best - accuracy):.2f} |")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
