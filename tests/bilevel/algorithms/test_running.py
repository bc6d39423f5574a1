"""The loop over an algorithm: it resumes from plain tensors, stops when it is asked to, and draws from no global generator."""

from __future__ import annotations

import io

import pytest
import torch
from torch import Tensor

from metalearn.bilevel import (
    AID,
    CG,
    ITD,
    L1,
    MRBO,
    PZOBO,
    VRBO,
    AccBiO,
    AccBiOBG,
    Algorithm,
    BiO,
    GradientDescent,
    ProximalBiO,
    Record,
    State,
    StocBiONeumann,
    aid_bio,
    run,
    smoothness_of_phi,
)
from tests.bilevel.algorithms.test_algorithms import CONSTANTS, START, Q, noisy

SMALL = GradientDescent(step_size=0.5, steps=2)
RESUMED: list[Algorithm] = [
    BiO(estimator=AID(inner=SMALL, solver=CG(iterations=2)), step_size=0.01),
    BiO(estimator=ITD(inner=SMALL), step_size=0.01),
    BiO(estimator=StocBiONeumann(inner=SMALL, eta=0.5, Q=3, batch=4), step_size=0.01),
    BiO(estimator=PZOBO(inner=SMALL, Q=2), step_size=0.01),
    AccBiO(estimator=AID(inner=SMALL), L_phi=200.0, mu_x=1.0),
    AccBiOBG(estimator=AID(inner=SMALL), step_size=0.004, mu_x=1.0),
    MRBO(estimator=StocBiONeumann(eta=0.5, Q=2), step_size=0.01, inner_step_size=0.5),
    VRBO(estimator=StocBiONeumann(eta=0.5, Q=2), anchor=StocBiONeumann(eta=0.5, Q=2, batch=40), step_size=0.01,
         inner_step_size=0.5, anchor_size=40),
    ProximalBiO(estimator=AID(inner=SMALL), prox=L1(0.1), step_size=0.01, momentum=None),
]  # fmt: skip


@pytest.mark.parametrize("algorithm", RESUMED, ids=lambda each: type(each).__name__)
def test_a_run_resumes_exactly_from_plain_tensors(algorithm: Algorithm) -> None:
    problem = noisy()
    whole = run(problem, algorithm, START, 7, seed=3)
    half = run(problem, algorithm, START, 3, seed=3)
    file = io.BytesIO()
    torch.save(half.state, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    rest = run(problem, algorithm, steps=4, state=state)
    assert torch.equal(rest.x, whole.x)
    assert not any(value.requires_grad for value in rest.state.values() if isinstance(value, Tensor))
    assert rest.state["counts"] == whole.state["counts"]
    assert rest.history[-1].step == 7
    other = run(problem, algorithm, START, 7, seed=4)
    assert not torch.equal(other.x, whole.x)


def test_nothing_draws_from_the_global_generator() -> None:
    before = torch.get_rng_state()
    for algorithm in RESUMED:
        run(noisy(), algorithm, START, 2)
    assert torch.equal(before, torch.get_rng_state())


def test_a_run_stops_and_logs_as_it_is_told() -> None:
    algorithm = aid_bio(CONSTANTS, step_size=1 / smoothness_of_phi(CONSTANTS))
    seen: list[int] = []

    def stop(_: State, record: Record) -> bool:
        seen.append(record.step)
        return len(seen) == 3

    found = run(Q.problem, algorithm, START, 50, every=4, callback=stop)
    assert seen == [4, 8, 12]
    assert [record.step for record in found.history] == seen
    assert not found.converged
    assert found.history[0].certificate is not None
    done = run(Q.problem, algorithm, START, 10_000, tolerance=1e-3, every=1000)
    assert done.converged
    assert done.history[-1].norm <= 1e-3
    leaf = START.clone().requires_grad_()
    assert not run(Q.problem, algorithm, leaf, 1).x.requires_grad
    assert torch.equal(leaf.detach(), START)
