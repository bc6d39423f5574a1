"""The quantum state, against differences of the eigendecomposition and of Newton's solution."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from tests.examples.scripts import load_example

pytestmark = pytest.mark.documents

example = load_example("quantum_state")


def solve_ring(field: float) -> float:
    """The magnetisation of the ground state, from matrices that are built in another way."""
    up, flip = np.diag([1.0, -1.0]), np.array([[0.0, 1.0], [1.0, 0.0]])

    def place(matrix: np.ndarray, spin: int) -> np.ndarray:
        return np.kron(np.kron(np.eye(2**spin), matrix), np.eye(2 ** (3 - spin)))

    pairs = sum(place(up, spin) @ place(up, (spin + 1) % 4) for spin in range(4))
    total = sum(place(up, spin) for spin in range(4))
    ground = np.linalg.eigh(-pairs - sum(place(flip, spin) for spin in range(4)) - field * total)[1][:, 0]
    return float(ground @ total @ ground / 4)


def derive(function: Callable[[float], float], field: float, change: float = 1e-3) -> float:
    """Central differences of the fourth order."""
    near, far = (function(field + step) - function(field - step) for step in (change, 2 * change))
    return (8 * near - far) / (12 * change)


@pytest.mark.parametrize("field", [0.1, 0.5])
def test_five_angles_hold_the_ground_state_and_its_derivative(field: float) -> None:
    magnetisation, slope = solve_ring(field), derive(solve_ring, field)
    for values, slopes in (example.respond([field], angles=5), example.respond_exactly([field])):
        assert values.item() == pytest.approx(magnetisation, rel=1e-8)
        assert slopes.item() == pytest.approx(slope, rel=1e-6)


def test_two_angles_give_the_exact_derivative_of_an_approximate_state() -> None:
    def solve(field: float) -> float:
        def loss(y: torch.Tensor) -> torch.Tensor:
            return example.energy(example.double(field), y, None)

        y = example.double([0.7, -0.1])
        for _ in range(20):  # Newton's method
            y = y - torch.linalg.solve(torch.autograd.functional.hessian(loss, y), torch.func.grad(loss)(y))
        return example.magnetisation(None, y, None).item()

    _, slopes = example.respond([0.2], angles=2)
    assert slopes.item() == pytest.approx(derive(solve, 0.2), rel=1e-6)
    assert slopes.item() < 0.6 * derive(solve_ring, 0.2)


def test_descent_finds_the_field() -> None:
    assert solve_ring(example.find_field(0.9, steps=5)) == pytest.approx(0.9, abs=2e-3)
