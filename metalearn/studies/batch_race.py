"""MAML, ANIL and first-order MAML with batches of several sizes, until gradients or seconds are spent."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import torch

from metalearn.modules import MetaModule
from metalearn.studies.cases import Report, Row
from metalearn.studies.few_shot_runs import Run
from metalearn.studies.image_runs import IMAGES, is_finite, open_data
from metalearn.studies.linear_tasks import draw_tasks, half_squares, make_network
from metalearn.studies.methods import METHODS, build

__all__ = ["LINEAR", "NAMES", "make_linear", "race_images", "race_known"]

NAMES = ("MAML", "FOMAML", "ANIL")


class Linear(NamedTuple):
    """The training on linear tasks.

    Attributes:
        inner_steps: of all methods.
        inner_lr: their size.
        outer_lr: Adam's learning rate.
        held: tasks on which the meta-loss is measured.
    """

    inner_steps: int = 5
    inner_lr: float = 0.1
    outer_lr: float = 0.01
    held: int = 100


LINEAR = Linear()


def make_linear(method: str, seed: int) -> MetaModule:
    """Build a method for linear tasks."""
    return METHODS[method].make(
        make_network(1, seed),
        inner_steps=LINEAR.inner_steps,
        inner_lr=LINEAR.inner_lr,
        loss=half_squares,
        task="regression",
    )


def race_known(seed: int, method: str, batch: int, calls: int, marks: int, report: Report) -> list[Row]:
    """Train on linear tasks until the gradients and products are spent, and measure the meta-loss on others at each mark."""
    module, held = make_linear(method, seed), draw_tasks(seed, LINEAR.held, -1)
    optimizer = torch.optim.Adam(module.parameters(), lr=LINEAR.outer_lr)
    price = sum(METHODS[method].count(batch, LINEAR.inner_steps).as_dict().values())
    total = max(round(calls / price), marks)
    rows: list[Row] = []
    seconds = 0.0
    for step in range(1, total + 1):
        tasks = draw_tasks(seed, batch, step)
        begun = time.process_time()
        optimizer.zero_grad()
        module.meta_loss(tasks).loss.backward()
        optimizer.step()
        seconds += time.process_time() - begun
        if step * marks // total > (step - 1) * marks // total:
            loss = float(module.meta_loss(held).loss.detach())
            rows.append({"part": "linear", "kind": "race", "seed": seed, "method": method, "batch": batch, "step": step,
                         "mark": len(rows) + 1, "calls": step * price, "seconds": seconds, "loss": loss,
                         "last": int(step == total)})  # fmt: skip
            report(step / total)
    return rows


def race_images(
    setting: str,
    root: str,
    seed: int,
    method: str,
    batch: int,
    seconds: float,
    marks: int,
    test_tasks: int,
    inner_steps: int,
    inner_lr: float,
    report: Report,
) -> list[Row]:
    """Train on images until the CPU seconds are spent, and test at each mark."""
    data = open_data(setting, root, 1, tasks_per_batch=batch)
    module = build(method, IMAGES[setting].network, seed, inner_steps, inner_lr)
    run = Run(module, data, seed, 0.001, METHODS[method].count)
    rows: list[Row] = []
    for mark in range(1, marks + 1):
        while run.seconds < seconds * mark / marks and is_finite(module):
            run.take_step()
            report(min(run.seconds / seconds, 1.0))
        row: dict[str, Any] = {"part": setting, "kind": "race", "seed": seed, "method": method, "batch": batch}
        accuracy = run.accuracy(test_tasks) if is_finite(module) else 100 / int(data.ways)
        calls = sum(run.counts.as_dict().values())
        rows.append({**row, "step": run.steps, "mark": mark, "calls": calls, "seconds": run.seconds, "accuracy": accuracy,
                     "last": int(mark == marks)})  # fmt: skip
    return rows
