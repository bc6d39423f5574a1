"""Advice on the solvers of bilevel problems, against the spectrum of a quadratic and against what the solvers do."""

from __future__ import annotations

import logging
from pathlib import Path

import lightning as L
import pytest
import torch

from metalearn import BilevelModule, StepSizeAdvisor
from metalearn.bilevel import AID, CG, BilevelProblem, BiO, GradientDescent, Neumann, StocBiONeumann, quadratic
from metalearn.errors import ConfigError
from metalearn.theory import SolverAdvice, advise_solvers

X = torch.linspace(-1.0, 1.0, 3, dtype=torch.float64)
MADE = quadratic(size=8, outer_size=3, kappa=20.0, seed=1)


def unknown_constants(problem: BilevelProblem) -> BilevelProblem:
    return BilevelProblem(problem.outer_loss, problem.inner_loss, problem.init_inner)


def make_algorithm(step_size: float = 1.0) -> BiO:
    return BiO(
        estimator=AID(inner=GradientDescent(step_size=step_size, steps=5), solver=CG(iterations=3)), step_size=0.01
    )


def test_the_spectrum_and_the_steps() -> None:
    advice = advise_solvers(MADE.problem, X, tolerance=1e-4)
    values = torch.linalg.eigvalsh(MADE.A)
    assert advice.mu == pytest.approx(float(values[0]), rel=1e-3)
    assert advice.stable == pytest.approx(2 / float(values[-1]), rel=1e-3)
    assert advice.fault is None
    assert advice.fastest is not None
    assert advice.inner_steps is not None
    assert advice.cg_iterations is not None
    assert advice.neumann_terms is not None
    # what the steps leave of an error along the worst direction, by the matrix itself
    eye = torch.eye(8, dtype=torch.float64)

    def left(step_size: float, steps: int) -> float:
        return float(torch.linalg.matrix_norm(torch.linalg.matrix_power(eye - step_size * MADE.A, steps), 2))

    assert left(advice.fastest, advice.inner_steps) <= 1e-4 * 1.01 < left(advice.fastest, advice.inner_steps - 1) * 1.02
    assert left(advice.neumann, advice.neumann_terms + 1) <= 1e-4 * 1.01
    assert left(advice.neumann, advice.neumann_terms) > 1e-4 / 1.02
    b = torch.ones(8, dtype=torch.float64)
    solved = CG(iterations=min(advice.cg_iterations, 8)).solve(lambda v: MADE.A @ v, b).v
    exact = torch.linalg.solve(MADE.A, b)
    error = solved - exact
    assert float(error @ MADE.A @ error) ** 0.5 <= 1e-4 * float(exact @ MADE.A @ exact) ** 0.5


def test_a_step_beyond_the_stable_range_is_said() -> None:
    problem = unknown_constants(MADE.problem)
    assert advise_solvers(problem, X, algorithm=make_algorithm(1.9)).fault is None
    fault = advise_solvers(problem, X, algorithm=make_algorithm(2.1)).fault
    assert fault is not None
    assert "GradientDescent.step_size is 2.1, but with L = 1 it must be below 2" in fault
    inner = GradientDescent(step_size=1.0, steps=5)
    for estimator in (
        AID(inner=inner, solver=Neumann(step_size=2.5, iterations=3)),
        StocBiONeumann(inner=inner, eta=2.5, Q=2),
    ):
        assert advise_solvers(problem, X, algorithm=BiO(estimator=estimator, step_size=0.1)).fault is not None


def test_an_inner_loss_that_is_not_convex() -> None:
    problem = BilevelProblem(
        lambda x, y, _: (y - 1).square().sum(),
        lambda x, y, _: (y**4 / 4 - y * y / 2 - x.sum() * y).sum(),
        torch.zeros_like,
    )
    advice = advise_solvers(problem, X)
    assert advice.mu == pytest.approx(-1)
    assert not advice.is_convex
    assert advice.inner_steps is None
    assert "strongly convex" in str(advice.fault)
    assert "gradient steps diverge" in str(advice)


def train(module: L.LightningModule, advisor: StepSizeAdvisor, folder: Path) -> None:
    L.Trainer(
        max_steps=4, callbacks=[advisor], logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, accelerator="cpu", default_root_dir=folder,
    ).fit(module)  # fmt: skip


def test_the_advisor_of_a_bilevel_module(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    advisor = StepSizeAdvisor(every=2)
    module, plain = (BilevelModule(unknown_constants(MADE.problem), make_algorithm(2.02), X) for _ in range(2))
    with caplog.at_level(logging.INFO):
        train(module, advisor, tmp_path)
    lines = [line for line in caplog.messages if line.startswith("StepSizeAdvisor")]
    assert len(lines) == 2
    assert "stable below 2" in lines[0]
    assert "warning: GradientDescent.step_size is 2.02" in lines[1]
    assert [advice.step for advice in advisor.series] == [0, 2]
    assert "CG" in advisor.summary_facts("fit")[-1].text
    train(plain, StepSizeAdvisor(every=100), tmp_path)
    assert all(value.equal(other) for value, other in zip(module.parameters(), plain.parameters(), strict=True))
    restored = StepSizeAdvisor()
    restored.load_state_dict(advisor.state_dict())
    assert restored.series == advisor.series
    assert isinstance(restored.series[0], SolverAdvice)


def test_it_sets_nothing_of_a_bilevel_module(tmp_path: Path) -> None:
    module = BilevelModule(unknown_constants(MADE.problem), make_algorithm(), X)
    with pytest.raises(ConfigError, match="apply is True, but the solvers of BilevelModule are frozen"):
        train(module, StepSizeAdvisor(apply=True), tmp_path)
