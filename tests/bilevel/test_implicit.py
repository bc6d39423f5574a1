"""The inner solution as a differentiable function."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from metalearn.bilevel import CG, GradientDescent, Nesterov, quadratic, solve_inner
from metalearn.errors import BilevelError, ConfigError
from tests.bilevel.problems import DOUBLE, Logistic, noise, relative
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


def test_what_it_cannot_do_is_said() -> None:
    x = noise(3).requires_grad_()
    y = solve_inner(Q.problem, x, inner=SOLVER)
    (first,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(BilevelError, match=r"second derivative of solve_inner .* drop create_graph=True"):
        first.sum().backward()
    with pytest.raises(ConfigError, match="under vmap with batched=3.*drop batched"):
        torch.func.vmap(lambda x: solve_inner(many(True), x, inner=SOLVER))(noise(2, 4))
    with pytest.raises(BilevelError, match=r"GradientDescent reached \|grad_y g\| = .* in 3 steps.*raise max_steps"):
        solve_inner(Q.problem, x, inner=GradientDescent(step_size=0.5, tolerance=1e-9, max_steps=3))


def _differences(function: Any, x: Tensor, width: float = 1e-5) -> Tensor:
    units = torch.eye(len(x), dtype=DOUBLE)
    return torch.stack([(function(x + width * u) - function(x - width * u)) / (2 * width) for u in units])
