"""Inner gradients by lists of operators, recorded once for each kind of step.

An inner step of a small support set is bound by Python's layers, by autograd's nodes and by the views between them, not by
arithmetic. A list of operators, with both derivatives written out, needs none of these. It holds as long as nothing has changed
that Python would have looked at.
"""

from __future__ import annotations

import contextvars
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metalearn.inner.adaptation import Adaptation
from metalearn.inner.ambient import current, recording_steps
from metalearn.inner.execution.flat_part import describe_state, explain, find_obstacle, list_others
from metalearn.inner.generators import drawing_from, read_generators
from metalearn.inner.memory import Objective, gradient
from metalearn.inner.replay.program import Program, make_program, replay

__all__ = ["StepRecorder"]

MOST_PROGRAMS = 8
"""Kinds of steps of a run that are recorded; others run as they are."""
CONSTANTS = 2
"""The last of the tensors that a step reads are the support set and its targets, which no step changes."""
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-3}
"""By which a program may differ from the step that it stands for, relative to its norm. Under autocast 0.1."""


class _Request(NamedTuple):
    """A step that is to be recorded.

    Attributes:
        objective: the inner loss.
        adapted: values of what moves.
        others: values of what else it reads.
        wanted: whose product the backward pass takes; ``None`` for a first-order step.
        context: what was ambient.
    """

    objective: Objective
    adapted: list[Tensor]
    others: list[Tensor]
    wanted: list[bool] | None
    context: contextvars.Context


class StepRecorder:
    """Takes inner gradients: by autograd where a kind of step is met first, by its program once there is one.

    Args:
        say: takes lines that say what was recorded, or why nothing is.

    Attributes:
        works: whether nothing has failed.
    """

    def __init__(self, say: Callable[[str], Any]) -> None:
        self._say = say
        self._programs: dict[Any, Program] = {}
        self._asked: dict[Any, _Request] = {}
        self._said: set[str] = set()
        self.works = True

    def __getstate__(self) -> dict[str, Any]:
        return {"_say": self._say, "works": self.works}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["_say"])  # type: ignore[misc]  # is recorded again where it is needed
        self.works = state["works"]

    def gradient(
        self,
        objective: Objective,
        adapted: Sequence[Tensor],
        others: Sequence[Tensor],
        order: int,
        adaptation: Adaptation,
        term: object,
        names: Collection[str],
    ) -> tuple[Tensor, ...]:
        """As :func:`metalearn.inner.memory.gradient` gives it for the memory mode ``"store"``.

        Args:
            objective: the inner loss of the next two, a scalar.
            adapted: the tensors that the inner loop moves.
            others: all others, the support set and its targets last.
            order: 2 for a gradient with a graph.
            adaptation: the inner loop.
            term: what it adds to the loss.
            names: of all tensors that are passed.
        """
        if not self._may_record(adaptation):
            return gradient(objective, adapted, others, order, "store")
        adapted, others = ([value.contiguous() for value in values] for values in (adapted, others))
        wanted = [value.requires_grad for value in others] if order == 2 else None
        places = tuple((value.data_ptr(), tuple(value.shape), value.dtype) for value in list_others(adaptation, names))
        key = (
            adaptation.learner.structure.own(),  # another copy is made when an attribute of a layer has changed
            tuple((tuple(value.shape), value.dtype, value.device) for value in (*adapted, *others)),
            None if wanted is None else tuple(wanted),
            tuple(names),
            places,
            describe_state(adaptation, adapted[0].device.type),
            term,
        )
        program = self._programs.get(key)
        if program is not None:
            return replay(program, self._compute_constants(program, adapted, others), adapted, others)
        if key not in self._asked and len(self._programs) + len(self._asked) < MOST_PROGRAMS:
            moved, fixed = ([value.detach() for value in part] for part in (adapted, others))
            self._asked[key] = _Request(objective, moved, fixed, wanted, contextvars.copy_context())
        return gradient(objective, adapted, others, order, "store")

    def record(self, network: Any) -> None:
        """Record what was asked for; no other thread may run, since tracing patches torch for all of them.

        Args:
            network: the layers as they are now; programs of others are dropped.
        """
        asked, self._asked = self._asked, {}
        if asked:
            self._programs = {key: program for key, program in self._programs.items() if key[0] is network}
        for key, request in asked.items():
            if not self.works:
                return
            begun = time.perf_counter()
            try:
                with torch.enable_grad():
                    program, difference = request.context.run(_make, request)
            except Exception as error:  # whatever tracing raises: the step as it is needs no program
                self.works = False
                self._say_once(f"inner steps are not recorded, because {explain(error)}; they run as they are")
                return
            low = torch.is_autocast_enabled(request.adapted[0].device.type)
            bound = 0.1 if low else TOLERANCES.get(request.adapted[0].dtype, 0.1)
            if not difference <= bound:
                self.works = False
                self._say_once(
                    f"recorded inner steps are not used, because they differ from the steps themselves by {difference:.1g}"
                )
                return
            self._programs[key] = program
            self._say(
                f"compile: an inner step on {list(request.others[-2].shape)} recorded as {program.operators} operators in "
                f"{time.perf_counter() - begun:.1f} s"
            )

    def _may_record(self, adaptation: Adaptation) -> bool:
        """Whether nothing stands against recording; what does is said once."""
        if not self.works:
            return False
        obstacle = find_obstacle(adaptation)
        if obstacle is not None:
            self._say_once(f"inner steps are not recorded, because {obstacle}; they run as they are")
        return obstacle is None

    def _compute_constants(
        self, program: Program, adapted: Sequence[Tensor], others: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """What no step changes, once for all steps on a support set."""
        memory, support = current().memory, others[-CONSTANTS:]
        key = (id(program), *((value.data_ptr(), tuple(value.shape)) for value in support))
        if memory is not None and key in memory:
            constants: tuple[Tensor, ...] = memory[key][1]
            return constants
        with torch.no_grad(), torch.autocast(adapted[0].device.type, enabled=False):
            constants = program.constant(*(value.detach() for value in (*adapted, *others)))
        if memory is not None:
            memory[key] = support, constants  # with the tensors themselves, so that no others take their place
        return constants

    def _say_once(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            self._say(f"compile: {line}")


def _make(request: _Request) -> tuple[Program, float]:
    """The program of a step, and by how much it differs from the step, relative to the norm."""
    objective, wanted = request.objective, request.wanted
    state = read_generators(request.adapted[0])
    device = request.adapted[0].device.type
    low = torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
    # weights that autocast has cast already would be tensors of another graph
    with recording_steps(None), torch.autocast(device, low[0], enabled=low[1], cache_enabled=False):
        with drawing_from(state):
            program = make_program(objective, request.adapted, request.others, CONSTANTS, wanted)
        exact, again = (
            _differentiate(request, state, run)
            for run in (
                lambda adapted, others: gradient(objective, adapted, others, 1 if wanted is None else 2, "store"),
                lambda adapted, others: _run(program, adapted, others),
            )
        )
    return program, max(map(_compare, again, exact))


def _run(program: Program, adapted: Sequence[Tensor], others: Sequence[Tensor]) -> tuple[Tensor, ...]:
    device = adapted[0].device.type
    with torch.no_grad(), torch.autocast(device, enabled=False):
        constants = program.constant(*adapted, *others)
    return replay(program, constants, adapted, others)


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


def _compare(values: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """The difference of all tensors together, relative to their norm."""
    off = sum(float((value - right).double().square().sum()) for value, right in zip(values, exact, strict=True))
    size = sum(float(right.double().square().sum()) for right in exact)
    return (off / size) ** 0.5 if size else float(off > 0)
