"""What a user gets wrong is one line: the value, the constraint, the remedy."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from metalearn import ANIL, MAML, Batch, ConfigError, Episode, ShapeError
from tests.networks import TinyConv, noise_episode


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"inner_steps": 0}, "inner_steps is 0, .*at least 1"),
        ({"inner_steps": -1}, "inner_steps is -1, .*at least 1"),
        ({"eval_inner_steps": 0}, "eval_inner_steps is 0"),
        ({"inner_lr": 0.0}, "inner_lr is 0.0, .*above 0"),
        ({"inner_lr": -0.1}, "inner_lr is -0.1, .*above 0"),
        ({"inner_lr": float("nan")}, "inner_lr is nan, .*finite"),
        ({"inner_lr": [0.1, 0.1]}, "lists 2 step sizes, but there are 5"),
        ({"inner_lr": [0.1, 0.1, 0.1, 0.1, -1.0]}, r"inner_lr\[4\] is -1.0"),
        ({"inner_lr": "fast"}, "inner_lr is 'fast'"),
        ({"inner_lr": "learn", "initial_inner_lr": 0.0}, "initial_inner_lr is 0.0"),
        ({"loss": "hinge"}, "loss is 'hinge', .*cross_entropy, mse"),
        ({"norm": "batch"}, "norm is 'batch', .*transductive"),
        ({"execution": "parallel"}, "execution is 'parallel'"),
        ({"memory": "none"}, "memory is 'none'"),
        ({"inner_optimizer": "lion"}, "inner_optimizer is 'lion'"),
        ({"backbone": 3}, "backbone is a int"),
        ({"backbone": nn.Flatten()}, "no trainable parameters"),
        ({"backbone": torch.compile(nn.Linear(2, 2))}, "backbone is compiled"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        MAML(**{"backbone": TinyConv(), **arguments})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("head", "message"),
    [("fc", "no submodule of that name .it has: body, head"), ("body.2", "no trainable parameters")],
)
def test_bad_heads(head: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ANIL(TinyConv(), head=head)


GOOD = noise_episode(2, dtype=torch.float32)


@pytest.mark.parametrize(
    ("episode", "message"),
    [
        (Episode(Batch(GOOD.support.x, GOOD.support.y + 1), GOOD.query), "support: label 3 is outside 0..2"),
        (Episode(GOOD.support, Batch(GOOD.query.x, GOOD.query.y - 1)), "query: label -1 is outside 0..2"),
        (Episode(*(Batch(x[0], y[0]) for x, y in GOOD)), "add the task axis"),
        (Episode(GOOD.support, Batch(GOOD.query.x[:1], GOOD.query.y[:1])), "support holds 2 tasks and query 1"),
        (Episode(Batch(GOOD.support.x[:, :4], GOOD.support.y), GOOD.query), "that agree"),
        (Episode(Batch(GOOD.support.x[..., :6], GOOD.support.y), GOOD.query), "cannot take x of shape"),
        ([GOOD.support.x, GOOD.support.y], "needs an Episode"),
    ],
)
def test_bad_episodes(episode: Any, message: str) -> None:
    with pytest.raises(ShapeError, match=message) as caught:
        MAML(TinyConv(), inner_steps=1).training_step(episode, 0)
    assert "\n" not in str(caught.value)


def test_regression_targets_must_have_the_shape_of_the_outputs() -> None:
    """A mean squared error would broadcast them silently."""
    x = torch.randn(1, 5, 2)
    episode = Episode(Batch(x, torch.randn(1, 5, 3)), Batch(x, torch.randn(1, 5, 3)))
    with pytest.raises(ShapeError, match=r"outputs of shape \[5, 1\] for targets of shape \[5, 3\]"):
        MAML(nn.Linear(2, 1), loss="mse").training_step(episode, 0)


def test_adapt_checks_its_support_set() -> None:
    module = MAML(TinyConv())
    with pytest.raises(ShapeError, match="same number of examples"):
        module.adapt(Batch(GOOD.support.x[0], GOOD.support.y[0, :2]))
