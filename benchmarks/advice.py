"""Whether the advisor brings runs of ten wrong step sizes to the accuracy of a tuned one.

    OMP_NUM_THREADS=1 python benchmarks/advice.py --output runs/advice [--omniglot DIR] [--seeds 3] [--at_once 2]

First it trains at fixed step sizes, of which the best is the tuned one. Then it trains from ten wrong step sizes with
``StepSizeAdvisor(apply=True)``. Each run is one JSON file in the output folder, and is not trained again: stop it when you like.
The table says the mean over seeds, its 95 % interval where there are several, and the distance to the tuned accuracy.
"""

from __future__ import annotations

import argparse
import json
import logging
import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import mean
from typing import Any

import lightning as L
import torch
from machine import processor

from metalearn import MAML, Conv4, StepSizeAdvisor
from metalearn.datamodules import GlyphsDataModule, OmniglotDataModule
from metalearn.studies.intervals import format_interval

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
        enable_model_summary=False, limit_val_batches=0, num_sanity_val_steps=0, accelerator=options.accelerator,
        devices=1,
    )  # fmt: skip
    trainer.fit(module, data)
    (result,) = trainer.test(module, data, verbose=False)
    return {"accuracy": result["test/acc"], "inner_lr": module.hparams["inner_lr"]}


Job = tuple[float, bool, int]
"""The inner step size that is asked for, whether there is an advisor, and the seed."""


def find_file(options: argparse.Namespace, job: Job) -> Path:
    """Where a run's file is or will be."""
    where = "omniglot" if options.omniglot else "glyphs"
    way = "advised" if job[1] else "fixed"
    steps = f"{options.inner_steps}of{options.eval_inner_steps}"
    return Path(options.output) / f"{where}_{options.steps}_{options.hidden}_{steps}_{way}_{job[0]:g}_{job[2]}.json"


def run(options: argparse.Namespace, job: Job) -> str:
    """Train one run, and write its file."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    torch.set_num_threads(1)
    result = train(options, *job)
    on_gpu = options.accelerator != "cpu" and torch.cuda.is_available()
    trained_on = torch.cuda.get_device_name() if on_gpu else processor()
    find_file(options, job).write_text(json.dumps({**result, "machine": f"{trained_on}, torch {torch.__version__}"}))
    return f"{find_file(options, job).stem}: {result['accuracy']:.2%} at {result['inner_lr']:.3g}"


def read(options: argparse.Namespace, size: float, advised: bool) -> tuple[list[float], float, set[str]]:
    """The accuracies (%) of a row over seeds, its mean last step size, and where it was trained."""
    runs = [json.loads(find_file(options, (size, advised, seed)).read_text()) for seed in range(options.seeds)]
    accuracies = [100 * run["accuracy"] for run in runs]
    return accuracies, mean(run["inner_lr"] for run in runs), {run["machine"] for run in runs}


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
    parser.add_argument(
        "--fixed", type=float, nargs="+", default=FIXED, help="fixed step sizes, of which the best is the tuned one"
    )
    parser.add_argument("--seeds", type=int, default=1, help="runs of each row")
    parser.add_argument("--accelerator", default="cpu", help="where to train")
    parser.add_argument("--at_once", type=int, default=1, help="how many runs work at the same time")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    rows = [(size, False) for size in options.fixed] + [(size, True) for size in WRONG]
    jobs = [(*row, seed) for seed in range(options.seeds) for row in rows]
    waiting = [job for job in jobs if not find_file(options, job).is_file()]
    with ProcessPoolExecutor(options.at_once, mp_context=get_context("spawn")) as pool:
        for line in pool.map(run, [options] * len(waiting), waiting):
            print(line, flush=True)
    found = {row: read(options, *row) for row in rows}
    best = max(mean(accuracies) for (_, advised), (accuracies, *_) in found.items() if not advised)
    print("; ".join(sorted(set().union(*(machines for *_, machines in found.values())))))
    print(f"\n{options.steps} steps, {options.seeds} seeds; the tuned accuracy is {best:.2f} %\n")
    print("| inner_lr asked for | advised | inner_lr at the end | accuracy (%) | points below the tuned one |")
    print("|---:|---|---:|---:|---:|")
    for (size, advised), (accuracies, last, _) in found.items():
        short = best - mean(accuracies)
        print(
            f"| {size:g} | {'yes' if advised else 'no'} | {last:.3g} | {format_interval(accuracies, 2)} | {short:.2f} |"
        )


if __name__ == "__main__":
    main()
