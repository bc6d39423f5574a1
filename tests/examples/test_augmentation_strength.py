"""Strengths of augmentation, against scikit-learn's logistic regression at every strength."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from metalearn.bilevel import AID, CG, Nesterov, hypergradient
from tests.examples.scripts import load_example

pytestmark = pytest.mark.documents

example = load_example("augmentation_strength")


def train_classifier(train: tuple[Tensor, Tensor, Tensor], x: Tensor) -> LogisticRegression:
    """Train to convergence on images that are moved by these strengths; the bias is a feature, so it is penalised, too."""
    inputs, labels = example.augment(x, train)
    model = LogisticRegression(
        C=1 / (0.005 * len(labels)), fit_intercept=False, tol=1e-12, solver="newton-cg", max_iter=500
    )
    return model.fit(with_one(inputs), labels.numpy())


def with_one(inputs: Tensor) -> np.ndarray:
    return torch.cat([inputs, torch.ones(len(inputs), 1).double()], 1).numpy()


def measure(train: tuple[Tensor, Tensor, Tensor], val: tuple[Tensor, Tensor], x: Tensor) -> float:
    """The validation loss."""
    logs = train_classifier(train, x).predict_log_proba(with_one(val[0]))
    return float(-logs[np.arange(len(logs)), val[1].numpy()].mean())


def test_images_move_as_they_should() -> None:
    images = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    angles, shifts = (
        torch.tensor([90.0, 0.0, 0.0]).double(),
        torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, -0.5]]).double(),
    )
    turned, left, down = example.move(images, angles, shifts).view(3, 8, 8)
    assert min((turned - images[0].rot90(k)).abs().max() for k in (1, -1)) < 1e-12
    torch.testing.assert_close(left[:, :-1], images[1, :, 1:])
    torch.testing.assert_close(down[1:], (images[2, 1:] + images[2, :-1]) / 2)


def test_the_hypergradient() -> None:
    train, val, _ = example.draw_data(0, train=40, val=40, copies=2)
    problem = example.make_problem(train, val)
    estimator = AID(inner=Nesterov(step_size=0.15, momentum=0.95, tolerance=1e-10), solver=CG(tolerance=1e-10))
    x = torch.tensor([[math.log(17.0), math.log(0.6)]]).double()
    value = hypergradient(problem, x, estimator=estimator).value[0]
    for place, change in enumerate(1e-6 * torch.eye(2).double()):
        expected = (measure(train, val, x[0] + change) - measure(train, val, x[0] - change)) / 2e-6
        assert abs(value[place].item() - expected) < 1e-5


def test_the_learned_strengths_are_as_good_as_the_best_of_a_grid() -> None:
    data = example.draw_data(1, train=60, val=100, copies=2)
    starts = torch.tensor([[8.0, 0.3]]).double()
    learned = example.learn_strengths([data], starts, steps=30)[-1, 0, 0]
    grid = {(angle, shift): (angle, shift) for angle in (5.0, 15.0, 25.0, 40.0) for shift in (0.2, 0.5, 0.8, 1.2)}
    losses = {key: measure(*data[:2], torch.tensor(strengths).double().log()) for key, strengths in grid.items()}
    assert measure(*data[:2], learned.log()) < min(losses.values()) + 1e-3
    (loss,), (accuracy,) = example.judge(data, learned[None])
    model = train_classifier(data[0], learned.log())
    assert abs(loss.item() - measure(*data[:2], learned.log())) < 1e-3
    assert abs(accuracy.item() - model.score(with_one(data[2][0]), data[2][1].numpy())) < 0.01
