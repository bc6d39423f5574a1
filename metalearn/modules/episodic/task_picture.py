"""The picture of one test task after adaptation, of whatever kind the data are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from metalearn.episode import Batch
from metalearn.inner import Adaptation
from metalearn.inner.bands import BandLoss
from metalearn.modules.episodic.measures import predict_values
from metalearn.reports import pictures
from metalearn.reports.completion import draw_completion, find_pixels
from metalearn.reports.points import draw_agreement, draw_points
from metalearn.shipping import AdaptedModel

__all__ = ["AdaptsToTasks", "draw_task"]


COLOURS = (torch.Size([1]), torch.Size([3]))
"""The shapes of a pixel's target: grey, or red, green and blue."""


class AdaptsToTasks(Protocol):
    """What the picture of a task asks of a module; see :class:`~metalearn.modules.MetaModule` for the members."""

    @property
    def classifies(self) -> bool:
        """Whether targets are class labels."""

    @property
    def eval_inner_steps(self) -> int:
        """Inner steps in a test."""

    @property
    def device(self) -> torch.device:
        """Where the module is."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Of the module."""

    @property
    def adaptation(self) -> Adaptation:
        """The inner loop, whose loss says what outputs mean."""

    def adapt(self, support: Batch, steps: int | None = None, ways: int | None = None) -> AdaptedModel:
        """Adapt to one task."""


def draw_task(path: Path, data: Any, model: AdaptsToTasks, title: str) -> Path | None:
    """Draw the first test task: examples in a grid, vectors in a plane, a curve, an image, or predictions against targets.

    Args:
        path: the PNG file.
        data: draws the task by its ``episode(seed, split, index)``.
        model: adapts to it.
        title: the run's name.

    Returns:
        the file, or ``None`` where the data have no suitable picture: tokens, and what is not one tensor.
    """
    episode = data.episode(getattr(data, "seed", 0), "test", 0)
    roles = episode[:2]
    if not all(isinstance(part, torch.Tensor) for role in roles for part in role):
        return None
    support, query = (Batch(_ready(role.x, model), _ready(role.y, model)) for role in roles)
    if model.classifies and support.y.ndim == 1 and not support.y.is_floating_point():
        return _draw_classes(path, support, query, model, f"{title}: test task 0")
    return _draw_targets(path, support, query, model, f"{title}: test task 0")


def _draw_classes(path: Path, support: Batch, query: Batch, model: AdaptsToTasks, title: str) -> Path | None:
    inputs = _array(support.x)
    vectors = inputs.ndim == 2 and inputs.dtype.kind == "f"
    if not vectors and not pictures.is_drawable(inputs):
        return None
    ways = int(support.y.max()) + 1
    predictions = _array(model.adapt(support, ways=ways)(query.x).argmax(-1))
    draw = draw_points if vectors else pictures.draw_episode
    return draw(
        path, inputs, _array(support.y), _array(query.x), _array(query.y), predictions, [str(way) for way in range(ways)],
        title=title,
    )  # fmt: skip


def _draw_targets(path: Path, support: Batch, query: Batch, model: AdaptsToTasks, title: str) -> Path | None:
    loss, steps = model.adaptation.loss, sorted({0, 1, model.eval_inner_steps})
    adapted = {step: model.adapt(support, steps=step) for step in steps}
    outputs = {step: network(query.x).detach() for step, network in adapted.items()}
    fits = {step: _array(predict_values(loss, output)) for step, output in outputs.items()}
    targets = _array(query.y)
    if any(fit.size != targets.size for fit in fits.values()):
        return None
    grid = find_pixels(np.concatenate([_array(support.x), _array(query.x)])) if query.y.shape[1:] in COLOURS else None
    if grid is not None:
        numbers, shape = grid
        pixels, colours = (numbers[: len(support.y)], numbers[len(support.y) :]), (_array(support.y), targets)
        known = {step: _array(predict_values(loss, network(support.x).detach())) for step, network in adapted.items()}
        painted = {step: (known[step], fit) for step, fit in fits.items()}
        return draw_completion(path, shape, pixels, colours, painted, title, _find_spread(loss, outputs[steps[-1]]))
    if all(part.ndim == 1 or part[0].numel() == 1 for part in (query.x, query.y)) and query.x.is_floating_point():
        points = [(_array(role.x).ravel(), _array(role.y).ravel()) for role in (support, query)]
        band = None
        if isinstance(loss, BandLoss) and loss.share > 0:
            low, high = (_array(bound).ravel() for bound in loss.band(outputs[steps[-1]]))
            band = (low, high, f"band of {100 * loss.share:.4g} %")
        return pictures.draw_sinusoid(
            path, points[0], points[1], {step: fit.ravel() for step, fit in fits.items()}, title, band
        )
    return draw_agreement(path, targets.ravel(), {step: fit.ravel() for step, fit in fits.items()}, title)


def _find_spread(loss: Any, outputs: torch.Tensor) -> tuple[np.ndarray, str] | None:
    """How wide the band of each output is, and the band's name; ``None`` where there is none."""
    if not isinstance(loss, BandLoss) or loss.share == 0:
        return None
    low, high = (_array(bound) for bound in loss.band(outputs))
    return high - low, f"width of the {100 * loss.share:.4g} % band"


def _ready(value: torch.Tensor, model: AdaptsToTasks) -> torch.Tensor:
    """On the module's device, and floating-point values in its precision, as a Trainer gives them to it."""
    kind = next((param.dtype for param in model.parameters() if param.is_floating_point()), value.dtype)
    return value.to(model.device, kind if value.is_floating_point() else value.dtype)


def _array(value: torch.Tensor) -> np.ndarray:
    value = value.detach().cpu()
    return np.asarray((value.float() if value.is_floating_point() else value).numpy())
