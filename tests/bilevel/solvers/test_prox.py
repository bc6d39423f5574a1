"""Proximal operators entry by entry and group by group, in loops of plain Python."""

from __future__ import annotations

import math

import pytest
import torch

from metalearn.bilevel import L1, Box, GroupL1
from metalearn.errors import ConfigError
from tests.bilevel.made import DOUBLE, noise


@pytest.mark.parametrize(("weight", "step"), [(0.4, 0.6), (2.5, 0.3), (0.7, 3.0), (0.0, 1.0)])
def test_l1_moves_each_entry_towards_zero(weight: float, step: float) -> None:
    x = torch.cat([3 * noise(8), torch.tensor([0.0, weight * step, -weight * step, 2 * weight * step], dtype=DOUBLE)])
    expected = [math.copysign(max(abs(value) - weight * step, 0.0), value) for value in x.tolist()]
    torch.testing.assert_close(L1(weight)(x, step), torch.tensor(expected, dtype=DOUBLE), rtol=1e-12, atol=1e-12)
    assert float(L1(weight).value(x)) == pytest.approx(weight * sum(abs(value) for value in x.tolist()))


@pytest.mark.parametrize("dim", [0, 1, 2, -1, -2, -3])
@pytest.mark.parametrize(("weight", "step"), [(0.4, 3.0), (2.5, 0.9), (0.0, 2.0)])
def test_group_l1_shrinks_each_slice_as_a_whole(dim: int, weight: float, step: float) -> None:
    x = noise(2, 3, 4)
    expected, value = torch.empty_like(x), 0.0
    for index in range(x.shape[dim]):
        part = x.select(dim, index)
        length = sum(entry**2 for entry in part.flatten().tolist()) ** 0.5
        expected.select(dim, index).copy_(part * (max(length - weight * step, 0.0) / length))
        value += weight * length
    torch.testing.assert_close(GroupL1(weight, dim)(x, step), expected, rtol=1e-12, atol=1e-12)
    assert float(GroupL1(weight, dim).value(x)) == pytest.approx(value)


def test_a_box_cuts_at_its_ends_which_belong_to_it() -> None:
    box = Box(-0.5, 0.8)
    x = torch.tensor([-2.0, -0.5, 0.1, 0.8, 0.9], dtype=DOUBLE)
    assert box(x, 7.0).tolist() == [-0.5, -0.5, 0.1, 0.8, 0.8]
    assert float(box.value(x[1:4])) == 0.0
    assert float(box.value(x[1:])) == float(box.value(x[:4])) == math.inf
    assert Box(0.3, 0.3)(x, 1.0).tolist() == [0.3] * 5
    assert box.value(x[1:4].float()).dtype == torch.float32


def test_trees_are_done_leaf_by_leaf_and_their_values_added() -> None:
    tree = {"a": noise(3), "b": [noise(2, 2, seed=1)]}
    found = L1(0.3)(tree, 0.5)
    assert torch.equal(found["a"], L1(0.3)(tree["a"], 0.5))
    assert torch.equal(found["b"][0], L1(0.3)(tree["b"][0], 0.5))
    assert float(L1(0.3).value(tree)) == pytest.approx(0.3 * float(tree["a"].abs().sum() + tree["b"][0].abs().sum()))


def test_the_default_axis_is_the_first_and_groups_on_the_threshold_vanish() -> None:
    x = torch.tensor([[3.0, 4.0], [0.6, 0.8]], dtype=DOUBLE)
    assert GroupL1(1.0)(x, 1.0)[1].tolist() == [0.0, 0.0]
    torch.testing.assert_close(GroupL1(1.0)(x, 1.0)[0], torch.tensor([2.4, 3.2], dtype=DOUBLE))
    for make in (
        lambda: L1(-1e-9),
        lambda: GroupL1(-1e-9),
        lambda: Box(1.0, 1.0 - 1e-9),
        lambda: GroupL1(1.0, dim=0.5),
    ):  # type: ignore[arg-type]
        with pytest.raises(ConfigError):
            make()
