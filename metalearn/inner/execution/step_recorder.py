"""Inner gradients by lists of operators, recorded once for each kind of step.

An inner step of a small support set is bound by Python's layers, by autograd's nodes and by the views between them, not by
arithmetic. A list of operators, with both derivatives written out, needs none of these. It holds as long as nothing has changed
that Python would have looked at.
"""

from __future__ import annotations

import contextvars
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from metalearn.inner.adaptation import Adaptation
from metalearn.inner.ambient import recording_steps, remember
from metalearn.inner.execution.flat_part import describe_state, explain, find_obstacle, list_places
from metalearn.inner.execution.recorder import Recorder, compare
from metalearn.inner.generators import drawing_from, read_generators
from metalearn.inner.memory import MemoryMode, Objective, gradient
from metalearn.inner.replay.program import Program, make_program, replay

__all__ = ["StepRecorder"]

MOST_PROGRAMS = 8
"""Kinds of steps of a run that are recorded; others run as they are."""
MEETINGS = 30
"""A kind of step is recorded when it has been met so often, so that a short run does not pay for it."""
MOST_KINDS = 256
"""Kinds of steps whose meetings are counted; with more, counting begins anew."""
CONSTANTS = 2
"""The last of the tensors that a step reads are the support set and its targets, which no step changes."""
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-3}
"""By which a program may differ from the step that it stands for, relative to its norm."""
LOW_TOLERANCE = 0.1
"""The same, of shorter numbers and under autocast to them."""


class _Request(NamedTuple):
    """A step that is to be recorded.

    Attributes:
        objective: the inner loss.
        adapted: values of what moves.
        others: values of what else it reads.
        wanted: whose product the backward pass takes; ``None`` for a first-order step.
        memory: what is kept of it for the backward pass.
        context: what was ambient.
    """

    objective: Objective
    adapted: list[Tensor]
    others: list[Tensor]
    wanted: tuple[bool, ...] | None
    memory: MemoryMode
    context: contextvars.Context


class StepRecorder(Recorder):
    """Takes inner gradients: by autograd where a kind of step is met for the first times, by its program once there is one.

    Attributes:
        meetings: how often a kind of step is met before it is recorded.
    """

    meetings = MEETINGS

    def _begin(self) -> None:
        self._programs: dict[Any, Program] = {}
        self._asked: dict[Any, _Request] = {}
        self._met: Counter[Any] = Counter()

    def gradient(
        self,
        objective: Objective,
        adapted: Sequence[Tensor],
        others: Sequence[Tensor],
        order: int,
        memory: MemoryMode,
        adaptation: Adaptation,
        term: object,
        names: Sequence[str],
    ) -> tuple[Tensor, ...]:
        """As :func:`metalearn.inner.memory.gradient` gives it for the memory modes ``"store"`` and ``"remat"``.

        Args:
            objective: the inner loss of the next two, a scalar.
            adapted: the tensors that the inner loop moves.
            others: all others, the support set and its targets last.
            order: 2 for a gradient with a graph.
            memory: whether the graph keeps more than the tensors.
            adaptation: the inner loop.
            term: what it adds to the loss.
            names: of the network's and the loss's tensors among them.
        """
        if not self._may_record(adaptation):
            return gradient(objective, adapted, others, order, memory)
        adapted, others = [value.contiguous() for value in adapted], _lay_out(others)
        wanted = tuple(value.requires_grad for value in others) if order == 2 else None
        network = adaptation.learner.structure.own()  # another copy is made when an attribute of a layer has changed
        key = (
            network,
            tuple((tuple(value.shape), value.dtype, value.device) for value in (*adapted, *others)),
            wanted,
            memory if order == 2 else None,
            tuple(names),
            list_places(adaptation, set(names)),
            describe_state(adaptation, adapted[0].device.type),
            term,
        )
        program = self._programs.get(key)
        if program is not None:
            return replay(program, _compute_constants(program, adapted, others), adapted, others)
        if key not in self._asked and self._has_room(network):
            moved, fixed = ([value.detach() for value in part] for part in (adapted, others))
            self._asked[key] = _Request(objective, moved, fixed, wanted, memory, contextvars.copy_context())
        return gradient(objective, adapted, others, order, memory)

    def forget_requests(self) -> None:
        """A step begins: what another one has asked for, which was tried for its memory, say, is not recorded."""
        self._asked.clear()

    def record(self, network: nn.Module) -> None:
        """Record what was asked for often enough; no other thread may run, since tracing patches torch for all of them.

        Args:
            network: the layers as they are now; programs of others are dropped.
        """
        asked, self._asked = self._asked, {}
        self._programs = {key: program for key, program in self._programs.items() if key[0] is network}
        if len(self._met) > MOST_KINDS or any(key[0] is not network for key in self._met):
            self._met.clear()
        if not (asked or self._programs or self._said):
            self._tell_once(
                "no inner step is recorded, because none takes a gradient with memory 'store' or 'remat'; all runs as it is"
            )
        self._met.update(asked.keys())
        for key, request in asked.items():
            if not self.works:
                return
            if self._met[key] < self.meetings:
                continue
            del self._met[key]
            begun = time.perf_counter()
            try:
                with torch.enable_grad():
                    program, difference = request.context.run(_make, request)
            except Exception as error:  # whatever tracing raises: the step as it is needs no program
                self._give_up(f"inner steps are not recorded, because {explain(error)}; they run as they are")
                return
            if difference is None:
                continue
            if not difference <= _choose_tolerance(request):
                self._give_up(
                    f"recorded inner steps are not used, because they differ from the steps themselves by {difference:.1g}"
                )
                return
            self._programs[key] = program
            self._tell(
                f"an inner step on {list(request.others[-CONSTANTS].shape)} recorded as {program.operators} operators in "
                f"{time.perf_counter() - begun:.1f} s"
            )

    def _has_room(self, network: nn.Module) -> bool:
        """Whether another kind of step of these layers may be recorded; that it may not is said once."""
        known = sum(key[0] is network for key in (*self._programs, *self._asked))
        if known >= MOST_PROGRAMS:
            self._tell_once(
                f"{MOST_PROGRAMS} kinds of inner steps are recorded, of different shapes, say; others run as they are"
            )
        return known < MOST_PROGRAMS

    def _may_record(self, adaptation: Adaptation) -> bool:
        """Whether nothing stands against recording; what does is said once."""
        if not self.works:
            return False
        obstacle = find_obstacle(adaptation)
        if obstacle is not None:
            self._tell_once(f"inner steps are not recorded, because {obstacle}; they run as they are")
        return obstacle is None


def _lay_out(others: Sequence[Tensor]) -> list[Tensor]:
    """The tensors, contiguous; a part of a support set is copied once for all steps."""
    fixed, support = others[:-CONSTANTS], others[-CONSTANTS:]
    return [
        *(value.contiguous() for value in fixed),
        *(x if x.is_contiguous() else remember(x.contiguous, [x], "contiguous") for x in support),
    ]


def _compute_constants(program: Program, adapted: Sequence[Tensor], others: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """What no step changes, once for all steps on a support set."""

    def compute() -> tuple[Tensor, ...]:
        with torch.no_grad(), torch.autocast(adapted[0].device.type, enabled=False):
            return program.constant(*(value.detach() for value in (*adapted, *others)))

    return remember(compute, others[-CONSTANTS:], program)


def _choose_tolerance(request: _Request) -> float:
    """By which a program may differ from its step, relative to the norm."""
    kind = request.adapted[0].dtype
    return (
        LOW_TOLERANCE
        if torch.is_autocast_enabled(request.adapted[0].device.type)
        else TOLERANCES.get(kind, LOW_TOLERANCE)
    )


def _make(request: _Request) -> tuple[Program, float | None]:
    """The program of a step, and by how much it differs from the step; ``None`` where that is not finite and tells nothing."""
    objective, wanted = request.objective, request.wanted
    state, device = read_generators(request.adapted[0]), request.adapted[0].device.type
    low, enabled = torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
    # weights that autocast has cast already would be tensors of another graph
    with recording_steps(None), torch.autocast(device, low, enabled=enabled, cache_enabled=False):
        with drawing_from(state):
            program = make_program(
                objective, request.adapted, request.others, CONSTANTS, wanted, request.memory == "store"
            )

        def run_step(adapted: list[Tensor], others: list[Tensor]) -> tuple[Tensor, ...]:
            return gradient(objective, adapted, others, 1 if wanted is None else 2, "store")

        def run_program(adapted: list[Tensor], others: list[Tensor]) -> tuple[Tensor, ...]:
            return replay(program, _compute_constants(program, adapted, others), adapted, others)

        exact, again = (_differentiate(request, state, run) for run in (run_step, run_program))
    if not all(bool(value.isfinite().all()) for value in (*exact[0], *exact[1])):
        return program, None
    return program, max(map(compare, again, exact))


def _differentiate(
    request: _Request, state: Any, run: Callable[[list[Tensor], list[Tensor]], tuple[Tensor, ...]]
) -> tuple[list[Tensor], list[Tensor]]:
    """The gradient and its products with random cotangents."""
    wanted = request.wanted
    adapted = [value.clone().requires_grad_() for value in request.adapted]
    others = [
        value.clone().requires_grad_(bool(wanted and wanted[index])) for index, value in enumerate(request.others)
    ]
    with drawing_from(state):
        grads = run(adapted, others)
    if wanted is None:
        return list(grads), []
    generator = torch.Generator().manual_seed(0)
    cotangents = [torch.randn(grad.shape, generator=generator).to(grad) for grad in grads]
    pairs = [(g, c) for g, c in zip(grads, cotangents, strict=True) if g.requires_grad]
    by = [*adapted, *(value for value in others if value.requires_grad)]
    products = torch.autograd.grad([g for g, _ in pairs], by, [c for _, c in pairs], materialize_grads=True)
    return [grad.detach() for grad in grads], list(products)
