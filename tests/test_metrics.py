"""Means over tasks, their intervals, and what is gathered."""

from __future__ import annotations

import math

import pytest
import torch

from metalearn.metrics import EpisodeAccuracy, EpisodeMean, Interval, count_right, interval


def test_the_interval_is_that_of_the_sample() -> None:
    found = interval(torch.tensor([1.0, 2.0, 4.0, 5.0]))
    assert found.mean == 3.0
    assert found.ci95 == pytest.approx(1.96 * math.sqrt(10 / 3) / 2, rel=1e-12)
    assert found.tasks == 4


def test_one_task_has_no_interval_and_none_has_no_mean() -> None:
    one, none = interval(torch.tensor([0.5])), interval(torch.zeros(0))
    assert (one.mean, one.tasks, none.tasks) == (0.5, 1, 0)
    assert math.isnan(one.ci95)
    assert math.isnan(none.mean)


def test_the_order_of_tasks_does_not_matter() -> None:
    """To the last digit, where a plain sum depends on it."""
    values = torch.tensor([1e16, 1.0, -1e16, 1.0], dtype=torch.float64)
    assert interval(values).mean == interval(values.flip(0)).mean == 0.5


def test_tasks_are_gathered_in_the_order_of_their_numbers() -> None:
    metric = EpisodeMean()
    metric.update(torch.tensor([0.3, 0.1]), torch.tensor([3, 1]))
    metric.update(torch.tensor([0.2]), torch.tensor([2]))
    metric.compute()
    assert metric.gathered is not None
    assert metric.gathered[0].tolist() == [1, 2, 3]
    assert metric.gathered[1].tolist() == pytest.approx([0.1, 0.2, 0.3])


def test_a_rank_without_tasks_has_something_to_gather() -> None:
    metric = EpisodeAccuracy()
    metric.update(torch.tensor([[[2.0, 1.0], [0.0, 1.0]]]), torch.tensor([[0, 0]]), torch.tensor([0]))
    metric.reset()
    assert [len(state) for state in (*metric.tasks, *metric.values)] == [0, 0]
    metric.update(torch.zeros(0, 2, 2), torch.zeros(0, 2, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
    assert metric.compute().tasks == 0


def test_values_are_kept_in_float64() -> None:
    """An accuracy of 1/3 in float32 would show in the eighth digit of the mean."""
    metric = EpisodeAccuracy()
    metric.update(torch.eye(3)[None], torch.tensor([[0, 0, 0]]), torch.tensor([7]))
    assert metric.compute().mean == 1 / 3


def test_an_interval_is_printed_in_percent() -> None:
    assert str(Interval(0.91284, 0.01056, 600)) == "91.28 % ± 1.06 (600 tasks)"


def test_labels_of_minus_100_are_left_out_unless_others_are_named() -> None:
    logits = torch.eye(3)[None].repeat(2, 1, 1)  # right for 0, 1, 2
    targets = torch.tensor([[0, 1, -100], [0, 2, -100]])
    metric = EpisodeAccuracy()
    metric.update(logits, targets, torch.tensor([0, 1]))
    assert metric.compute().mean == pytest.approx((1.0 + 0.5) / 2)
    torch.testing.assert_close(count_right(logits, targets), torch.tensor([1.0, 0.5], dtype=torch.float64))
