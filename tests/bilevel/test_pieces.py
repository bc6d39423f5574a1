"""Streams, proximal operators, trees."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from metalearn.bilevel import L1, Box, Draw, Fixed, GroupL1, Prox, Sampled, shrinking_sizes
from metalearn.bilevel.trees import Layout
from tests.bilevel.made import DOUBLE, noise


def test_a_draw_is_a_pure_function() -> None:
    stream = Sampled(torch.arange(50.0), torch.arange(100.0), outer_size=5, inner_size=8)
    one = stream(Draw(3, 7, "hessian", 2))
    stream(Draw(0, 0, "inner"))
    assert torch.equal(stream(Draw(3, 7, "hessian", 2)), one)
    assert len(one) == 8
    assert len(set(one.tolist())) == 8
    others = [Draw(4, 7, "hessian", 2), Draw(3, 8, "hessian", 2), Draw(3, 7, "jacobian", 2), Draw(3, 7, "hessian", 1)]
    assert not any(torch.equal(stream(other), one) for other in others)
    assert len(stream(Draw(0, 0, "outer"))) == 5
    assert stream.samples(Draw(0, 0, "hessian", 0, 17)) == 17


def test_a_full_batch_is_the_data_itself() -> None:
    data = {"z": noise(9, 2), "t": noise(9)}
    stream = Sampled(data, data, inner_size=4)
    assert stream(Draw(0, 0, "outer")) is data
    assert stream(Draw(0, 0, "inner", 0, 100)) is data
    assert stream.samples(Draw(0, 0, "inner", 0, 100)) == 9
    part = stream(Draw(0, 1, "inner"))
    assert part["z"].shape == (4, 2)
    assert all(bool((data["z"] == row).all(1).any()) for row in part["z"])


def test_draws_are_independent_and_uniform() -> None:
    """Each of 20 examples is in a batch of 5 a quarter of the time, and two terms meet as often as chance has it."""
    stream = Sampled(torch.arange(20), torch.arange(20), inner_size=5)
    counts, meets = torch.zeros(20), 0
    for step in range(1000):
        a, b = stream(Draw(0, step, "inner")), stream(Draw(0, step, "jacobian"))
        counts[a] += 1
        meets += len(set(a.tolist()) & set(b.tolist()))
    assert float((counts / 1000 - 0.25).abs().max()) < 5 * (0.25 * 0.75 / 1000) ** 0.5
    assert abs(meets / 1000 - 1.25) < 0.15


def test_fixed() -> None:
    stream = Fixed("outer", "inner")
    assert stream(Draw(0, 0, "outer")) == "outer"
    assert stream(Draw(0, 0, "jacobian")) == "inner"


def test_shrinking() -> None:
    assert shrinking_sizes(10, 3, 0.5) == [30, 15, 8]
    assert shrinking_sizes(1, 4, 0.1) == [4, 1, 1, 1]


@pytest.mark.parametrize("prox", [L1(0.4), GroupL1(0.7), GroupL1(0.7, dim=1), Box(-0.5, 0.8)])
def test_a_prox_minimises_its_objective(prox: Prox) -> None:
    """No perturbation of the result does better; and the value is convex along the way to it."""
    x, step = noise(3, 4), 0.6

    def objective(z: Tensor) -> Tensor:
        return prox.value(z) + ((z - x) ** 2).sum() / (2 * step)

    found = prox(x, step)
    best = objective(found)
    for seed in range(200):
        change = 10.0 ** -(seed % 5) * noise(3, 4, seed=seed + 1)
        assert objective(found + change) >= best - 1e-12
    tree = prox({"a": x, "b": [x]}, step)
    assert torch.equal(tree["b"][0], found)
    assert float(prox.value({"a": found, "b": [found]})) == pytest.approx(2 * float(prox.value(found)))


def test_group_l1_removes_whole_groups_and_keeps_zero() -> None:
    x = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]], dtype=DOUBLE)
    expected = torch.tensor([[2.4, 3.2], [0.0, 0.0], [0.0, 0.0]], dtype=DOUBLE)
    torch.testing.assert_close(GroupL1(1.0)(x, 1.0), expected)
    torch.testing.assert_close(GroupL1(1.0)(torch.tensor([2.0, -0.5]), 1.0), torch.tensor([1.0, 0.0]))


def test_layouts_round_trip() -> None:
    tree = {"a": noise(2, 3), "b": (noise(2), [noise(2, 1, 2)])}
    for problems, size in ((None, 12), (2, 6)):
        layout = Layout.of(tree, "x", problems)
        flat = layout.ravel(tree)
        assert flat.shape == ((size,) if problems is None else (2, size))
        back = layout.unravel(flat)
        assert torch.equal(back["b"][1][0], tree["b"][1][0])  # type: ignore[index]
        assert torch.equal(back["a"], tree["a"])  # type: ignore[arg-type]
