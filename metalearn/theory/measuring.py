"""The constants of a module's inner problems, measured on tasks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from metalearn.bilevel.linearization import Linearization
from metalearn.bilevel.trees import Layout
from metalearn.checks import MOST_OF_A_TASK, MOST_STEPS, UNBOUNDED, check_number, check_whole
from metalearn.errors import ConfigError, DivergenceError
from metalearn.inner.parts import choose_head
from metalearn.inner.rules import Params
from metalearn.inner.support_gradient import as_leaves
from metalearn.modules.episodic.base import MetaModule
from metalearn.modules.episodic.opened import OpenLoop
from metalearn.theory.curvature import Spectrum, lanczos, linearize
from metalearn.theory.gathering import gather_tasks
from metalearn.theory.measured import MeasuredConstants, summarise

__all__ = ["measure_constants"]


def measure_constants(
    module: MetaModule,
    episodes: Any,
    tasks: int = 8,
    iterations: int = 15,
    tolerance: float = 1e-2,
    path: bool = True,
    seed: int = 0,
) -> MeasuredConstants:
    """Measure smoothness, convexity and gradients of a module's inner problems, over what adapts.

    The inner loop runs as in training if the module is in ``train()``, else as in evaluation. Nothing is changed: neither
    modes, gradients, buffers nor any random generator. Eigenvalues come from Lanczos' iteration on Hessian-vector products.

    Args:
        module: adapts by gradient steps: MAML, ANIL, Reptile, IMAML and the like.
        episodes: an :class:`~metalearn.Episode`, a list of them, a loader, or a data module, whose training tasks are taken.
        tasks: how many tasks are measured. The cost grows with it.
        iterations: the most Hessian-vector products for an eigenvalue. Each costs about two gradients of the support loss.
        tolerance: of eigenvalues, as a share of the largest. Iterations end when it is reached.
        path: whether the Hessian is measured after each inner step too, and its change ``rho``.
        seed: of the start of the iterations.

    Raises:
        BilevelError: an operation has no second derivative.
        ConfigError: nothing adapts by gradient steps, or a number is out of range.
        DivergenceError: a gradient is not finite.

    Example:
        >>> import torch
        >>> from metalearn import MAML, MLP, Batch, Episode
        >>> from metalearn.theory import measure_constants
        >>> x = torch.linspace(-1.0, 1.0, 10).reshape(1, 10, 1)
        >>> episode = Episode(Batch(x, 2 * x), Batch(x, 2 * x))
        >>> module = MAML(torch.nn.Linear(1, 1), inner_steps=2, inner_lr=0.1, loss="mse")
        >>> print(measure_constants(module, episode).L)
        2 ± 0 (2 to 2, 1 task)
    """
    check_whole("tasks", tasks, 1, MOST_OF_A_TASK)
    check_whole("iterations", iterations, 1, MOST_STEPS)
    check_number("tolerance", tolerance, "use 0.01", above=0)
    check_whole("seed", seed, 0, UNBOUNDED)
    if not isinstance(module, MetaModule):
        raise ConfigError(
            f"module is a {type(module).__name__}, but constants of inner problems are those of a module such as MAML or ANIL; "
            "use metalearn.theory.measure_problem for a BilevelModule or a BilevelProblem"
        )
    meter = _Meter(find_head_prefix(module), iterations, tolerance, path, seed)
    parts = [part for batch in gather_tasks(module, episodes, tasks) for part in module.visit_inner_loops(batch, meter)]
    last = max(int(name[2:]) for part in parts for name in part if name.startswith("L_"))
    return summarise(parts, last, max(int(part.pop("products")) for part in parts))


def find_head_prefix(module: MetaModule) -> str | None:
    """How the names of the head's tensors begin; ``None`` for a network without one."""
    try:
        return choose_head(module.backbone, "head") + "."
    except ConfigError:
        return None


class _Meter:
    """Measures the inner loops of some tasks; is called with each."""

    def __init__(self, head: str | None, iterations: int, tolerance: float, path: bool, seed: int) -> None:
        self._head, self._path = head, path
        self._iterations, self._tolerance, self._seed = iterations, tolerance, seed

    def __call__(self, loop: OpenLoop) -> dict[str, Tensor]:
        points = list(loop.iterates())
        layout = Layout.of(points[0], "the tensors that adapt", loop.tasks)
        values: dict[str, Tensor] = {}
        products = 0
        before: Linearization | None = None
        for step in range(len(points) if self._path else 1):
            here = linearize(lambda point, step=step: loop.slope(point, step), points[step], layout)  # type: ignore[misc]
            ends = self._measure(here, loop)
            products += ends.iterations
            values[f"L_{step}"] = ends.magnitude.reshape(-1)
            if step == 0:
                values["sharpness"] = ends.largest.reshape(-1)
                values["support"] = _norms(here.residual)
            if before is not None:
                rates, count = self._compare(before, here, loop)
                products += count
                values["rho"] = torch.maximum(values.get("rho", rates), rates)
            before = here
        mu, count = self._measure_head(loop, points[0])
        if mu is not None:
            values["mu"] = mu
        return values | measure_queries(loop, points[-1], layout) | {"products": torch.tensor(products + count)}

    def _measure(self, here: Linearization, loop: OpenLoop) -> Spectrum:
        return lanczos(here.hvp, here.y, self._iterations, self._tolerance, self._seed + loop.first)

    def _compare(self, before: Linearization, here: Linearization, loop: OpenLoop) -> tuple[Tensor, int]:
        """``|H(w_{j+1}) - H(w_j)| / |w_{j+1} - w_j|`` of each task, and what it cost; 0 where nothing has moved."""
        ends = lanczos(
            lambda v: here.hvp(v) - before.hvp(v), here.y, self._iterations, self._tolerance, self._seed + loop.first
        )
        way = _norms(here.y.detach() - before.y.detach())
        change = ends.magnitude.reshape(-1).to(way)
        return torch.where(way > 0, change / torch.where(way > 0, way, 1.0), 0.0), 2 * ends.iterations

    def _measure_head(self, loop: OpenLoop, point: Params) -> tuple[Tensor | None, int]:
        """The smallest eigenvalue within the head of each task, and what it cost."""
        inside = {name: value for name, value in point.items() if self._head and name.startswith(self._head)}
        if not inside:
            return None, 0

        fixed = as_leaves(point)  # the gradient by these is taken too, and left out

        def slope(head: Params) -> Params:
            grads = loop.slope({**fixed, **head}, 0)
            return {name: grads[name] for name in inside}

        layout = Layout.of(inside, "the head", loop.tasks)
        ends = self._measure(linearize(slope, inside, layout), loop)
        return ends.smallest.reshape(-1), ends.iterations


def measure_queries(loop: OpenLoop, last: Params, layout: Layout) -> dict[str, Tensor]:
    """The norms ``[b]`` of query gradients and meta-gradients, and the sums of both over tasks."""
    y = layout.ravel(last).detach().requires_grad_()
    (query,) = torch.autograd.grad(loop.query_loss(layout.unravel(y), loop.steps).sum(), y, materialize_grads=True)
    values = {"query": _norms(query), "sum_query": query.detach().double().reshape(-1, y.shape[-1]).sum(0)}
    start, *_, end = loop.iterates(loop.order)
    loss = loop.query_loss(end, loop.steps).sum()
    reached = all(value.requires_grad for value in start.values()) and loss.requires_grad
    grads = torch.autograd.grad(loss, list(start.values()), allow_unused=True) if reached else (None,)
    if all(grad is not None for grad in grads):
        meta = layout.ravel(dict(zip(start, grads, strict=True)))
        values |= {"meta": _norms(meta), "sum_meta": meta.detach().double().reshape(-1, meta.shape[-1]).sum(0)}
    for name, lengths in values.items():
        if not bool(lengths.isfinite().all()):
            raise DivergenceError(
                f"the {name} gradient of a task is not finite after {loop.steps} inner steps, but constants are measured by it; "
                "use a smaller inner_lr"
            )
    return values


def _norms(rows: Tensor) -> Tensor:
    """The length of each row of ``[D]`` or ``[B, D]``, as ``[B]``."""
    return rows.detach().norm(dim=-1).reshape(-1)
