"""The inner loop of a batch of tasks in the way that it is run, open to whoever measures it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from metalearn.episode import Episode
from metalearn.errors import ConfigError
from metalearn.inner import Adaptation
from metalearn.inner.adaptation import Settings
from metalearn.inner.ambient import recording
from metalearn.inner.execution.threads import run_parts
from metalearn.inner.grad_mode import evaluation_gradients, usable
from metalearn.inner.rules import Params
from metalearn.inner.support_gradient import StepwiseMethod
from metalearn.modules.episodic.batches import as_groups
from metalearn.modules.episodic.reading import TaskReader
from metalearn.modules.episodic.runner import InnerRunner, make_usable

__all__ = ["OpenLoop", "visit_loops"]

Result = TypeVar("Result")


@dataclass(frozen=True)
class OpenLoop:
    """The inner loop of the tasks that are run at once: its points, and its objectives as functions of what adapts.

    Attributes:
        adaptation: in the way that was chosen for the network.
        params: all outer tensors by name, without a graph; those that adapt ask for a gradient.
        settings: what the solver hands to its method, such as the step sizes.
        steps: the number of inner steps.
        order: of the meta-gradient: 2, or 1 where second derivatives are left out.
        episode: the tasks, their inputs encoded; without a task axis where tasks are run one by one.
        first: the number of the first of the tasks in the batch.
    """

    adaptation: Adaptation
    params: Params
    settings: Settings
    steps: int
    order: int
    episode: Episode
    first: int

    @property
    def tasks(self) -> int | None:
        """How many tasks have a leading axis; ``None`` for one without it."""
        return len(self.episode.support.x) if self.adaptation.stacked else None

    def iterates(self, order: int = 0) -> Iterator[Params]:
        """The tensors that adapt after 0, 1, ..., ``steps`` inner steps, with the graph that ``order`` asks for."""
        support = self.episode.support
        return self.adaptation.iterates(self.params, support.x, support.y, self.steps, self.settings, order)

    def slope(self, adapted: Params, step: int) -> Params:
        """The gradient of the inner objective at ``adapted``, with its graph to these tensors."""
        method, support = self.adaptation.method.stepwise, self.episode.support
        assert isinstance(method, StepwiseMethod)
        return method.slope(self.adaptation, self.params, adapted, support.x, support.y, step, self.settings)

    def support_loss(self, adapted: Params, step: int) -> Tensor:
        """The support loss of each task, ``[]`` or ``[b]``, with its graph to ``adapted``."""
        support, (_, others) = self.episode.support, self.adaptation.split(self.params)
        return self.adaptation.support_loss(adapted, others, support.x, support.y, step)

    def rescaled(self, factor: float) -> OpenLoop:
        """The same with all step sizes times a factor."""
        names = self.adaptation.split(self.params)[0].keys() | self.adaptation.learner.able().keys()
        settings = [
            {name: value * factor if name in names else value for name, value in setting.items()}
            for setting in self.settings
        ]
        return replace(self, settings=settings)

    def query_loss(self, adapted: Params, step: int) -> Tensor:
        """The query loss of each task, ``[]`` or ``[b]``, with its graph to ``adapted``."""
        support, query = self.episode
        logits = self.adaptation.query_logits(self.params, adapted, support.x, query.x, step)
        return self.adaptation.query_loss(self.params, logits, query.y)


def visit_loops(
    runner: InnerRunner, reader: TaskReader, batch: Any, evaluating: bool, function: Callable[[OpenLoop], Result]
) -> list[Result]:
    """Call a function with the opened inner loops of a batch; no random generator, buffer or gradient is moved on.

    Args:
        runner: adapts to tasks.
        reader: reads them.
        batch: as a training step takes it.
        evaluating: whether tasks are adapted as in evaluation.
        function: is called once for the tasks that are run at once, perhaps in a thread of its own.

    Raises:
        ConfigError: tasks are not adapted by gradient steps.
    """
    _check_steps(runner)
    results: list[Result] = []
    devices = [value.device for value in runner.learner.backbone.parameters() if value.is_cuda][:1]
    with torch.random.fork_rng(devices), evaluation_gradients(), recording(False):
        for group in as_groups(batch, reader.count_ways):
            episode = make_usable(reader.prepare(group.episode)[0])
            results += _visit(runner, episode, group.ways, evaluating, function)
    return results


def _check_steps(runner: InnerRunner) -> None:
    if runner.solver.method().stepwise is None:
        raise ConfigError(
            f"{runner.name} adapts without gradient steps, but what is asked for is measured along them; use a module that takes "
            "them, such as MAML, or ANIL with head_solver='gradient'"
        )
    if any("scale" in setting for setting in runner.fixed_settings()):
        raise ConfigError(
            f"{runner.name} multiplies its solution by a learned scale, but what is measured is a loss at the weights that are "
            "used; use head_loss='softmax'"
        )


def _visit(
    runner: InnerRunner, episode: Episode, ways: int | None, evaluating: bool, function: Callable[[OpenLoop], Result]
) -> list[Result]:
    """The same for tasks that are alike."""
    options, settings = runner.options, runner.fixed_settings()
    with runner.running(episode, ways, evaluating) as (adaptation, plan, _):
        adapts = adaptation.learner.adapts
        params = {name: usable(value).detach() for name, value in adaptation.outer().items()}
        moving = adaptation.split(params)[0]
        params |= {name: value.requires_grad_(adapts(name)) for name, value in moving.items()}

        def run_part(adaptation: Adaptation, first: int, last: int) -> Result:
            tasks = (part[first:last] if adaptation.stacked else part[first] for role in episode for part in role)
            xs, ys, xq, yq = tasks
            with torch.no_grad():
                xs, xq = adaptation.encode(params, xs, xq)
            part = Episode(type(episode.support)(xs, ys), type(episode.query)(xq, yq))
            steps = options.steps_in_evaluation if evaluating else options.inner_steps
            return function(OpenLoop(adaptation, params, settings, steps, 1 if options.first_order else 2, part, first))

        return run_parts(run_part, adaptation, len(episode.support.x), plan)
