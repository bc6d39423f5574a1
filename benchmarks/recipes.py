"""Recipes of meta-training on Omniglot, each for as many CPU seconds, judged on validation tasks alone.

A recipe is a set of changes to one base, written ``key=value`` with ``+`` between them. Keys are arguments of the module, or
those of ``OURS``: ``affine`` is by how much training images are turned, moved, scaled and sheared; ``lake=True`` takes alphabets
of Lake, tasks within one of them, and drawings of two people. The outer step size is annealed to 0 over the seconds. A row is
a process of one thread; its seconds are those of the processor. Each row writes one JSON file, and one that has it is not run
again. No test task is looked at.

python benchmarks/recipes.py --root DIR --kind MAML --ways 5 --shots 1 --seconds 300 --output rows --at_once 2 \\
    base inner_steps=3 outer_lr=0.001 inner_steps=3+tasks=8
python benchmarks/recipes.py --output rows --table
"""

from __future__ import annotations

import argparse
import ast
import json
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from equal_seconds import Budget, make_trainer, run_rows
from lightning.pytorch.callbacks import EMAWeightAveraging
from machine import describe
from torch.optim.lr_scheduler import LambdaLR
from torchvision.transforms.v2 import InterpolationMode, RandomAffine

import metalearn
from metalearn import Conv4
from metalearn.datamodules import EpisodeOptions, OmniglotDataModule

BASE: dict[str, Any] = {
    "inner_steps": 1, "eval_inner_steps": 3, "inner_lr": "learn", "initial_inner_lr": 0.4, "outer_lr": 3e-3, "tasks": 16,
    "queries": 5, "average": 0.98, "zero_head": True, "compile": "steps",
    "image_size": 28, "hidden": 64, "downsample": "pool", "affine": 0.0, "lake": False, "precision": None,
}  # fmt: skip
OURS = (
    "outer_lr", "tasks", "queries", "average", "zero_head", "image_size", "hidden", "downsample", "affine", "lake", "precision",
)  # fmt: skip
"""What is no argument of the module."""
OF_STEPS = ("inner_steps", "eval_inner_steps", "inner_lr", "initial_inner_lr", "compile")
"""What a head in closed form does not have: that of ``ProtoNet``, or of ANIL with ``head_solver=ridge``."""
PASSED_ON = ("root", "kind", "ways", "shots", "seconds", "seed", "tasks", "output")


def read_recipe(text: str) -> dict[str, Any]:
    """``"inner_steps=3+outer_lr=0.001"`` over the base."""
    recipe = dict(BASE)
    for change in text.split("+") if text != "base" else ():
        key, _, value = change.partition("=")
        try:
            recipe[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            recipe[key] = value
    return recipe


def choose_arguments(kind: str, recipe: dict[str, Any]) -> dict[str, Any]:
    """The recipe's arguments of the module."""
    closed_form = kind == "ProtoNet" or "head_solver" in recipe
    for key in OF_STEPS if closed_form else ():
        if recipe[key] != BASE[key]:
            raise SystemExit(f"{key} is {recipe[key]}, but a head in closed form takes no steps; leave it out")
    left_out = (*OURS, *OF_STEPS) if closed_form else OURS
    return {"norm": "transductive", **{key: value for key, value in recipe.items() if key not in left_out}}


def make_augmentation(amount: float) -> list[torch.nn.Module]:
    """Random affine maps; none for 0."""
    if not amount:
        return []
    bounds = {"translate": (0.1 * amount, 0.1 * amount), "scale": (1 - 0.15 * amount, 1 + 0.15 * amount)}
    return [RandomAffine(10.0 * amount, **bounds, shear=10.0 * amount, interpolation=InterpolationMode.BILINEAR)]


def run_recipe(options: argparse.Namespace) -> dict[str, Any]:
    """Train by a recipe, and evaluate on validation tasks."""
    torch.set_num_threads(1)
    L.seed_everything(options.seed, verbose=False)
    recipe = read_recipe(options.row)
    size, lake = recipe["image_size"], recipe["lake"]
    data = OmniglotDataModule(
        options.root, ways=options.ways, shots=options.shots, queries=recipe["queries"],
        tasks_per_batch=recipe["tasks"], train_tasks=1000 * recipe["tasks"], val_tasks=options.tasks, seed=options.seed,
        image_size=size, split="alphabets" if lake else "characters",
        options=EpisodeOptions(within_groups=lake, aligned=lake, augment=make_augmentation(recipe["affine"])),
    )  # fmt: skip
    budget = Budget(options.seconds)
    network = Conv4(
        in_channels=1, hidden=recipe["hidden"], image_size=size, ways=options.ways,
        downsample=recipe["downsample"], zero_head=recipe["zero_head"],
    )  # fmt: skip
    module = getattr(metalearn, options.kind)(
        network,
        outer_optimizer=partial(torch.optim.Adam, lr=recipe["outer_lr"]),
        outer_scheduler=lambda made: LambdaLR(made, budget.left),
        **choose_arguments(options.kind, recipe),
    )
    average = EMAWeightAveraging(decay=recipe["average"])
    trainer = make_trainer(budget, average, max_epochs=-1, limit_val_batches=0, precision=recipe["precision"])
    trainer.fit(module, datamodule=data)
    (scores,) = make_trainer().validate(module, datamodule=data, verbose=False)
    return {
        "recipe": options.row, "kind": options.kind, "ways": options.ways, "shots": options.shots, "seed": options.seed,
        "steps": trainer.global_step, "seconds": budget.spent, "accuracy": scores["val/acc"],
        "tasks": options.tasks, "machine": describe(),
    }  # fmt: skip


def find_file(options: argparse.Namespace, recipe: str) -> Path:
    """Where the file of a recipe is or will be."""
    cell = f"{options.kind}_{options.ways}w{options.shots}s_{options.seconds:.0f}s_seed{options.seed}"
    return Path(options.output) / f"{cell}_{recipe}.json"


def run_all(options: argparse.Namespace) -> None:
    """Run each recipe that has no file yet in a process of its own, so many at once."""
    waiting = [recipe for recipe in options.recipes if not find_file(options, recipe).exists()]
    run_rows(__file__, waiting, PASSED_ON, options)


def print_table(folder: Path) -> None:
    """One Markdown table for each cell, the best recipe first."""
    lines = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    cells = sorted({(line["kind"], line["ways"], line["shots"], round(line["seconds"], -1)) for line in lines})
    for cell in cells:
        print(f"\n{cell[0]}, {cell[1]}-way {cell[2]}-shot, {cell[3]:.0f} CPU seconds of one core\n")
        print("| recipe | validation accuracy | outer steps |\n|---|---|---:|")
        rows = [
            line for line in lines
            if (line["kind"], line["ways"], line["shots"], round(line["seconds"], -1)) == cell
        ]  # fmt: skip
        for line in sorted(rows, key=lambda line: -line["accuracy"]):
            print(f"| {line['recipe']} | {100 * line['accuracy']:.2f} % | {line['steps']:,} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", default=["base"])
    parser.add_argument("--root", help="where the two zip files of Omniglot are")
    parser.add_argument("--kind", default="MAML", help="a class of metalearn's")
    parser.add_argument("--ways", type=int, default=5)
    parser.add_argument("--shots", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=300.0, help="of training, on one core")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tasks", type=int, default=600, help="of validation")
    parser.add_argument("--output", required=True, help="the folder of the rows' files")
    parser.add_argument("--at_once", type=int, default=1, help="how many rows run at the same time")
    parser.add_argument("--row", help="this recipe alone, in this process")
    parser.add_argument("--table", action="store_true", help="print what is there")
    options = parser.parse_args()
    Path(options.output).mkdir(parents=True, exist_ok=True)
    if options.table:
        print_table(Path(options.output))
    elif options.row is None:
        run_all(options)
    else:
        warnings.filterwarnings("ignore", module="lightning")
        line = run_recipe(options)
        find_file(options, options.row).write_text(json.dumps(line, indent=1))
        print(f"{options.row}: {100 * line['accuracy']:.2f} % after {line['steps']} steps", flush=True)


if __name__ == "__main__":
    main()
