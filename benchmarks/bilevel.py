"""Milliseconds per outer step and peak memory of our bilevel algorithms beside the same ones as plain torch.autograd loops.

Both get the same losses, data, step sizes and starting points, and take turns in one process, the first of a round changing; the
hypergradients are compared first. The plain loops go through the tasks one after the other, as a loop over
``torch.autograd.grad`` does. "Times faster" is the ratio of medians, of best times, and the median of the ratios within a
round, in which other load falls on both: the third is the most robust. Peak memory is that of tensors, measured apart, each
in a process of its own.

python benchmarks/bilevel.py    (the table of docs/background/bilevel_studies.md)
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from allocations import tensor_peak
from machine import describe
from measure import largest_difference, run_apart, take_turns
from torch import Tensor

from metalearn.bilevel import (
    AID,
    CG,
    ITD,
    BilevelProblem,
    Chunked,
    Estimator,
    GradientDescent,
    cleaning_problem,
    hypergradient,
)

Loss = Callable[[Any, Tensor, Any], Tensor]


class Work(NamedTuple):
    """A problem and how it is solved.

    Attributes:
        inner, outer: the losses of one problem; ``inner`` gets what ``prepare`` returns.
        prepare: what ``inner`` needs of ``x`` and its batch alone.
        x: the outer variables, a dict.
        y: the inner ones, ``[B, ...]`` or ``[...]``.
        train, val: the batch of ``inner`` and of ``outer``, with a leading axis of tasks where there is one.
        tasks: ``B``, ``None`` for a single problem.
        step_size, steps, iterations: of gradient descent and of conjugate gradients.
    """

    inner: Loss
    outer: Loss
    prepare: Callable[[Any, Any], Any] | None
    x: dict[str, Tensor]
    y: Tensor
    train: Any
    val: Any
    tasks: int | None
    step_size: float
    steps: int
    iterations: int

    def inner_loss(self, x: Any, y: Tensor, batch: Any) -> Tensor:
        """The inner loss of a batch, for the plain loops."""
        return self.inner(x, y, batch if self.prepare is None else self.prepare(x, batch))


def few_shot(
    tasks: int = 16, ways: int = 5, shots: int = 5, queries: int = 15, dtype: torch.dtype = torch.float32
) -> Work:
    """A shared body of two layers and a softmax head a task, 5-shot, 15 queries."""
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(*shape, generator=generator)).to(dtype)

    x = {"first": noise(784, 64, scale=784**-0.5), "second": noise(64, 64, scale=0.125)}

    def encode(x: dict[str, Tensor], batch: Any) -> tuple[Tensor, Tensor]:
        return torch.relu(torch.relu(batch[0] @ x["first"]) @ x["second"]), batch[1]

    def inner(x: Any, y: Tensor, prepared: Any) -> Tensor:
        features, labels = prepared
        return F.cross_entropy(features @ y, labels) + 0.01 * y.square().sum()

    def outer(x: Any, y: Tensor, batch: Any) -> Tensor:
        features, labels = encode(x, batch)
        return F.cross_entropy(features @ y, labels)

    train, val = (
        (noise(tasks, ways * count, 784), torch.arange(ways).repeat(tasks, count)) for count in (shots, queries)
    )
    return Work(inner, outer, encode, x, noise(tasks, 64, ways, scale=0.01), train, val, tasks, 0.1, 10, 5)


def cleaning(dtype: torch.dtype = torch.float32) -> Work:
    """Hyper-cleaning at the size of MNIST's study, on noise."""
    generator = torch.Generator().manual_seed(0)
    parts = []
    for count in (6000, 2000):
        inputs = torch.rand(count, 784, generator=generator).to(dtype)
        parts.append((torch.arange(count), inputs, torch.randint(0, 10, (count,), generator=generator)))
    problem = cleaning_problem(parts[0], parts[1])

    def inner(x: Any, y: Tensor, batch: Any) -> Tensor:
        return problem.inner_loss(x["x"], y, batch)

    def outer(x: Any, y: Tensor, batch: Any) -> Tensor:
        return problem.outer_loss(x["x"], y, batch)

    y = 0.01 * torch.randn(10, 785, generator=generator).to(dtype)
    return Work(inner, outer, None, {"x": torch.zeros(6000, dtype=dtype)}, y, *parts, None, 0.01, 10, 5)


WORKS: dict[str, Callable[..., Work]] = {
    "16 tasks, 5-way": few_shot,
    "16 tasks, 20-way": partial(few_shot, ways=20),
    "hyper-cleaning": cleaning,
}


def ours(work: Work, method: str, chunk: int | None = None) -> Callable[[], dict[str, Tensor]]:
    """One hypergradient by the package; of ``chunk`` tasks at a time, ``None`` for all at once."""
    problem = BilevelProblem(work.outer, work.inner, lambda _: work.y, batched=work.tasks, prepare=work.prepare)
    problem = problem.with_batch(outer=work.val, inner=work.train)
    solver = GradientDescent(step_size=work.step_size, steps=work.steps)
    estimator: Estimator = (
        AID(inner=solver, solver=CG(iterations=work.iterations)) if method == "AID-CG" else ITD(inner=solver)
    )
    if chunk is not None:
        estimator = Chunked(estimator=estimator, size=chunk)
    return lambda: hypergradient(problem, work.x, work.y, estimator).value


def plain(work: Work, method: str) -> Callable[[], dict[str, Tensor]]:
    """The same by loops over ``torch.autograd.grad``."""
    find = plain_aid if method == "AID-CG" else plain_itd
    if work.tasks is None:
        return lambda: find(work, work.y, work.train, work.val)
    tasks = work.tasks

    def step() -> dict[str, Tensor]:
        total: dict[str, Tensor] = {}
        for task in range(tasks):
            train, val = (tuple(part[task] for part in batch) for batch in (work.train, work.val))
            for name, value in find(work, work.y[task], train, val).items():
                total[name] = total[name] + value / tasks if name in total else value / tasks
        return total

    return step


def plain_itd(work: Work, y: Tensor, train: Any, val: Any) -> dict[str, Tensor]:
    """Backpropagation through the inner steps."""
    x = {name: value.detach().requires_grad_() for name, value in work.x.items()}
    y = y.detach().requires_grad_()
    for _ in range(work.steps):
        (gradient,) = torch.autograd.grad(work.inner_loss(x, y, train), y, create_graph=True)
        y = y - work.step_size * gradient
    gradients = torch.autograd.grad(work.outer(x, y, val), list(x.values()), allow_unused=True)
    return {name: gradient for name, gradient in zip(x, gradients, strict=True) if gradient is not None}


def plain_aid(work: Work, y: Tensor, train: Any, val: Any) -> dict[str, Tensor]:
    """Gradient descent, then conjugate gradients on one graph of the inner gradient."""
    x = {name: value.detach().requires_grad_() for name, value in work.x.items()}
    fixed = {name: value.detach() for name, value in x.items()}
    y = y.detach().requires_grad_()
    for _ in range(work.steps):
        (gradient,) = torch.autograd.grad(work.inner_loss(fixed, y, train), y)
        y = (y - work.step_size * gradient).detach().requires_grad_()
    names = list(x)
    *direct, b = torch.autograd.grad(work.outer(x, y, val), [*x.values(), y], allow_unused=True)
    (gradient,) = torch.autograd.grad(work.inner_loss(x, y, train), y, create_graph=True)
    v, r = torch.zeros_like(b), b
    p, square = r, (r * r).sum()
    for _ in range(work.iterations):
        (along,) = torch.autograd.grad(gradient, y, p, retain_graph=True)
        step = square / (p * along).sum()
        v, r = v + step * p, r - step * along
        before, square = square, (r * r).sum()
        p = r + square / before * p
    through = torch.autograd.grad(gradient, list(x.values()), v)
    return {
        name: -cross if first is None else first - cross
        for name, first, cross in zip(names, direct, through, strict=True)
    }


def in_chunks(work: Work, method: str) -> Callable[[], dict[str, Tensor]]:
    return ours(work, method, 4)


CHUNKED = "metalearn, chunks of 4"
SYSTEMS = {"metalearn": ours, CHUNKED: in_chunks, "plain loops": plain}


def peak(work: str, method: str, system: str) -> float:
    """MiB of tensors that a step holds at its peak, in a process of its own."""
    return float(run_apart(__file__, "--peak", work, method, system))


def show(name: str, method: str, make: Callable[..., Work], rounds: int) -> None:
    """Print a problem's rows."""
    exact, work = make(dtype=torch.float64), make()
    systems = {system: build for system, build in SYSTEMS.items() if work.tasks or system != CHUNKED}
    seconds = take_turns({system: build(work, method) for system, build in systems.items()}, rounds, warmup=2)
    theirs = seconds["plain loops"]
    expected = plain(exact, method)()
    for system, taken in seconds.items():
        ratios = (
            statistics.median(theirs) / statistics.median(taken),
            min(theirs) / min(taken),
            statistics.median(a / b for a, b in zip(theirs, taken, strict=True)),
        )
        agreement = largest_difference(systems[system](exact, method)(), expected)
        print(
            f"| {name} | {method} | {system} | {1000 * statistics.median(taken):.1f} | {1000 * min(taken):.1f} | "
            f"{' | '.join(f'{ratio:.2f}' for ratio in ratios)} | {peak(name, method, system):.2f} "
            f"| {'-' if system == 'plain loops' else f'{agreement:.0e}'} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peak", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.peak:
        work, method, system = options.peak
        print(tensor_peak(SYSTEMS[system](WORKS[work](), method)))
        return
    print(describe() + "\n")
    print(
        "| problem | method | system | ms per outer step (median) | best | times faster: medians | best | pairs "
        "| peak MiB | float64 difference |"
    )
    print("|---|---|---|---:|---:|---:|---:|---:|---:|---:|")
    for name, make in WORKS.items():
        for method in ("ITD", "AID-CG"):
            show(name, method, make, options.rounds)


if __name__ == "__main__":
    main()
