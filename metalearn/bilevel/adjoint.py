"""The adjoint of an inner solution, for all that differentiate implicitly: solve ``H v = u``, then pull ``-J v`` back.

The optimality condition ``grad_y g(x, y*(x)) = 0`` gives ``d <y*(x), u> / dx = -J v`` with ``H v = u`` (arXiv 2108.00330,
proposition 2.1). The system is solved here; :meth:`Linearization.pull_back` takes the product with ``J``, on the same batch or on
another one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.linalg import vector_norm

from metalearn.bilevel.linearization import Linearization
from metalearn.bilevel.solvers.curvature import curvature_error
from metalearn.bilevel.solvers.indefinite import report_curvature
from metalearn.bilevel.solvers.iteration import LinearSolution
from metalearn.bilevel.solvers.linear import LinearSolver
from metalearn.errors import BilevelError

__all__ = ["solve_adjoint"]


def solve_adjoint(
    here: Linearization,
    u: Tensor,
    solver: LinearSolver,
    start: Tensor | None = None,
    *,
    caller: str,
    about: Any,
    is_convex: Callable[[], bool] = lambda: False,
) -> LinearSolution:
    """Solve ``H v = u``; where the solver fell back because of curvature that is not positive, say so once in the log.

    Args:
        here: the inner problem at the point; its products are counted.
        u: ``[D]`` or ``[B, D]``.
        solver: its damping is added to ``H``.
        start: where to start, like ``u``; ``None`` for 0.
        caller: who says so.
        about: what is remembered to have been said of, such as the inner loss.
        is_convex: whether the problem claims to be strongly convex; asked where the solver fell back.

    Raises:
        BilevelError: the solver fails; or it fell back where the problem claims to be convex, or where ``H`` is 0 along ``u``.
    """
    solution = solver.solve(here.hvp, u, start)
    if solution.curvature is None:
        return solution
    if bool(((vector_norm(solution.v, dim=-1) == 0) & (vector_norm(u, dim=-1) > 0)).any()):
        raise BilevelError(
            "grad_yy g is 0 along grad_y f, so that inner_loss is linear in y there and has no minimum, or its second "
            "derivative is lost; make it curved, and compute it without detach() or no_grad()"
        )
    if is_convex():
        raise curvature_error("CG", float(solution.curvature.min()))
    report_curvature(caller, about, solution)
    return solution
