"""The error of a meta-gradient over a batch of tasks: its bias and its deviation, against the exact one over all tasks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from metalearn.episode import Batch, Episode
from metalearn.modules import MetaModule
from metalearn.studies.batch_race import LINEAR, NAMES, make_linear
from metalearn.studies.cases import Report, Row
from metalearn.studies.few_shot_runs import Run
from metalearn.studies.image_runs import IMAGES, open_data
from metalearn.studies.linear_tasks import draw_tasks
from metalearn.studies.methods import METHODS, build

__all__ = ["find_task_gradients", "list_errors", "measure_images", "measure_known"]

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
DRAWS = 400
"""Batches of each size."""
TRAINED = 100
"""Outer steps behind the weights that count as trained."""


def find_task_gradients(module: MetaModule, tasks: Sequence[Episode]) -> Tensor:
    """The meta-gradients of single tasks, ``[P, D]`` in float64."""
    rows = [torch.cat([value.double().reshape(-1) for value in module.meta_gradient(task).values()]) for task in tasks]
    return torch.stack(rows)


def list_errors(gradients: Mapping[str, Tensor], seed: int, draws: int = DRAWS) -> list[Row]:
    """What a mean over ``B`` tasks, drawn with replacement, says of the mean over all ``P``.

    Lengths are in units of the exact meta-gradient ``g``: that of MAML, for FOMAML too, and that of ANIL. ``bias`` is
    ``|E b - g|`` and ``deviation`` the root of ``E |b - E b|^2`` for the mean ``b`` of a batch. ``error`` is the root of
    ``E |b - g|^2``, the sum of both squares. Expectations over draws of ``b`` are means over the draws, but for that in ``bias``,
    which is the mean over all tasks.

    Args:
        gradients: ``[P, D]`` of each method.
        seed: of the draws.
        draws: how many batches of each size.
    """
    rows = []
    for method, mine in gradients.items():
        exact = gradients["MAML" if method == "FOMAML" else method].mean(0)
        length, mean = float(exact.norm()), mine.mean(0)
        bias = float((mean - exact).norm()) / length
        generator = torch.Generator().manual_seed(seed)
        for size in BATCHES:
            picks = torch.randint(len(mine), (draws, size), generator=generator)
            shares = mine.new_zeros(draws, len(mine)).scatter_add_(1, picks, mine.new_full(picks.shape, 1 / size))
            batches = shares @ mine
            deviation, error = (
                math.sqrt(float((batches - centre).square().sum(1).mean())) / length for centre in (mean, exact)
            )
            rows.append({"method": method, "batch": size, "bias": bias, "deviation": deviation, "error": error})
    return rows


def measure_known(seed: int, tasks: int, report: Report) -> list[Row]:
    """The errors on linear tasks, at the initial weights and at trained ones."""
    population = _split(draw_tasks(seed, tasks, 0))
    modules = {method: make_linear(method, seed) for method in NAMES}
    key = {"part": "linear", "kind": "noise", "seed": seed}
    rows = [{**key, "weights": "initial", **row} for row in _measure(modules, population, seed)]
    report(0.3)
    optimizer = torch.optim.Adam(modules["MAML"].parameters(), lr=LINEAR.outer_lr)
    for step in range(TRAINED):
        optimizer.zero_grad()
        modules["MAML"].meta_loss(draw_tasks(seed, 16, step + 1)).loss.backward()
        optimizer.step()
    _copy_weights(modules)
    report(0.7)
    return rows + [{**key, "weights": "trained", **row} for row in _measure(modules, population, seed)]


def measure_images(
    setting: str, root: str, seed: int, tasks: int, inner_steps: int, inner_lr: float, report: Report
) -> list[Row]:
    """The errors on images, at the initial weights and at trained ones."""
    data = open_data(setting, root, 1)
    population = [data.draw(seed, "train", [index]) for index in range(tasks)]
    modules = {method: build(method, IMAGES[setting].network, seed, inner_steps, inner_lr) for method in NAMES}
    key = {"part": setting, "kind": "noise", "seed": seed}
    rows = [{**key, "weights": "initial", **row} for row in _measure(modules, population, seed)]
    report(0.3)
    run = Run(modules["MAML"], data, seed + 1_000_000, 0.001, METHODS["MAML"].count)  # other tasks than those
    while run.steps < TRAINED:
        run.take_step()
        report(0.3 + 0.4 * run.steps / TRAINED)
    _copy_weights(modules)
    return rows + [{**key, "weights": "trained", **row} for row in _measure(modules, population, seed)]


def _measure(modules: Mapping[str, MetaModule], population: Sequence[Episode], seed: int) -> list[Row]:
    return list_errors({name: find_task_gradients(module, population) for name, module in modules.items()}, seed)


def _split(episode: Episode) -> list[Episode]:
    """Each task as an episode of its own."""
    support, query = episode.support, episode.query
    return [
        Episode(Batch(support.x[place], support.y[place]), Batch(query.x[place], query.y[place]))
        for place in (slice(number, number + 1) for number in range(len(support.x)))
    ]


def _copy_weights(modules: Mapping[str, Any]) -> None:
    """Give the weights of MAML to the others."""
    for module in modules.values():
        module.backbone.load_state_dict(modules["MAML"].backbone.state_dict())
