"""All few-shot algorithms on Omniglot, each trained for as many CPU seconds, by the same network, tasks and outer optimiser.

A row is one process of one thread. Its seconds are those of the processor, so that other work on the machine makes it no shorter.
The outer step size is annealed to 0 over these seconds, and the weights are averaged over about 50 steps. Steps, step sizes and
loss are those of the shipped configs; no row was tuned. MAML++ and ALFA are tested with as many inner steps as they are trained
with: what they learn for each step ends there. Each row writes one JSON file, and one that has it is not run again.

python benchmarks/equal_seconds.py --root DIR --ways 5 --shots 1 --seconds 600 --output rows --at_once 2
python benchmarks/equal_seconds.py --output rows --table
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from machine import describe
from torch.optim.lr_scheduler import LambdaLR

import metalearn
from metalearn import Context, Conv4, LoRA, PrototypeHead, SharedHead
from metalearn.datamodules import EpisodeOptions, OmniglotDataModule

CLASSIFIERS = ("linear", "cosine", "logistic_regression", "nearest_centroid")
FROZEN = CLASSIFIERS[2:]
"""Their training is that of the linear one: only the heads of new tasks differ."""
TRAINING_CLASSES = 4800
"""1,200 characters in four orientations."""


def list_rows(shots: int) -> dict[str, tuple[str, dict[str, Any]]]:
    """The class and the arguments of each row, for one shot or several, as the configs of that cell have them."""
    one = shots == 1
    steps = {"inner_steps": 1, "eval_inner_steps": 3} if one else {"inner_steps": 5}
    start = 0.4 if one else 0.1
    learned = {**steps, "inner_lr": "learn", "initial_inner_lr": start}
    rows: dict[str, tuple[str, dict[str, Any]]] = {
        "MAML": ("MAML", learned),
        "first-order MAML": ("MAML", {**learned, "first_order": True}),
        "MAML++ (sizes and statistics per step)": (
            "MAML",
            {**learned, "eval_inner_steps": learned["inner_steps"], "inner_lr": "learn_per_step", "norm": "per_step"},
        ),
        "Meta-SGD": ("MAML", {**learned, "inner_lr": "learn_per_element"}),
        "ANIL": ("ANIL", learned),
        "ANIL, ridge head (R2-D2)": ("ANIL", {"head_solver": "ridge"}),
        "BOIL": ("MAML", {**learned, "adapts": "body"}),
        "head and biases": ("MAML", {**learned, "adapts": ["head", "bias"]}),
        "LoRA, rank 4": ("MAML", {**learned, "adapter": LoRA(rank=4)}),
        "CAVIA, 100 context parameters": ("MAML", {**learned, "adapter": Context(size=100, layers=["norm", "head"])}),
        "UNICORN-MAML": ("MAML", {**learned, "adapter": SharedHead()}),
        "ProtoMAML": ("MAML", {**learned, "initial_inner_lr": 0.1, "adapter": PrototypeHead()}),
        "ALFA": ("ALFA", {"inner_steps": steps["inner_steps"], "inner_lr": start}),
        "MeTAL": ("MeTAL", {**steps, "inner_lr": start}),
        "iMAML": ("IMAML", {"inner_steps": 16, "inner_lr": 0.03, "cg_steps": 5, "damping": 100.0}),
        "Reptile": ("Reptile", {"inner_steps": 5, "eval_inner_steps": 10, "inner_lr": 0.1}),
        "ProtoNet": ("ProtoNet", {}),
        "Baseline": ("Baseline", {"classes": TRAINING_CLASSES}),
        "Baseline++": ("Baseline", {"classes": TRAINING_CLASSES, "classifier": "cosine"}),
    }
    return {name: row for name, row in rows.items() if hasattr(metalearn, row[0])}


PASSED_ON = ("root", "ways", "shots", "seconds", "seed", "test_tasks", "output")


class Budget(L.Callback):
    """Ends training after so many seconds of this process on the processor, and says how much of them is gone."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.begun = math.nan
        self.spent = 0.0

    def left(self, step: int) -> float:
        """The share of the outer step size, annealed to 0 (Loshchilov and Hutter 2017)."""
        return 0.5 * (1.0 + math.cos(math.pi * min(self.spent / self.seconds, 1.0)))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.begun = time.process_time()

    def on_train_batch_end(self, trainer: L.Trainer, *args: object) -> None:
        self.spent = time.process_time() - self.begun
        trainer.should_stop = self.spent >= self.seconds


def make_trainer(*callbacks: L.Callback, **options: Any) -> L.Trainer:
    """A trainer that writes nothing."""
    return L.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, callbacks=list(callbacks), **options,
    )  # fmt: skip


def make_module(kind: str, options: Mapping[str, Any], ways: int, budget: Budget) -> L.LightningModule:
    """The module of a row."""
    adapter = options.get("adapter")
    zero = kind not in ("ProtoNet", "Baseline") and options.get("adapts") != "body" and adapter is None
    network = Conv4(in_channels=1, hidden=64, image_size=28, ways=ways, zero_head=zero)
    reptile = kind == "Reptile"
    optimizer: Any = partial(torch.optim.SGD, lr=1.0) if reptile else partial(torch.optim.Adam, lr=3e-3)
    more = dict(options) if kind == "Baseline" else {"norm": "transductive", **options}
    module: L.LightningModule = getattr(metalearn, kind)(
        network, outer_optimizer=optimizer, outer_scheduler=lambda made: LambdaLR(made, budget.left), **more
    )
    return module


def measure_adapted(module: Any, data: OmniglotDataModule) -> dict[str, int]:
    """How many numbers a task of the test split has of its own, and how large the file is that holds them."""
    support = next(iter(data.test_dataloader())).support
    adapted = module.adapt(type(support)(support.x[0], support.y[0]))
    with tempfile.TemporaryDirectory() as folder:
        bytes_kept = adapted.save(Path(folder) / "adapted.safetensors").stat().st_size
    return {
        "adapted": sum(value.numel() for value in adapted.parameters()),
        "bytes": bytes_kept,
        "network": sum(value.numel() for value in module.backbone.parameters()),
    }


def make_heads(name: str, module: L.LightningModule, ways: int, budget: Budget) -> dict[str, L.LightningModule]:
    """A row's module, and those whose training is the same."""
    modules = {name: module}
    if name == "Baseline":
        for classifier in FROZEN:
            options = {"classes": TRAINING_CLASSES, "classifier": classifier}
            other = make_module("Baseline", options, ways, budget)
            other.load_state_dict(module.state_dict())
            modules[f"Baseline, {classifier.replace('_', ' ')}"] = other
    return modules


def run_row(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Train a row, and test it."""
    torch.set_num_threads(1)
    L.seed_everything(options.seed, verbose=False)
    kind, arguments = list_rows(options.shots)[options.row]
    tasks = 16 if options.ways * options.shots <= 20 else 4
    data = OmniglotDataModule(
        options.root, ways=options.ways, shots=options.shots, queries=5, tasks_per_batch=tasks, train_tasks=tasks * 1000,
        test_tasks=options.test_tasks, seed=options.seed, options=EpisodeOptions(class_labels=kind == "Baseline"),
    )  # fmt: skip
    budget = Budget(options.seconds)
    module = make_module(kind, arguments, options.ways, budget)
    trainer = make_trainer(budget, EMAWeightAveraging(decay=0.98), max_epochs=-1, limit_val_batches=0)
    trainer.fit(module, datamodule=data)
    lines = []
    for name, tested in make_heads(options.row, module, options.ways, budget).items():
        begun = time.process_time()
        (scores,) = make_trainer().test(tested, datamodule=data, verbose=False)
        lines.append({
            "row": name, "ways": options.ways, "shots": options.shots, "tasks_per_step": tasks, "seed": options.seed,
            "steps": trainer.global_step, "train_seconds": budget.spent, "test_seconds": time.process_time() - begun,
            "accuracy": scores["test/acc"], "interval": scores["test/acc_ci95"], **measure_adapted(tested, data),
            "machine": describe(),
        })  # fmt: skip
    return lines


def run_all(options: argparse.Namespace) -> None:
    """Run each row that has no file yet in a process of its own, so many at once."""
    waiting = [name for name in list_rows(options.shots) if not find_file(options, name).exists()]
    run_rows(__file__, waiting, PASSED_ON, options)


def run_rows(script: str, waiting: list[str], passed_on: Sequence[str], options: argparse.Namespace) -> None:
    """Run a script with ``--row`` for each that waits, so many at once, and with the options that are passed on."""
    running: list[subprocess.Popen[bytes]] = []
    while waiting or running:
        while waiting and len(running) < options.at_once:
            more = [f"--{key}={getattr(options, key)}" for key in passed_on]
            running.append(subprocess.Popen([sys.executable, script, *more, f"--row={waiting.pop(0)}"]))
        time.sleep(1)
        running = [process for process in running if process.poll() is None]


def find_file(options: argparse.Namespace, row: str) -> Path:
    """Where a row's file is or will be."""
    name = "".join(letter if letter.isalnum() else "_" for letter in row)
    return Path(options.output) / f"{options.ways}w{options.shots}s_{name}.json"


def print_table(folder: Path) -> None:
    """One Markdown table for each cell of ways and shots, the best row first."""
    lines = [line for path in sorted(folder.glob("*.json")) for line in json.loads(path.read_text())]
    for ways, shots in sorted({(line["ways"], line["shots"]) for line in lines}):
        print(f"\n{ways}-way {shots}-shot; {next(iter(lines))['machine']}\n")
        print("| algorithm | accuracy | training | outer steps | adapted parameters | bytes of an adapted model |")
        print("|---|---|---:|---:|---:|---:|")
        cell = [line for line in lines if (line["ways"], line["shots"]) == (ways, shots)]
        for line in sorted(cell, key=lambda line: -line["accuracy"]):
            score = f"{100 * line['accuracy']:.2f} % ± {100 * line['interval']:.2f}"
            print(f"| {line['row']} | {score} | {line['train_seconds']:.0f} s | {line['steps']:,} | "
                  f"{line['adapted']:,} | {line['bytes']:,} |")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="where the two zip files of Omniglot are")
    parser.add_argument("--ways", type=int, default=5)
    parser.add_argument("--shots", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=600.0, help="of training, on one core")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--test_tasks", type=int, default=600)
    parser.add_argument("--output", required=True, help="the folder of the rows' files")
    parser.add_argument("--at_once", type=int, default=1, help="how many rows run at the same time")
    parser.add_argument("--row", help="this row alone, in this process")
    parser.add_argument("--table", action="store_true", help="print what is there")
    options = parser.parse_args()
    Path(options.output).mkdir(parents=True, exist_ok=True)
    if options.table:
        print_table(Path(options.output))
    elif options.row is None:
        run_all(options)
    else:
        warnings.filterwarnings("ignore", module="lightning")
        lines = run_row(options)
        find_file(options, options.row).write_text(json.dumps(lines, indent=1))
        print(f"{options.row}: {100 * lines[0]['accuracy']:.2f} % after {lines[0]['steps']} steps", flush=True)


if __name__ == "__main__":
    main()
