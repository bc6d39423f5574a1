"""Inner problems that are not strongly convex, as those of networks: against dense derivatives and pseudo-inverses in float64."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.bilevel import (
    AID,
    CG,
    ITD,
    BilevelProblem,
    BiO,
    CGOrMinRes,
    Constants,
    Exact,
    FixedPoint,
    GradientDescent,
    HeavyBallLinear,
    MinRes,
    NormalCG,
    OracleCounts,
    StocBiONeumann,
    hypergradient,
    run,
    solve_inner,
)
from metalearn.errors import BilevelError, ConfigError, DivergenceError
from tests.bilevel.made import DOUBLE, noise, relative
from tests.bilevel.solvers.test_linear import matrix
from tests.bilevel.test_errors import bent, saying

EXAMPLES, FEATURES = 12, 6


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.key, self.head = nn.Linear(2, 3), nn.Linear(2, 2)

    def forward(self, z: Tensor) -> Tensor:
        z = z.unflatten(-1, (3, 2))
        keys = self.key(z)
        return self.head(((keys @ keys.mT).softmax(-1) @ z).mean(-2))


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(5, 3), nn.Linear(3, 2)

    def forward(self, z: Tensor) -> Tensor:
        return self.head(self.embedding((z.abs() * 2).long().clamp(max=4)).mean(-2).tanh())


def wide(size: int, function: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, size), function, nn.Linear(size, 2))


NETWORKS: dict[str, Any] = {
    "tanh": lambda: wide(4, nn.Tanh()),
    "relu": lambda: wide(4, nn.ReLU()),
    "gelu": lambda: wide(4, nn.GELU()),
    "conv": lambda: nn.Sequential(
        nn.Unflatten(-1, (1, 6)), nn.Conv1d(1, 2, 3), nn.Tanh(), nn.Flatten(-2), nn.Linear(8, 2)
    ),
    "layer norm": lambda: nn.Sequential(nn.Linear(FEATURES, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 2)),
    "attention": Attention,
    "embedding": Words,
    "over-parametrised": lambda: wide(9, nn.Tanh()),
}


class Weighted:
    """``x`` weighs the training examples of a network, ``y`` are its parameters; ``f`` is the loss on others."""

    def __init__(self, name: str, l2: float, steps: int = 30) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.net = NETWORKS[name]().to(DOUBLE)
        self.l2, self.x = l2, 0.1 * noise(EXAMPLES, seed=5)
        self.data = [(noise(EXAMPLES, FEATURES, seed=k), torch.arange(EXAMPLES).mul(k) % 3 % 2) for k in (1, 2)]
        self.names = [name for name, _ in self.net.named_parameters()]
        self.shapes = [value.shape for value in self.net.parameters()]
        y = torch.cat([value.detach().reshape(-1) for value in self.net.parameters()])
        for _ in range(steps):
            y = y - 0.3 * torch.func.grad(self.g, 1)(self.x, y)
        self.y = y.detach()

    def tree(self, y: Tensor) -> dict[str, Tensor]:
        pieces = y.split([shape.numel() for shape in self.shapes])
        return {name: piece.view(shape) for name, piece, shape in zip(self.names, pieces, self.shapes, strict=True)}

    def losses(self, y: dict[str, Tensor], data: Any) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(self.net, y, (data[0],)), data[1], reduction="none")

    def inner_loss(self, x: Tensor, y: dict[str, Tensor], _: Any) -> Tensor:
        return (x.sigmoid() * self.losses(y, self.data[0])).mean() + self.l2 * sum(v.square().sum() for v in y.values())

    def outer_loss(self, x: Tensor, y: dict[str, Tensor], _: Any) -> Tensor:
        return self.losses(y, self.data[1]).mean() + 0.01 * x.square().sum()

    def g(self, x: Tensor, y: Tensor) -> Tensor:
        return self.inner_loss(x, self.tree(y), None)

    @property
    def problem(self) -> BilevelProblem:
        return BilevelProblem(self.outer_loss, self.inner_loss, lambda x: self.tree(self.y))

    def dense(self) -> tuple[Tensor, Tensor]:
        """The hypergradient by the pseudo-inverse of the whole Hessian, and its eigenvalues."""
        inner = torch.func.grad(self.g, 1)
        # not torch.func.hessian, whose forward mode is wrong for layer normalisation
        of_y = torch.func.jacrev(inner, 1)(self.x, self.y)
        of_x = torch.func.jacrev(inner, 0)(self.x, self.y)
        b = torch.func.grad(lambda y: self.outer_loss(self.x, self.tree(y), None))(self.y)
        values = torch.linalg.eigvalsh(of_y)
        return 0.02 * self.x - of_x.T @ (torch.linalg.pinv(of_y, rtol=1e-11, hermitian=True) @ b), values


@pytest.mark.parametrize("l2", [3e-3, 3e-4, 0.0])
@pytest.mark.parametrize("name", list(NETWORKS))
def test_the_default_solves_what_networks_are(name: str, l2: float) -> None:
    made = Weighted(name, l2)
    expected, values = made.dense()
    assert values[0] < -1e-5  # which conjugate gradients refuse
    counts = OracleCounts()
    found = hypergradient(made.problem, made.x, counts=counts)
    assert relative(found.value, expected) < 1e-6
    assert found.diagnostics.counts is counts
    # what conjugate gradients did until they met it, one a step afterwards, and one for the residual
    assert found.diagnostics.iterations < counts.hvp <= found.diagnostics.iterations + 2
    assert counts.hvp <= len(made.y) + 12
    v = torch.cat([leaf.reshape(-1) for leaf in found.dual.values()])
    b = torch.func.grad(lambda y: made.outer_loss(made.x, made.tree(y), None))(made.y)
    missed = float((torch.func.jacrev(torch.func.grad(made.g, 1), 1)(made.x, made.y) @ v - b).norm())
    assert found.diagnostics.dual_residual is not None
    assert float(found.diagnostics.dual_residual) == pytest.approx(missed, rel=1e-5, abs=1e-12)


def test_a_saddle_and_single_precision() -> None:
    """At initial weights, far from any minimum, in the precision that people train in."""
    made = Weighted("gelu", 0.01, steps=0)
    expected, values = made.dense()
    assert values[0] < -0.02
    made.net.float()
    made.data = [(z.float(), t) for z, t in made.data]
    made.y = made.y.float()
    found = hypergradient(made.problem, made.x.float())
    assert relative(found.value.double(), expected) < 1e-3
    assert float(found.diagnostics.dual_residual or 0) > 1e-9  # the true one, not that of a small system in float64


def test_agrees_with_itd_run_to_convergence() -> None:
    made = Weighted("tanh", 0.06, steps=600)
    unrolled = hypergradient(made.problem, made.x, None, ITD(inner=GradientDescent(step_size=0.5, steps=250))).value
    for solver in (CGOrMinRes(iterations=60), CG(iterations=60), NormalCG(iterations=300), MinRes(iterations=60)):
        found = hypergradient(made.problem, made.x, None, AID(solver=solver)).value
        assert float(F.cosine_similarity(found, unrolled, 0)) > 0.99999


def test_problems_fall_back_one_by_one() -> None:
    """Of four at once two are bent: those get the dense solution, the others what they get alone."""
    scales = torch.tensor([[1.0, 2.0, 3.0], [1.0, -2.0, 3.0], [0.5, 0.1, 7.0], [1.0, 0.0, -1.0]], dtype=DOUBLE)

    def inner(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
        return (scale * y * y).sum() / 2 - x @ y

    def outer(x: Tensor, y: Tensor, target: Tensor) -> Tensor:
        return target @ y

    targets = torch.tensor([[1.0, 2.0, 1.0], [3.0, 1.0, 1.0], [1.0, 1.0, 2.0], [1.0, 0.0, 1.0]], dtype=DOUBLE)
    problem = BilevelProblem(outer, inner, lambda x: torch.zeros(4, 3, dtype=DOUBLE), batched=4, shared_x=False)
    estimator = AID(solver=CGOrMinRes(iterations=2))
    counts = OracleCounts()
    found = hypergradient(problem.with_batch(targets, scales), noise(4, 3), None, estimator, counts=counts)
    for k in (0, 2):
        alone = BilevelProblem(outer, inner, torch.zeros_like).with_batch(targets[k], scales[k])
        plain = hypergradient(alone, noise(4, 3)[k], None, AID(solver=CG(iterations=2)))
        assert relative(found.value[k], plain.value) < 1e-14
        assert plain.diagnostics.dual_residual is not None
        assert found.diagnostics.dual_residual is not None
        assert float(found.diagnostics.dual_residual[k]) == pytest.approx(float(plain.diagnostics.dual_residual))
    for k in (1, 3):
        assert relative(found.value[k], torch.linalg.pinv(scales[k].diag()) @ targets[k]) < 1e-13
    # all four are in every product: two of conjugate gradients, three of a space of three, one for the residual
    assert counts.hvp == 4 * (2 + 3 + 1)


def test_it_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    problem = bent(-0.006)
    for _ in range(2):
        with caplog.at_level(logging.WARNING, logger="metalearn"):
            run(problem, BiO(estimator=AID(), step_size=0.1), noise(3), steps=2)
    (record,) = caplog.records
    message = record.getMessage()
    assert "\n" not in message
    for part in ("AID: inner_loss has the curvature -0", "minimal residuals", "damping=", "ITD"):
        assert part in message
    with caplog.at_level(logging.WARNING, logger="metalearn"):
        hypergradient(bent(-0.006), noise(3))
        hypergradient(bent(0.006), noise(3))
    assert len(caplog.records) == 2


def test_what_is_asked_for_is_done_or_refused() -> None:
    """An explicit solver, damping, or a constant that promises convexity: no other method takes their place."""
    x = noise(3)
    remedy = "damping= above the negative curvature, or use CGOrMinRes, or the estimator ITD"
    for solver in (CG(iterations=5), FixedPoint(step_size=0.5, iterations=40)):
        saying(
            BilevelError, rf"met the curvature -0.* in inner_loss, .*{remedy}",
            lambda solver=solver: hypergradient(bent(-0.4), x, None, AID(solver=solver)),
        )  # fmt: skip
    promised = BilevelProblem(lambda x, y, _: y.sum(), bent(-0.4).inner_loss, torch.zeros_like, Constants(mu=0.1))
    saying(BilevelError, "CG met the curvature -", lambda: hypergradient(promised, x))
    saying(
        BilevelError, r"CG met the curvature -0.*, with damping=0.3 -0.*, in inner_loss",
        lambda: hypergradient(bent(-4.0), x, None, AID(solver=CG(iterations=5, damping=0.3))),
    )  # fmt: skip
    saying(ConfigError, r"CG\(damping=-1.0\), but it must .* of at least 0", lambda: CG(iterations=1, damping=-1.0))


@pytest.mark.parametrize(
    "solver",
    [
        CG(iterations=3, damping=0.9), NormalCG(iterations=3, damping=0.9), MinRes(iterations=3, damping=0.9),
        CGOrMinRes(iterations=3, damping=0.9), FixedPoint(step_size=0.9, iterations=400, damping=0.9),
        HeavyBallLinear(step_size=0.9, momentum=0.2, iterations=400, damping=0.9),
    ],
    ids=lambda each: type(each).__name__,
)  # fmt: skip
def test_damping_is_added_to_the_system(solver: Any) -> None:
    found = hypergradient(bent(-0.4), noise(3), None, AID(solver=solver))
    v = 1 / torch.tensor([1.9, 0.5, 1.9], dtype=DOUBLE)
    assert relative(found.value, v) < 1e-12  # J is -I
    missed = float((torch.tensor([1.0, -0.4, 1.0], dtype=DOUBLE) * v - 1).norm())
    assert float(found.diagnostics.dual_residual or 0) >= missed * (
        1 - 1e-9
    )  # that of H itself, so that certificates hold


def test_minimal_residuals_is_the_least_residual_of_its_space() -> None:
    a, b = matrix([-2.0, -0.5, 0.3, 1.0, 4.0, 5.0]), noise(6, seed=3)
    space = [b]
    for count in range(1, 6):
        basis = torch.linalg.qr(torch.stack(space, 1))[0]
        least = torch.linalg.lstsq(a @ basis, b.unsqueeze(1)).solution
        found = MinRes(iterations=count).solve(lambda v: a @ v, b)
        assert relative(found.v, (basis @ least).squeeze(1)) < 1e-9
        assert float(found.residual) == pytest.approx(float((a @ found.v - b).norm()))
        space.append(a @ space[-1])
    start = noise(6, seed=4)
    assert relative(MinRes(tolerance=1e-12).solve(lambda v: a @ v, b, start).v, torch.linalg.solve(a, b)) < 1e-10
    for values in ([0.0, 0.0, 0.5, -1.0, 2.0, 2.0], [0.0] * 6):
        singular = matrix(values)
        found = MinRes(iterations=20).solve(lambda v, singular=singular: singular @ v, b)
        torch.testing.assert_close(found.v, torch.linalg.pinv(singular, rtol=1e-12) @ b, rtol=1e-11, atol=1e-13)
    for solver in (MinRes(tolerance=1e-9, max_iterations=4), CGOrMinRes(tolerance=1e-9, max_iterations=4)):
        saying(
            BilevelError, rf"{type(solver).__name__} reached \|H v - b\| = .* in 4 iterations, but tolerance=1e-09",
            lambda solver=solver: solver.solve(lambda v: a @ v, b),
        )  # fmt: skip
    assert float(CGOrMinRes(tolerance=1e-9).solve(lambda v: a @ v, b).residual) < 1e-9


@pytest.mark.parametrize(
    "estimator",
    [
        AID(), AID(solver=CG(iterations=5)), AID(solver=FixedPoint(step_size=0.5, iterations=40)), Exact(),
        StocBiONeumann(eta=0.5, Q=25), AID(solver=HeavyBallLinear(step_size=0.5, momentum=0.5, iterations=80)),
    ],
    ids=lambda each: type(each).__name__,
)  # fmt: skip
def test_curvature_does_not_hide_that_nothing_depends_on_x(estimator: Any) -> None:
    scale = torch.tensor([1.0, -0.4, 1.0], dtype=DOUBLE)
    problem = BilevelProblem(lambda x, y, _: y.sum(), lambda x, y, _: (scale * y * y).sum(), torch.zeros_like)
    saying(
        BilevelError,
        "neither outer_loss nor inner_loss depends on x",
        lambda: hypergradient(problem, noise(3), None, estimator),
    )


def test_solve_inner_falls_back_too() -> None:
    """The derivative of a saddle of ``g``, which the closed form gives: ``y* = x / scale``."""
    scale = torch.tensor([1.0, -0.4, 3.0], dtype=DOUBLE)
    x = noise(3).requires_grad_()
    y = solve_inner(bent_at(scale), x, x.detach() / scale, inner=GradientDescent(step_size=0.1, steps=0))
    (found,) = torch.autograd.grad(y @ torch.tensor([1.0, 2.0, 3.0], dtype=DOUBLE), x)
    assert relative(found, torch.tensor([1.0, 2.0, 3.0], dtype=DOUBLE) / scale) < 1e-9


def bent_at(scale: Tensor) -> BilevelProblem:
    return BilevelProblem(lambda x, y, _: y.sum(), lambda x, y, _: (scale * y * y).sum() / 2 - x @ y, torch.zeros_like)


@pytest.mark.parametrize(
    "solver", [CGOrMinRes(iterations=5), MinRes(iterations=5)], ids=lambda each: type(each).__name__
)
def test_products_that_are_not_finite_are_named(solver: Any) -> None:
    """``|y|`` to a power whose second derivative has no value at 0."""
    problem = BilevelProblem(
        lambda x, y, _: y.sum(), lambda x, y, _: y.abs().pow(1.5).sum() - 1e-3 * x @ y - (y * y).sum(), torch.zeros_like
    )
    saying(
        DivergenceError,
        r"grad_yy g has an entry (inf|nan)",
        lambda: hypergradient(problem, noise(3), None, AID(solver=solver)),
    )
