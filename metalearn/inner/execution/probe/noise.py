"""What a comparison is made on: noise of an episode's shape, in float64, and as few steps as show a difference."""

from __future__ import annotations

import torch
from torch import Tensor

from metalearn.episode import Batch, Episode
from metalearn.inner.execution.schedule import Schedule

__all__ = ["make_noise", "shorten"]

EXAMPLES = 8
"""Examples of each set that are compared: exactness does not depend on their number."""

STEPS = 2
"""Inner steps that are run: a second one meets weights that are a function of the outer ones."""


def make_noise(episode: Episode) -> Episode:
    """Two tasks of noise, of few examples each, with the targets of ``episode``; inputs that are no floats stay."""
    generator = torch.Generator().manual_seed(0)

    def make(batch: Batch) -> Batch:
        x, y = batch.x[:2, :EXAMPLES], batch.y[:2, :EXAMPLES]
        noise = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.device)
        return Batch(noise if x.is_floating_point() else x, y.double() if y.is_floating_point() else y)

    return Episode(make(episode.support), make(episode.query))


def shorten(schedule: Schedule) -> Schedule:
    """The same with as many steps as are compared, settings in float64, and the query loss after the last step alone."""
    settings = [{name: _double(value) for name, value in step.items()} for step in schedule.settings]
    return Schedule(min(schedule.steps, STEPS), settings, schedule.order)


def _double(value: Tensor | float) -> Tensor | float:
    return value.detach().double() if isinstance(value, Tensor) else value
