"""Adaptation to tasks of a user's own, one by one or many in one pass."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from metalearn.checks import MOST_STEPS, check_whole
from metalearn.episode import Batch, Episode, check_batch
from metalearn.errors import ShapeError
from metalearn.inner import Adaptation, Plan
from metalearn.inner.adaptation import Settings
from metalearn.inner.execution.threads import run_parts
from metalearn.inner.grad_mode import evaluation_gradients, usable
from metalearn.inner.rules import Params
from metalearn.inner.widening import check_widened, widen_head
from metalearn.modules.episodic.reading import TaskReader
from metalearn.modules.episodic.runner import InnerRunner, make_usable
from metalearn.modules.episodic.targets import Reading
from metalearn.shipping import AdaptedModel
from metalearn.shipping.description import Origin

__all__ = ["TaskAdapter"]


class _Start(NamedTuple):
    """What adaptation starts from.

    Attributes:
        params: the outer tensors by name.
        settings: what the solver hands to its method.
        known: labels that the network has before its head is widened.
        widened: for how many classes it is; ``None`` if it is not.
    """

    params: Params
    settings: Settings
    known: Tensor
    widened: int | None


class TaskAdapter:
    """Makes adapted models.

    Args:
        runner: of the inner loop.
        reader: of tasks.
    """

    def __init__(self, runner: InnerRunner, reader: TaskReader) -> None:
        self._runner, self._reader = runner, reader

    def adapt(self, support: Batch, steps: int | None, ways: int | None, origin: Origin) -> AdaptedModel:
        """Adapt to one task without a task axis; see :meth:`MetaModule.adapt`."""
        support = check_batch(support, "support")
        return self._adapt(Batch(support.x[None], support.y[None]), steps, ways, origin)[0]

    def adapt_many(self, support: Batch, steps: int | None, ways: int | None, origin: Origin) -> list[AdaptedModel]:
        """Adapt to ``B`` tasks; see :meth:`MetaModule.adapt_many`."""
        support = check_batch(support, "support")
        if support.x.ndim < 2 or support.y.ndim < 2 or support.x.shape[:2] != support.y.shape[:2]:
            raise ShapeError(
                f"support: x has shape {list(support.x.shape)} and y {list(support.y.shape)}, but both must begin with the same "
                "[tasks, examples]; stack the support sets of all tasks, or use adapt for a single one"
            )
        return self._adapt(support, steps, ways, origin)

    def _adapt(self, support: Batch, steps: int | None, ways: int | None, origin: Origin) -> list[AdaptedModel]:
        if steps is not None and steps != 0:
            check_whole("steps", steps, 1, MOST_STEPS)
        episode, reading = self._reader.prepare(Episode(support, support), ways)
        count = self._runner.options.steps_in_evaluation if steps is None else steps
        with evaluation_gradients():
            return self._run(make_usable(episode).support, reading, count, ways, origin)

    def _run(
        self, support: Batch, reading: Reading, steps: int, ways: int | None, origin: Origin
    ) -> list[AdaptedModel]:
        """Adapt to tasks ``[B, n, ...]`` whose tensors are usable."""
        runner = self._runner
        start = self._start(support.y, reading.outputs, ways)
        sizes = getattr(runner.solver, "step_sizes", None)
        if start.widened is not None and steps > 1 and sizes is not None and not sizes.rescaled:
            runner.tell_once(
                f"{ways} classes, where the network tells {reading.outputs} apart: {steps} inner steps of its sizes may leap "
                "over the minimum; compare rescale_steps(0.5), in metalearn predict --rescale_steps 0.5"
            )
        fixed = {name: value for name, value in runner.learner.backbone.named_parameters() if name not in start.params}
        known = Batch(support.x, start.known)
        episode = Episode(known, known)
        with runner.running(episode, ways, evaluating=True) as (adaptation, plan, choice):

            def run_part(adaptation: Adaptation, first: int, last: int) -> tuple[Params, int]:
                x, y = support.x[first:last], support.y[first:last]
                x, y = (x, y) if adaptation.stacked else (x[0], y[0])
                adapted = _iterate(adaptation, start, x, y, steps)
                rows = adapted if adaptation.stacked else {name: value[None] for name, value in adapted.items()}
                return rows, last - first

            def step(tasks: int, plan: Plan) -> list[tuple[Params, int]]:
                return run_parts(run_part, adaptation, tasks, plan)

            alone = len(support.x) == 1  # a task axis would cost more than it gives
            parts = runner.fit(step, adaptation, plan._replace(tasks=None) if alone else plan, episode, evaluating=True)
        rows = [{name: value[row] for name, value in adapted.items()} for adapted, size in parts for row in range(size)]
        models: list[AdaptedModel] = []
        for x, adapted in zip(support.x, rows, strict=True):
            tensors = {**fixed, **start.params, **adapted}
            models.append(
                AdaptedModel(
                    adaptation.learner, tensors, x, steps, ways, reading.classes, choice.operators, origin,
                    shares=models[0] if models else None,
                )
            )  # fmt: skip
        return models

    def _start(self, labels: Tensor, outputs: int, ways: int | None) -> _Start:
        runner = self._runner
        params: Params = {name: usable(value).detach() for name, value in runner.learner.outer().items()}
        settings = runner.fixed_settings()
        if ways is None or ways <= outputs:
            return _Start(params, settings, labels, None)
        if not runner.learner.widens:
            params, settings = widen_head(runner.learner, outputs, ways, params, settings)
        return _Start(params, settings, labels.clamp(max=outputs - 1), ways)


def _iterate(adaptation: Adaptation, start: _Start, x: Tensor, y: Tensor, steps: int) -> Params:
    """The tensors that adapt after the last step."""
    with torch.no_grad():
        encoded, _ = adaptation.encode(start.params, x, x)
        if start.widened is not None:
            first, labels = (encoded[0], y[0]) if adaptation.stacked else (encoded, y)
            begun = replace(adaptation, stacked=False).begin(start.params, first, labels)
            check_widened(adaptation.learner, start.params | begun, first, start.widened)
    *_, adapted = adaptation.iterates(start.params, encoded, y, steps, start.settings, order=0)
    return adapted
