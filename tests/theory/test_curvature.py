"""The ends of spectra, against dense matrices and Hessians."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from metalearn import BilevelError, ConfigError, DivergenceError, ShapeError
from metalearn.theory import hessian_spectrum, lanczos


def make_symmetric(eigenvalues: Tensor, seed: int) -> Tensor:
    """A symmetric matrix of these eigenvalues."""
    size = len(eigenvalues)
    basis = torch.linalg.qr(torch.randn(size, size, generator=torch.Generator().manual_seed(seed)).double())[0]
    return basis @ torch.diag(eigenvalues.double()) @ basis.T


SPECTRA = {
    "spread": torch.linspace(-3, 8, 40),
    "positive": torch.logspace(-3, 2, 40),
    "repeated": torch.tensor([1.0, 1.0, 1.0, 5.0, 5.0, -2.0] * 5),
    "low rank": torch.cat([torch.tensor([4.0, -7.0]), torch.zeros(30)]),
    "multiple of one": torch.full((12,), 3.0),
    "nothing": torch.zeros(6),
    "a number": torch.tensor([-2.0]),
}


@pytest.mark.parametrize("name", SPECTRA)
def test_ends_are_those_of_numpy(name: str) -> None:
    matrix = make_symmetric(SPECTRA[name], 1)
    ends = lanczos(lambda v: v @ matrix, torch.zeros(len(matrix)).double(), iterations=40, tolerance=1e-9)
    values = np.linalg.eigvalsh(matrix.numpy())
    assert float(ends.largest) == pytest.approx(values[-1], abs=1e-7)
    assert float(ends.smallest) == pytest.approx(values[0], abs=1e-7)
    assert float(ends.magnitude) == pytest.approx(np.abs(values).max(), abs=1e-7)


def test_tasks_are_independent_of_one_another() -> None:
    """A task whose vectors are spent at once does not disturb one that needs many."""
    kinds = [SPECTRA["positive"], torch.zeros(40), torch.full((40,), 2.0), SPECTRA["spread"]]
    matrices = torch.stack([make_symmetric(kind, index) for index, kind in enumerate(kinds)])
    ends = lanczos(lambda v: torch.einsum("bij,bj->bi", matrices, v), torch.zeros(4, 40).double(), 40, 1e-9)
    values = np.linalg.eigvalsh(matrices.numpy())
    np.testing.assert_allclose(ends.largest, values[:, -1], atol=1e-7)
    np.testing.assert_allclose(ends.smallest, values[:, 0], atol=1e-7)


def test_the_bound_holds_the_error_of_every_iteration() -> None:
    matrix = make_symmetric(SPECTRA["spread"], 3)
    values = np.linalg.eigvalsh(matrix.numpy())
    for iterations in range(1, 25):
        ends = lanczos(lambda v: v @ matrix, torch.zeros(40).double(), iterations, 1e-12)
        for value, error in ((ends.largest, ends.error_of_largest), (ends.smallest, ends.error_of_smallest)):
            assert np.abs(values - float(value)).min() <= float(error) + 1e-9
        assert ends.iterations == iterations


def test_it_stops_where_it_is_exact_enough_and_begins_alike() -> None:
    matrix = make_symmetric(torch.logspace(0, 3, 200), 2)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    ends, again = (lanczos(lambda v: v @ matrix, torch.zeros(200).double(), 100, 1e-2, seed=7) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    assert ends.iterations < 40
    assert float(ends.largest) == pytest.approx(1000, rel=1e-3)
    assert torch.equal(ends.largest, again.largest)


def test_largest_eigenvalue_of_a_dense_hessian() -> None:
    """Within 0.1 %, of each of three tasks, on a network in float64."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    x, y = torch.randn(3, 12, 6).double(), torch.randint(3, (3, 12))
    start = {name: value.detach() for name, value in net.named_parameters()}
    params = {name: torch.stack([value + 0.1 * index for index in range(3)]) for name, value in start.items()}

    def losses(params: dict[str, Tensor]) -> Tensor:
        rows = [{name: value[index] for name, value in params.items()} for index in range(3)]
        outputs = [functional_call(net, row, (x[index],)) for index, row in enumerate(rows)]
        return torch.stack([F.cross_entropy(output, y[index]) for index, output in enumerate(outputs)])

    ends = hessian_spectrum(losses, params, tasks=3, iterations=40, tolerance=1e-4)
    for index in range(3):
        flat = torch.cat([value[index].reshape(-1) for value in params.values()])
        sizes = [value[0].numel() for value in params.values()]

        def loss(flat: Tensor, index: int = index, sizes: list[int] = sizes) -> Tensor:
            parts = zip(start.items(), flat.split(sizes), strict=True)
            row = {name: part.reshape(value.shape) for (name, value), part in parts}
            return F.cross_entropy(functional_call(net, row, (x[index],)), y[index])

        values = torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, flat))
        assert float(ends.largest[index]) == pytest.approx(float(values[-1]), rel=1e-3)
        assert float(ends.smallest[index]) == pytest.approx(float(values[0]), abs=1e-3 * float(values[-1]))


def test_a_linear_loss_has_no_curvature() -> None:
    ends = hessian_spectrum(lambda w: w.sum(), torch.ones(4))
    assert float(ends.largest) == float(ends.smallest) == 0.0


class OnceOnly(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: object, grad: Tensor) -> Tensor:
        return 2 * grad


@pytest.mark.parametrize(
    ("call", "kind", "text"),
    [
        (lambda: hessian_spectrum(lambda w: w, torch.ones(3)), ShapeError, "loss gives"),
        (lambda: hessian_spectrum(lambda w: 3.0, torch.ones(3)), ShapeError, "loss gives float"),
        (lambda: hessian_spectrum(lambda w: w.sum(), torch.ones(3, 2), tasks=3), ShapeError, "shape \\[3\\]"),
        (lambda: hessian_spectrum(lambda w: w.sum(), torch.ones(3, dtype=torch.int64)), ShapeError, "floating-point"),
        (lambda: hessian_spectrum(lambda w: w.sum(), {}), ShapeError, "at least one tensor"),
        (lambda: hessian_spectrum(lambda w: w.log().sum(), torch.zeros(3)), DivergenceError, "not finite"),
        (lambda: hessian_spectrum(lambda w: OnceOnly.apply(w).square().sum(), torch.ones(3)), BilevelError, "once_differ"),
        (lambda: hessian_spectrum(lambda w: w.sum(), torch.ones(3), iterations=0), ConfigError, "iterations is 0"),
        (lambda: hessian_spectrum(lambda w: w.sum(), torch.ones(3), tolerance=0.0), ConfigError, "tolerance is 0"),
        (lambda: lanczos(lambda v: v, torch.ones(2, 2, 2)), ShapeError, "like is"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line(call: object, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text) as caught:
        call()  # type: ignore[operator]
    assert "\n" not in str(caught.value)
