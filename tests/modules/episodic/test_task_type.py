"""The kind of task: inferred from targets and loss and said once, or said by the user and held against both."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn import ANIL, MAML, ConfigError, ShapeError
from metalearn.inner import GaussianNLL, Quantiles
from tests.modules.episodic.test_losses import CLASSES, MULTI, episode, gaussian, network, noise


def own(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(outputs, targets.to(outputs.dtype))


# the outputs, the loss, the targets, the kind of task, whether the user must say it for its metrics
INFERRED: dict[str, tuple[int, Any, Tensor, str, bool]] = {
    "labels": (3, "cross_entropy", CLASSES, "classification", False),
    "labels_of_an_own_loss": (3, lambda o, y: F.cross_entropy(o, y), CLASSES, "classification", False),
    "soft_labels": (3, "cross_entropy", noise(3, seed=4).softmax(-1), "classification", False),
    "values": (2, "mse", noise(2), "regression", False),
    "values_and_torchs_loss": (2, nn.SmoothL1Loss(), noise(2), "regression", False),
    "values_of_an_own_loss": (2, lambda o, y: (o - y).abs().mean(), noise(2), "regression", True),
    "whole_values": (1, "l1", CLASSES.unsqueeze(-1), "regression", False),
    "band": (2, GaussianNLL(), noise(), "regression", False),
    "several_labels": (4, "binary_cross_entropy", MULTI, "multilabel", False),
    "several_labels_and_torchs_loss": (4, nn.BCEWithLogitsLoss(), MULTI, "multilabel", False),
    "truths_of_an_own_loss": (4, own, MULTI.bool(), "multilabel", True),
}


@pytest.mark.parametrize("name", INFERRED)
def test_what_is_inferred_is_said_once(name: str, caplog: pytest.LogCaptureFixture) -> None:
    outputs, loss, y, task, asks = INFERRED[name]
    module, tasks = MAML(network(outputs).double(), inner_steps=1, inner_lr=0.1, loss=loss), episode(y)
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            module.validation_step(tasks, 0)
            module.training_step(tasks, 0)
    (line,) = [record.getMessage() for record in caplog.records if "task type" in record.getMessage()]
    assert line.startswith(f"MAML: task type '{task}', by targets [examples")
    assert (f"say task='{task}' for its metrics" in line) == asks


@pytest.mark.parametrize("name", INFERRED)
def test_what_the_user_says_alike_changes_nothing(name: str, caplog: pytest.LogCaptureFixture) -> None:
    outputs, loss, y, task, _ = INFERRED[name]
    net, tasks = network(outputs).double(), episode(y)
    values = []
    with caplog.at_level(logging.INFO):
        for asked in (None, task):
            caplog.clear()
            module = MAML(net, inner_steps=1, inner_lr=0.1, loss=loss, task=asked)  # type: ignore[arg-type]
            values.append((module.training_step(tasks, 0).item(), module.classifies))
    assert values[0] == values[1]
    assert "task type" not in caplog.text


def test_counts_are_values_where_the_user_says_so() -> None:
    """Whole numbers beside two outputs would be taken for class labels."""
    net, tasks = network(2).double(), episode(3 * CLASSES)
    loss = lambda outputs, targets: gaussian(outputs, targets)  # noqa: E731
    with pytest.raises(ShapeError, match="label 6 is outside"):
        MAML(net, inner_steps=1, inner_lr=0.1, loss=loss).training_step(tasks, 0)
    module = MAML(net, inner_steps=1, inner_lr=0.1, loss=loss, task="regression")
    assert module.training_step(tasks, 0).isfinite()
    assert not module.classifies


AGAINST_THE_LOSS: dict[str, tuple[Any, Any, str]] = {
    "default_loss": ("regression", "cross_entropy", "the loss 'cross_entropy' is for classification; use loss='mse', or task="),
    "values": ("classification", "mse", "the loss 'mse' is for regression; use loss='cross_entropy', or task='regression'"),
    "band": ("classification", Quantiles(), "the loss Quantiles is for regression"),
    "torchs": ("multilabel", nn.CrossEntropyLoss(), "use loss='binary_cross_entropy', or task='classification'"),
    "function": ("multilabel", F.l1_loss, "the loss l1_loss is for regression"),
    "labels": ("classification", nn.BCEWithLogitsLoss(), "the loss BCEWithLogitsLoss is for multilabel"),
    "typo": ("regresion", "mse", "must be one of classification, multilabel, regression; use 'regression'"),
    "flag": (True, "mse", "must be one of classification, multilabel, regression"),
}  # fmt: skip


@pytest.mark.parametrize("name", AGAINST_THE_LOSS)
def test_a_task_that_contradicts_the_loss_is_one_line(name: str) -> None:
    task, loss, message = AGAINST_THE_LOSS[name]
    with pytest.raises(ConfigError, match=message) as caught:
        ANIL(network(3), head="2", loss=loss, task=task)
    assert str(caught.value).startswith("task is ")
    assert "\n" not in str(caught.value)


AGAINST_THE_TARGETS: dict[str, tuple[int, Any, Any, Tensor, str]] = {
    "values": (3, "classification", own, noise(3), "class labels are whole numbers .*task='regression'"),
    "labels": (4, "multilabel", own, CLASSES, r"each needs a 0 or 1 for every output, \[6, 4\]"),
    "labels_named": (
        3,
        "multilabel",
        "binary_cross_entropy",
        CLASSES,
        r"each needs a 0 or 1 for every output, \[6, 3\]",
    ),
    "shares": (4, "multilabel", own, noise(4).sigmoid(), "with values other than 0 and 1; use task='regression'"),
}


@pytest.mark.parametrize("name", AGAINST_THE_TARGETS)
def test_a_task_that_contradicts_the_targets_is_one_line(name: str) -> None:
    outputs, task, loss, y, message = AGAINST_THE_TARGETS[name]
    module = MAML(network(outputs).double(), inner_steps=1, inner_lr=0.1, loss=loss, task=task)
    with pytest.raises(ShapeError, match=f"support: task is '{task}', but the targets are .*{message}") as caught:
        module.training_step(episode(y), 0)
    assert "\n" not in str(caught.value)


def test_pixels_between_0_and_1_are_a_regression_by_the_cross_entropy() -> None:
    module = MAML(network(4).double(), inner_steps=1, inner_lr=0.1, loss="binary_cross_entropy", task="regression")
    assert module.training_step(episode(torch.sigmoid(noise(4))), 0).isfinite()
