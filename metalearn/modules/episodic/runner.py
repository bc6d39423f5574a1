"""The inner loop of a module, run in the way that is exact and cheapest for its network."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeVar

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from metalearn.episode import Batch, Episode
from metalearn.errors import ConfigError
from metalearn.inner import (
    Adaptation,
    Learner,
    Loss,
    MetaLoss,
    Plan,
    QueryOutputs,
    Schedule,
    evaluate,
    meta_loss,
    own_kernels,
)
from metalearn.inner.adaptation import InnerMethod, Settings
from metalearn.inner.ambient import recording_steps
from metalearn.inner.execution.choice import Choice
from metalearn.inner.execution.compiled import CompiledPart
from metalearn.inner.execution.meta_loss import take_tasks
from metalearn.inner.execution.plan import make_plan
from metalearn.inner.execution.recorded import RecordedPart
from metalearn.inner.execution.step_recorder import StepRecorder
from metalearn.inner.grad_mode import evaluation_gradients, usable
from metalearn.inner.inner_loop import InnerLoop
from metalearn.inner.kernels.conv_choice import CHOICE
from metalearn.inner.losses import evaluating_loss
from metalearn.inner.network.structure import Mode
from metalearn.inner.norm.policies import has_batch_norm
from metalearn.inner.rules import Params
from metalearn.inner.solvers import TaskSolver
from metalearn.modules.episodic.chooser import Chooser
from metalearn.modules.episodic.fitting import Fitting, Share

__all__ = ["InnerRunner", "make_usable"]

Result = TypeVar("Result")


class Running(NamedTuple):
    """The inner loop as it is run on some tasks.

    Attributes:
        adaptation: in the chosen way.
        plan: how many tasks are run at once.
        choice: the way, and why.
    """

    adaptation: Adaptation
    plan: Plan
    choice: Choice


class InnerRunner:
    """Adapts a network to tasks, and takes gradients through that.

    Args:
        name: of the module, which begins what is said.
        options: of the inner loop.
        learner: says which parameters adapt.
        loss: of support and query sets.
        solver: solves the inner problem of a task.

    Attributes:
        name: of the module.
        options: as they are now.
        learner: of the whole network.
        solver: of the inner problem.
        loss: of support and query sets.
        chooser: has chosen how tasks are run.
        fitting: finds how many of them fit into memory.
        compiled: runs a compiled or a recorded step; ``None`` where neither was asked for.
        recorder: takes inner gradients by recorded operators; ``None`` where that was not asked for.
    """

    def __init__(self, name: str, options: InnerLoop, learner: Learner, loss: Loss, solver: TaskSolver) -> None:
        self.options, self.learner, self.solver, self.loss = options, learner, solver, loss
        self.chooser = Chooser(name)
        self.fitting = Fitting(name)
        self.compiled: CompiledPart | RecordedPart | None = None
        if options.compile in (True, "graph"):
            self.compiled = RecordedPart(rank_zero_info) if options.compile == "graph" else CompiledPart(rank_zero_info)
        self.recorder = StepRecorder(rank_zero_info) if options.compile == "steps" else None
        self.name = name
        self._notes: set[str] = set()
        self._ran = False

    @property
    def adaptation(self) -> Adaptation:
        """The inner loop as a frozen function, before it is fitted to tasks."""
        return self._adapt_by(self.solver.method())

    def meta_loss(self, episode: Episode, ways: int | None, weights: Sequence[float] | None) -> MetaLoss:
        """The mean query loss after adaptation, with its graph, and the query logits ``[B, n, N]`` without one.

        Args:
            episode: ``B`` tasks.
            ways: how many of the network's outputs the tasks use; ``None`` for all.
            weights: of the query loss after each inner step; ``None`` for the last alone.

        Raises:
            BilevelError: the inner problem of a task cannot be solved.
            ConfigError: the step is compiled, and ``ways`` is given.
            MemoryLimitError: not even one task at a time fits into memory.
        """
        if not torch.is_grad_enabled():  # a value is wanted, as in a validation of the user's own
            with evaluation_gradients():
                loss, logits = self.meta_loss(make_usable(episode), ways, weights)
            return MetaLoss(loss.detach(), logits)
        if ways is not None and isinstance(self.compiled, CompiledPart):
            raise ConfigError(
                "compile is True, but the tasks of this batch differ in shape, and each shape would be compiled anew; use "
                "compile=False, or fixed ways, shots and queries"
            )
        options, solver = self.options, self.solver
        order = 1 if options.first_order else 2
        schedule = Schedule(options.inner_steps, solver.settings(self.learner.moving()), order, weights)
        with self.running(episode, ways) as (adaptation, plan, _):
            params = adaptation.outer()

            def step(tasks: int, plan: Plan) -> MetaLoss:
                first = take_tasks(episode, 0, tasks)
                if self.recorder is not None:
                    self.recorder.forget_requests()
                with solver.watching():
                    return meta_loss(adaptation, params, solver.learned(), first, schedule, plan, self.compiled)

            with recording_steps(self.recorder):
                result = self.fit(step, adaptation, plan, episode, evaluating=False)
            if self.recorder is not None:
                self.recorder.record(adaptation.learner.structure.own())
        if not self._ran and (note := CHOICE.describe()) is not None:
            self.tell_once(note)
        self._ran = True
        return result

    def evaluate(self, episode: Episode, ways: int | None, steps: Iterable[int], alone: bool = False) -> QueryOutputs:
        """Query outputs ``[B, n, N]`` after each number of inner steps, without a graph; tensors must be usable.

        Args:
            episode: ``B`` tasks.
            ways: how many of the network's outputs the tasks use; ``None`` for all.
            steps: after how many inner steps.
            alone: whether queries are answered one by one too.

        Raises:
            MemoryLimitError: not even one task at a time fits into memory.
        """
        with self.running(episode, ways, evaluating=True) as (adaptation, plan, _):
            params = {name: usable(value) for name, value in adaptation.outer().items()}
            settings, steps = self.fixed_settings(), list(steps)

            def step(tasks: int, plan: Plan) -> QueryOutputs:
                return evaluate(adaptation, params, take_tasks(episode, 0, tasks), steps, settings, plan, alone)

            outputs = self.fit(step, adaptation, plan, episode, evaluating=True)
        if ways is None:
            return outputs
        together = {step: logits[:, :, :ways] for step, logits in outputs.together.items()}
        return QueryOutputs(together, None if outputs.alone is None else outputs.alone[:, :, :ways])

    def fit(
        self,
        step: Callable[[int, Plan], Result],
        adaptation: Adaptation,
        plan: Plan,
        episode: Episode,
        evaluating: bool,
    ) -> Result:
        """Run a step with as many tasks at once as fit into memory; see :meth:`Fitting.run`."""
        share = Share.of([tensor for role in episode for tensor in role], adaptation, evaluating)
        return self.fitting.run(step, plan, share, self.options)

    def fixed_settings(self) -> Settings:
        """What the solver hands to its method, without a graph."""
        settings = self.solver.settings(self.learner.moving())
        return [
            {name: usable(value).detach() if isinstance(value, Tensor) else value for name, value in step.items()}
            for step in settings
        ]

    @contextlib.contextmanager
    def running(self, episode: Episode, ways: int | None = None, evaluating: bool = False) -> Iterator[Running]:
        """Within this context the inner loop can be run on tasks that use the first ``ways`` outputs."""
        mode: Mode = "evaluating" if evaluating else "as_it_is"
        params = {name: usable(value) for name, value in self.learner.outer().items()}
        learner = self._specialise(params, episode.support.x[0], mode)
        choice = self._choose(learner, tuple(params), episode, evaluating)
        learner = learner.as_given() if choice.as_given else learner
        with contextlib.ExitStack() as stack:
            running = stack.enter_context(learner.running(mode))
            stack.enter_context(own_kernels(*choice.operators))
            if evaluating:
                stack.enter_context(evaluating_loss(self.loss))
            adaptation = replace(self.adaptation, learner=running, ways=ways).with_memory(choice.memory)
            at_once, compiled = self.options.tasks_at_once, isinstance(self.compiled, CompiledPart)
            plan = make_plan(choice, adaptation, episode, at_once, compiled, evaluating)
            yield Running(adaptation, plan, choice)

    def _adapt_by(self, method: InnerMethod) -> Adaptation:
        return Adaptation(self.learner, self.loss, method)

    def _choose(self, learner: Learner, outer: tuple[str, ...], episode: Episode, evaluating: bool) -> Choice:
        choice = self.chooser.find(learner, outer, evaluating)
        if choice is not None:
            return choice
        options = self.options
        order = 0 if evaluating else 1 if options.first_order else 2
        schedule = Schedule(options.inner_steps, self.fixed_settings(), order)
        probed = self._adapt_by(self.solver.probed_method())
        return self.chooser.choose(probed, learner, outer, episode, options, schedule)

    def _specialise(self, params: Params, x: Tensor, mode: Mode) -> Learner:
        """The learner in its cheapest exact form for the network as it is now, tried on examples ``[n, ...]`` of a task."""
        learner = self.learner.specialised(params, x, mode)
        if learner.note is not None:
            self.tell_once(learner.note)
        return learner

    def tell_settings(self) -> None:
        """Say once by whose statistics the network's batch normalisation works, and which steps are more than were learned."""
        if (warning := self.solver.warn_of_steps(self.options.steps_in_evaluation)) is not None:
            self.tell_once(warning)
        if not has_batch_norm(self.learner.backbone):
            return
        kept, taken = self.options.inner_steps, self.options.steps_in_evaluation
        note = f"batch normalisation policy '{self.learner.norm}'"
        if self.learner.norm == "per_step" and taken > kept:
            note += f", whose statistics end at {kept} inner steps, but evaluation takes {taken}; use eval_inner_steps={kept}"
        self.tell_once(note)

    def tell_once(self, note: str) -> None:
        """Say this on rank 0, unless it was said before."""
        if note not in self._notes:
            self._notes.add(note)
            rank_zero_info(f"{self.name}: {note}")


def make_usable(episode: Episode) -> Episode:
    """The episode, of which no tensor is one of ``inference_mode``; call it within :func:`evaluation_gradients`."""
    return Episode(*(Batch(usable(role.x), usable(role.y)) for role in episode))
