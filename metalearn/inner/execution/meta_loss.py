"""How the tasks of a meta-batch are executed: one after another, or several in one set of kernels.

Either way a few tasks at a time are adapted, their query loss is differentiated down to the adapted tensors, and that
cotangent is taken back through the inner loop at once, so that memory does not grow with the number of tasks. The gradients are
then attached to the returned loss, whose backward pass hands them to the outer tensors, so that hooks and DDP see them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from threading import Lock
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metalearn.episode import Batch, Episode
from metalearn.inner.adaptation import Adaptation, Settings
from metalearn.inner.ambient import remembering
from metalearn.inner.execution.alone import answer_alone
from metalearn.inner.execution.differentiate import Differentiate, Part, differentiate
from metalearn.inner.execution.plan import Plan
from metalearn.inner.execution.schedule import Schedule
from metalearn.inner.execution.threads import run_parts
from metalearn.inner.rules import Params

__all__ = ["MetaLoss", "QueryOutputs", "evaluate", "meta_loss", "take_tasks"]


class MetaLoss(NamedTuple):
    """The mean query loss, and the query outputs it came from.

    Attributes:
        loss: scalar, with a graph to every outer tensor.
        logits: ``[B, n, N]`` after the last inner step, without a graph.

    Example:
        >>> import torch
        >>> from metalearn import MAML, MLP, Batch, Episode
        >>> x = torch.randn(4, 10, 1)  # four tasks of ten points
        >>> result = MAML(MLP(), loss="mse", inner_lr=0.01).meta_loss(Episode(Batch(x, 2 * x), Batch(x, 2 * x)))
        >>> result.loss.shape, result.logits.shape
        (torch.Size([]), torch.Size([4, 10, 1]))
    """

    loss: Tensor
    logits: Tensor


class QueryOutputs(NamedTuple):
    """The query outputs of some tasks, without a graph.

    Attributes:
        together: for each number of inner steps, ``[B, n, N]``.
        alone: after the last of them, ``[B, n, N]``, where each query is answered by itself; ``None`` if that was not asked for.

    Example:
        >>> import torch
        >>> from metalearn.inner import QueryOutputs
        >>> QueryOutputs({0: torch.zeros(1, 5, 3)}).alone is None
        True
    """

    together: dict[int, Tensor]
    alone: Tensor | None = None


def meta_loss(
    adaptation: Adaptation,
    params: Params,
    extra: Iterable[Tensor],
    episode: Episode,
    schedule: Schedule,
    plan: Plan,
    compiled: Differentiate | None = None,
) -> MetaLoss:
    """The mean query loss over the ``B`` tasks, with its gradient.

    Args:
        adaptation: the inner loop.
        params: the outer tensors by name.
        extra: further outer tensors that the meta-gradient reaches, such as learned step sizes.
        episode: ``B`` tasks.
        schedule: how far and how exactly the inner loop is run.
        plan: how many tasks are executed at once, and by how many threads.
        compiled: a compiled function that stands in for :func:`differentiate`.

    Example:
        >>> import torch
        >>> from metalearn import MLP, Batch, Episode
        >>> from metalearn.inner import (
        ...     SGD, Adaptation, GradientSteps, InnerLoop, Learner, Plan, Schedule, TaskNorm, meta_loss
        ... )
        >>> network = MLP(hidden=[])
        >>> learner = Learner(network, TaskNorm(network, "transductive"))
        >>> solver = GradientSteps(InnerLoop(inner_steps=2, inner_lr=0.1), SGD(), learner)
        >>> adaptation = Adaptation(learner, torch.nn.functional.mse_loss, solver.method())
        >>> x, outer = torch.randn(4, 10, 1), adaptation.outer()
        >>> episode = Episode(Batch(x, 2 * x), Batch(x, 2 * x))
        >>> schedule = Schedule(steps=2, settings=solver.settings(learner.moving()), order=2)
        >>> meta_loss(adaptation, outer, [], episode, schedule, Plan()).loss.backward()
        >>> network.head.weight.grad.shape
        torch.Size([1, 1])
    """
    extra = list(extra)
    run = compiled or differentiate
    tasks = len(episode.support.x)
    leaves = {name: _without_hooks(value) for name, value in params.items()}

    total = _SumInOrder()

    def run_part(adaptation: Adaptation, first: int, last: int) -> Part:
        part = run(adaptation, leaves, extra, take_tasks(episode, first, last), schedule, plan.queries)
        total.add(part.grads, first, last)
        return part._replace(grads=())

    parts = run_parts(run_part, adaptation, tasks, plan)
    grads = total.grads
    torch._foreach_div_(grads, tasks)
    loss = torch.stack([part.loss for part in parts]).sum() / tasks
    outer = [*params.values(), *extra]
    attached: Tensor = _AttachedGradient.apply(loss, len(outer), *outer, *grads)
    return MetaLoss(attached, torch.cat([part.logits for part in parts]))


def evaluate(
    adaptation: Adaptation,
    params: Params,
    episode: Episode,
    steps: Iterable[int],
    settings: Settings,
    plan: Plan,
    alone: bool = False,
) -> QueryOutputs:
    """Query outputs after some numbers of inner steps, without any graph.

    Args:
        adaptation: the inner loop.
        params: all tensors by name.
        episode: ``B`` tasks.
        steps: after how many inner steps.
        settings: what the solver hands to its method.
        plan: how many tasks are executed at once, and by how many threads.
        alone: whether queries are answered one by one too, after the last step. It makes a difference where the policy
            ``"transductive"`` normalises them together.

    Example:
        >>> import torch
        >>> from metalearn import MLP, Batch, Episode
        >>> from metalearn.inner import SGD, Adaptation, GradientSteps, InnerLoop, Learner, Plan, TaskNorm, evaluate
        >>> network = MLP(hidden=[])
        >>> learner = Learner(network, TaskNorm(network, "transductive"))
        >>> solver = GradientSteps(InnerLoop(inner_steps=2, inner_lr=0.1), SGD(), learner)
        >>> adaptation = Adaptation(learner, torch.nn.functional.mse_loss, solver.method())
        >>> x, settings = torch.randn(4, 10, 1), solver.settings(learner.moving())
        >>> episode = Episode(Batch(x, 2 * x), Batch(x, 2 * x))
        >>> outputs = evaluate(adaptation, adaptation.outer(), episode, [0, 5], settings, Plan())
        >>> {steps: values.shape for steps, values in outputs.together.items()}
        {0: torch.Size([4, 10, 1]), 5: torch.Size([4, 10, 1])}
    """
    wanted = sorted(set(steps))
    params = {name: value.detach() for name, value in params.items()}

    def run_part(adaptation: Adaptation, first: int, last: int) -> list[Tensor]:
        (xs, ys), (xq, _) = take_tasks(episode, first, last)
        if not adaptation.stacked:
            xs, ys, xq = xs.squeeze(0), ys.squeeze(0), xq.squeeze(0)
        with torch.no_grad():
            support, query = adaptation.encode(params, xs, xq)
        outputs = []
        with remembering(True):
            for step, adapted in enumerate(adaptation.iterates(params, support, ys, wanted[-1], settings, order=0)):
                if step in wanted:
                    with torch.no_grad():
                        logits = adaptation.query_logits(params, adapted, support, query, step)
                    outputs.append(logits if adaptation.stacked else logits[None])
        if alone:
            with torch.no_grad():
                logits = answer_alone(adaptation, params, adapted, xs, xq, wanted[-1])
            outputs.append(logits if adaptation.stacked else logits[None])
        return outputs

    if plan.tasks is not None and plan.queries is not None:
        plan = plan._replace(tasks=min(plan.tasks, plan.queries))
    rows = run_parts(run_part, adaptation, len(episode.support.x), plan)
    columns = [torch.cat(column) for column in zip(*rows, strict=True)]
    return QueryOutputs(dict(zip(wanted, columns, strict=False)), columns[-1] if alone else None)


def _without_hooks(value: Tensor) -> Tensor:
    """A leaf of the same values: a parameter's own hooks are called once, in the backward pass of the meta-loss."""
    return value.detach().requires_grad_() if value._backward_hooks else value


def take_tasks(episode: Episode, first: int, last: int) -> Episode:
    """The tasks from ``first`` to before ``last``."""
    (xs, ys), (xq, yq) = episode
    return Episode(Batch(xs[first:last], ys[first:last]), Batch(xq[first:last], yq[first:last]))


class _SumInOrder:
    """Adds up the gradients of parts as threads bring them, in the order of the tasks, so that threads do not change the sum.

    Attributes:
        grads: the sum; empty before the first part.
    """

    def __init__(self) -> None:
        self.grads: list[Tensor] = []
        self._lock, self._next = Lock(), 0
        self._early: dict[int, tuple[Sequence[Tensor], int]] = {}

    def add(self, grads: Sequence[Tensor], first: int, last: int) -> None:
        """Take the gradients of the tasks from ``first`` to before ``last``; those of the first part are written to."""
        with self._lock:
            self._early[first] = grads, last
            while self._next in self._early:
                grads, self._next = self._early.pop(self._next)
                if self.grads:
                    torch._foreach_add_(self.grads, list(grads))
                else:
                    self.grads = list(grads)


class _AttachedGradient(torch.autograd.Function):
    """A loss whose gradient is already known: backward hands it to the outer tensors, so that hooks and DDP see it."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, count: int, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors[count:])
        ctx.count = count
        return loss.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        known = torch._foreach_mul(list(ctx.saved_tensors), grad)
        return (None, None, *known, *(None,) * ctx.count)
