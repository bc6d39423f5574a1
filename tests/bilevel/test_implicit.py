"""The inner solution as a differentiable function."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from metalearn.bilevel import (
    AID,
    CG,
    CGOrMinRes,
    Constants,
    GradientDescent,
    Nesterov,
    hypergradient,
    quadratic,
    solve_inner,
)
from metalearn.errors import BilevelError, ConfigError
from tests.bilevel.made import DOUBLE, Logistic, noise, relative
from tests.bilevel.test_batched import INNER, B, many

SOLVER = Nesterov(step_size=0.9, momentum=0.5, tolerance=1e-12)
Q = quadratic(5, 3, 6.0, seed=2)


@pytest.mark.parametrize("solver", [None, CG(iterations=5)])
def test_the_backward_pass_is_the_implicit_gradient(solver: CG | None) -> None:
    x = noise(3).requires_grad_()
    y = solve_inner(Q.problem, x, inner=SOLVER, solver=solver)
    assert relative(y.detach(), Q.solution(x.detach())) < 1e-11
    Q.outer_loss(x, y, None).backward()
    assert x.grad is not None
    assert relative(x.grad, Q.hypergradient(x.detach())) < 1e-8


def test_against_finite_differences_of_a_nonlinear_problem() -> None:
    made = Logistic()
    x = (0.3 * noise(4, seed=8) - 1).requires_grad_()
    made.outer_loss(x, solve_inner(made.problem, x, inner=SOLVER), made.val).backward()
    assert x.grad is not None
    assert relative(x.grad, made.finite_differences(x.detach())) < 1e-7


def test_under_vmap_and_grad() -> None:
    """Against the closed form of each; forwards, backwards through vmap, and grad within vmap."""
    xs = noise(4, 3)
    expected = torch.stack([Q.hypergradient(x) for x in xs])

    def phi(x: Tensor) -> Tensor:
        return Q.outer_loss(x, solve_inner(Q.problem, x, inner=SOLVER), None)

    assert relative(torch.func.vmap(torch.func.grad(phi))(xs), expected) < 1e-8
    assert relative(torch.func.grad(lambda xs: torch.func.vmap(phi)(xs).sum())(xs), expected) < 1e-8
    leaf = xs.clone().requires_grad_()
    torch.func.vmap(phi)(leaf).sum().backward()
    assert leaf.grad is not None
    assert relative(leaf.grad, expected) < 1e-8
    jacobian = torch.func.jacrev(lambda x: solve_inner(Q.problem, x, inner=SOLVER))(xs[0])
    assert relative(jacobian, torch.linalg.solve(Q.A, Q.C)) < 1e-8


def test_under_vmap_over_the_data_alone() -> None:
    """One ``x``, one inner batch a task."""
    x = (0.3 * noise(4) - 1).requires_grad_()
    made = Logistic()

    def one(z: Tensor, t: Tensor) -> Tensor:
        problem = dataclasses.replace(made.problem).with_batch(outer=None, inner=(z, t))
        return solve_inner(problem, x, inner=SOLVER)

    found = torch.func.vmap(one)(INNER[0], INNER[1].long())  # targets may be integers
    (gradient,) = torch.autograd.grad(found.sin().sum(), x)
    total = torch.zeros(4, dtype=DOUBLE)
    for k in range(B):
        task = Logistic(seed=10 * k)
        total += _differences(lambda x, task=task: task.solve(x).sin().sum(), x.detach())
    assert relative(gradient, total) < 1e-7
    y = solve_inner(many(True), x, inner=SOLVER)
    assert relative(torch.autograd.grad(y.sin().sum(), x)[0], total) < 1e-7


def test_features_get_their_gradient() -> None:
    """The inner batch may require gradients, such as features of a shared body."""
    made = Logistic()
    x = 0.3 * noise(4) - 1
    z, t = made.train[0], made.train[1].long()

    def solution(z: Tensor) -> Tensor:
        other = Logistic()
        other.train = (z, t)
        return other.solve(x).sin().sum()

    leaf = z.clone().requires_grad_()
    y = solve_inner(made.problem.with_batch(outer=None, inner=(leaf, t)), x, inner=SOLVER)
    (gradient,) = torch.autograd.grad(y.sin().sum(), leaf)
    width, moved = 1e-5, torch.zeros_like(z)
    for place in [(0, 0), (3, 2), (11, 3)]:
        unit = torch.zeros_like(z)
        unit[place] = width
        moved[place] = (solution(z + unit) - solution(z - unit)) / (2 * width)
        assert abs(float(gradient[place] - moved[place])) < 1e-7


def test_trees() -> None:
    leaves = [noise(1).requires_grad_(), noise(2, seed=1).requires_grad_()]
    x = {"a": leaves[0], "b": (leaves[1],)}

    def inner(x: Any, y: Any, _: Any) -> Tensor:
        return Q.inner_loss(torch.cat([x["a"], x["b"][0]]), y["w"], None)

    problem = dataclasses.replace(Q.problem, inner_loss=inner, init_inner=lambda x: {"w": torch.zeros(5, dtype=DOUBLE)})
    y = solve_inner(problem, x, inner=SOLVER)
    flat = torch.cat([leaf.detach() for leaf in leaves])
    Q.outer_loss(torch.cat(leaves), y["w"], None).backward()
    assert relative(torch.cat([leaf.grad for leaf in leaves if leaf.grad is not None]), Q.hypergradient(flat)) < 1e-8


def solution(x: Tensor) -> Tensor:
    return solve_inner(Q.problem, x, inner=SOLVER)


def objective(x: Tensor) -> Tensor:
    return Q.outer_loss(x, solution(x), None)


SECOND: dict[str, Callable[[Tensor], Any]] = {
    "grad of grad": torch.func.grad(lambda x: torch.func.grad(objective)(x).sum()),
    "jacrev of grad": torch.func.jacrev(torch.func.grad(objective)),
    "vmap of grad of grad": lambda x: torch.func.vmap(torch.func.grad(lambda x: torch.func.grad(objective)(x).sum()))(
        torch.stack([x, x])
    ),
    "autograd": lambda x: torch.autograd.functional.hessian(objective, x),
    "gradgradcheck": lambda x: torch.autograd.gradgradcheck(solution, x.requires_grad_()),
}
FORWARD: dict[str, Callable[[Tensor], Any]] = {
    "jvp": lambda x: torch.func.jvp(objective, (x,), (x,)),
    "jacfwd": torch.func.jacfwd(objective),
    "hessian": torch.func.hessian(objective),
}


@pytest.mark.filterwarnings("ignore:`torch.jit.script")  # of forward mode's own tables
@pytest.mark.parametrize("name", [*SECOND, *FORWARD])
def test_further_derivatives_are_one_line(name: str) -> None:
    kind = "a second derivative" if name in SECOND else "a forward-mode derivative"
    with pytest.raises(BilevelError, match=f"^{kind} of solve_inner was asked for") as caught:
        (SECOND | FORWARD)[name](noise(3))
    assert "\n" not in str(caught.value)
    assert torch.autograd.gradcheck(solution, noise(3).requires_grad_())


@pytest.mark.parametrize("dims", [(None, 0, 0), (0, 0, 0), (1, 0, 0), (0, None, None)])
@pytest.mark.parametrize("by", [0, 1])
def test_grad_within_vmap_over_x_and_data(dims: tuple[int | None, ...], by: int) -> None:
    """Of x and of the features, with either mapped or not, against autograd through Newton's method in a plain loop."""
    base = Logistic().problem

    def one(x: Tensor, z: Tensor, t: Tensor) -> Tensor:
        problem = base.with_batch(outer=None, inner=(z, t))
        return solve_inner(problem, x, inner=SOLVER).sin().sum()

    def exact(x: Tensor, z: Tensor, t: Tensor) -> Tensor:
        made = Logistic()
        made.train = (z, t)
        return made.solve(x).sin().sum()

    x = 0.3 * noise(B, 4, seed=2) - 1
    whole = (x, *INNER)
    given = tuple(part[0] if dim is None else part.movedim(0, dim) for part, dim in zip(whole, dims, strict=True))
    found = torch.func.vmap(torch.func.grad(one, argnums=by), in_dims=dims)(*given)
    total = torch.func.grad(lambda *parts: torch.func.vmap(one, in_dims=dims)(*parts).sum(), argnums=by)(*given)
    rows = [[part[0] if dim is None else part[k] for part, dim in zip(whole, dims, strict=True)] for k in range(B)]
    expected = torch.stack([torch.func.grad(exact, argnums=by)(*row) for row in rows])
    assert relative(found, expected) < 1e-8
    summed = expected.sum(0) if dims[by] is None else expected.movedim(0, dims[by])  # type: ignore[arg-type]
    assert relative(total, summed) < 1e-8


def test_what_it_cannot_do_is_said() -> None:
    x = noise(3).requires_grad_()
    y = solve_inner(Q.problem, x, inner=SOLVER)
    (first,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(BilevelError, match=r"second derivative of solve_inner .* drop create_graph=True"):
        first.sum().backward()
    with pytest.raises(ConfigError, match="under vmap with batched=3.*drop batched"):
        torch.func.vmap(lambda x: solve_inner(many(True), x, inner=SOLVER))(noise(2, 4))
    with pytest.raises(
        ConfigError, match="or under a second vmap, such as that of jacrev, .*drop batched, or one vmap"
    ):
        torch.func.vmap(torch.func.jacrev(solution))(noise(2, 3))
    with torch.inference_mode(), pytest.raises(BilevelError, match="inference mode is on, but .*or use torch.no_grad"):
        solve_inner(Q.problem, noise(3), inner=SOLVER)
    made = Logistic()

    def closed(z: Tensor) -> Tensor:
        problem = dataclasses.replace(
            made.problem, inner_loss=lambda x, y, _: made.inner_loss(x, y, (z, made.train[1]))
        )
        return solve_inner(problem, torch.zeros(4, dtype=DOUBLE), inner=SOLVER)

    with pytest.raises(BilevelError, match=r"closes over a tensor that a vmap .* maps, .*pass it by with_batch"):
        torch.func.vmap(closed)(noise(2, 12, 4))
    with pytest.raises(BilevelError, match=r"GradientDescent reached \|grad_y g\| = .* in 3 steps.*raise max_steps"):
        solve_inner(Q.problem, x, inner=GradientDescent(step_size=0.5, tolerance=1e-9, max_steps=3))


def test_an_inner_problem_without_curvature_is_refused() -> None:
    """By the backward pass, which solves with a Hessian of 0; AID does the same."""
    flat = dataclasses.replace(Q.problem, constants=Constants(), inner_loss=lambda x, y, _: (Q.C @ x + Q.d) @ y)
    x, inner = noise(3).requires_grad_(), GradientDescent(step_size=0.5, steps=3)
    y = solve_inner(flat, x, inner=inner, solver=CGOrMinRes(iterations=3))
    with pytest.raises(BilevelError, match="grad_yy g is 0 along grad_y f, so that inner_loss is linear in y there"):
        y.sum().backward()
    with pytest.raises(BilevelError, match="grad_yy g is 0 along grad_y f, so that inner_loss is linear in y there"):
        hypergradient(flat, x.detach(), None, AID(inner=inner))


def _differences(function: Any, x: Tensor, width: float = 1e-5) -> Tensor:
    units = torch.eye(len(x), dtype=DOUBLE)
    return torch.stack([(function(x + width * u) - function(x - width * u)) / (2 * width) for u in units])
