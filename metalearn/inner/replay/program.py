"""An inner gradient as three functions of tensors, one for what no step changes, one for the gradient, one for its product."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from metalearn.inner.generators import drawing_from, read_generators
from metalearn.inner.memory import Objective
from metalearn.inner.replay.effects import Effects, UnfitForReplayError
from metalearn.inner.replay.segments import split
from metalearn.inner.replay.simplify import simplify
from metalearn.inner.replay.source import Function, make_function
from metalearn.inner.replay.tracing import trace

__all__ = ["Program", "make_program", "replay"]


class Program(NamedTuple):
    """What stands in for an inner gradient.

    Attributes:
        constant: of the inputs, what no step changes.
        forward: of the inputs and these, the gradient and what the backward pass reads.
        backward: of what it reads, of what no step changes and of cotangents, the products; ``None`` without a second order.
        operators: how many are run in a step.
        draws: whether the backward pass draws what the step has drawn.
    """

    constant: Function
    forward: Function
    backward: Function | None
    operators: int
    draws: bool


def make_program(
    objective: Objective,
    adapted: Sequence[Tensor],
    others: Sequence[Tensor],
    constants: int,
    wanted: Sequence[bool] | None,
    keeps: bool = True,
) -> Program:
    """Trace an inner gradient, and make functions of it.

    Args:
        objective: the inner loss, a scalar.
        adapted: the tensors that the inner loop moves, contiguous.
        others: all others, contiguous.
        constants: how many of the last of these are the same in all steps.
        wanted: whether there is a product for each of ``others``; ``None`` for the gradient alone.
        keeps: whether the backward pass may read what the step has computed; it computes all again otherwise.

    Raises:
        UnfitForReplayError: it writes to what is not its own, draws in the backward pass, or has values of other kinds.
        Exception: whatever tracing raises, for a branch by a tensor's value, say.
    """
    traced = trace(objective, adapted, others, wanted)
    cotangents = [torch.ones_like(value) for value in adapted] if wanted is not None else []
    with torch.no_grad():
        effects = Effects(traced.module, [value.detach() for value in (*adapted, *others, *cotangents)])
    traced = simplify(traced, effects)
    parts = split(traced, effects, constants, keeps)
    outside = {place for node in (*traced.adapted, *traced.others) for place in effects.memory(node)}
    if any(not outside.isdisjoint(effects.memory(node)) for node in traced.grads):
        raise UnfitForReplayError("its gradient is one of its inputs")
    inputs = [*traced.adapted, *traced.others]
    module, kept = traced.module, parts.kept_constant
    return Program(
        make_function(module, parts.constant, inputs, kept),
        make_function(module, parts.forward, [*inputs, *kept], [*traced.grads, *parts.saved]),
        make_function(module, parts.backward, [*parts.saved, *kept, *traced.cotangents], traced.products)
        if wanted is not None
        else None,
        len(parts.forward) + len(parts.backward),
        parts.draws,
    )


def replay(
    program: Program, constants: Sequence[Tensor], adapted: Sequence[Tensor], others: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """The gradient; with a graph to all tensors where the program has a backward pass.

    Args:
        program: made for tensors of these shapes.
        constants: what it has computed of those that no step changes.
        adapted: the tensors that the inner loop moves, contiguous.
        others: all others, contiguous.
    """
    if program.backward is not None:
        gradient: tuple[Tensor, ...] = _Replayed.apply(program, tuple(constants), len(adapted), *adapted, *others)
        return gradient
    with torch.no_grad(), _without_autocast(adapted[0]):
        return program.forward(*adapted, *others, *constants)[: len(adapted)]


class _Replayed(torch.autograd.Function):
    """The gradient, by operators without a graph of their own."""

    @staticmethod
    def forward(ctx: Any, program: Program, constants: tuple[Tensor, ...], count: int, *tensors: Tensor) -> Any:
        state = read_generators(tensors[0]) if program.draws else None
        with _without_autocast(tensors[0]):
            outputs = program.forward(*tensors, *constants)
        ctx.program, ctx.constants, ctx.count = program, constants, count
        ctx.random = state
        ctx.save_for_backward(*outputs[count:])
        # autograd marks what is returned as its own: it may not be a tensor of all steps, nor stand there twice
        others = {id(value) for value in constants}
        grads: dict[int, Tensor] = {}
        for value in outputs[:count]:
            grad = value.view_as(value) if id(value) in others or id(value) in grads else value
            grads[id(grad)] = grad
        return tuple(grads.values())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
        incoming = [value.contiguous() for value in cotangents]
        drawing = contextlib.nullcontext() if ctx.random is None else drawing_from(ctx.random)
        with _without_autocast(incoming[0]), drawing:
            products = iter(ctx.program.backward(*ctx.saved_tensors, *ctx.constants, *incoming))
        wanted = [index < ctx.count or wants for index, wants in enumerate(ctx.needs_input_grad[3:])]
        return None, None, None, *(next(products) if wants else None for wants in wanted)


def _without_autocast(like: Tensor) -> torch.autocast:
    """What was cast as it was traced is an operator of the program."""
    return torch.autocast(like.device.type, enabled=False)
