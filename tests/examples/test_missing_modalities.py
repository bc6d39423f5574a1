"""The share of a modality, against scikit-learn's logistic regression: with these losses each half is a regression of its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from metalearn.bilevel import AID, CG, Nesterov, hypergradient
from tests.examples.scripts import load_example

pytestmark = pytest.mark.documents

example = load_example("missing_modalities")
SEEDS = 2


def draw(way: str) -> tuple:
    trains, evaluated = zip(*(example.draw_data(seed) for seed in range(SEEDS)), strict=True)
    return example.stack(trains), example.stack([parts[way][0] for parts in evaluated])


def with_one(inputs: np.ndarray) -> np.ndarray:
    return np.concatenate([inputs, np.ones((len(inputs), 1))], 1)


def train_halves(train: tuple, share: float, seed: int) -> list[LogisticRegression]:
    """The bias is a feature, so it is penalised, too."""
    *halves, there, labels = (part[seed].numpy() for part in train)
    models = []
    for place, (half, weight) in enumerate(zip(halves, (1 - share, share), strict=True)):
        has = there[:, place] > 0
        factor = weight / (0.01 * has.sum())
        model = LogisticRegression(C=factor, fit_intercept=False, tol=1e-12, solver="newton-cg", max_iter=500)
        models.append(model.fit(with_one(half[has]), labels[has]))
        assert len(model.classes_) == 10
    return models


def measure(train: tuple, val: tuple, share: float, seed: int) -> float:
    """The validation loss of the sum of both."""
    *halves, there, labels = (part[seed].numpy() for part in val)
    logits = 0.0
    for place, (half, model) in enumerate(zip(halves, train_halves(train, share, seed), strict=True)):
        logits = logits + there[:, place : place + 1] * (with_one(half) @ model.coef_.T)
    logs = torch.from_numpy(logits).log_softmax(1)
    return float(-logs[torch.arange(len(labels)), torch.from_numpy(labels)].mean())


def test_halves_are_missing_at_their_rates_and_never_both() -> None:
    images, labels = torch.rand(20_000, 8, 8).double(), torch.zeros(20_000).long()
    upper, lower, there, _ = example.hide(images, labels, (0.2, 0.8), torch.Generator().manual_seed(0))
    torch.testing.assert_close(torch.cat([upper, lower], 1), images.flatten(1))
    assert there.any(1).all()
    both = 0.2 * 0.8  # where both would be missing, one of them is put back
    np.testing.assert_allclose(1 - there.mean(0), [0.2 - both / 2, 0.8 - both / 2], atol=0.01)


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_the_hypergradient(share: float) -> None:
    train, val = draw(example.BALANCED)
    x = torch.full((SEEDS,), share).double().logit()
    estimator = AID(inner=Nesterov(step_size=0.3, momentum=0.9, tolerance=1e-9), solver=CG(tolerance=1e-10))
    value = hypergradient(example.make_problem(train, val), x, estimator=estimator).value
    for seed in range(SEEDS):
        near = [measure(train, val, float((x[seed] + change).sigmoid()), seed) for change in (1e-3, -1e-3)]
        assert value[seed].item() == pytest.approx((near[0] - near[1]) / 2e-3, abs=2e-6)


def test_the_hypergradient_leads_to_the_optimum_of_a_grid() -> None:
    train, val = draw(example.AS_TRAINED)
    shares = example.follow_hypergradient(train, val, steps=20).sigmoid()
    grid = np.linspace(0.1, 0.4, 7)
    for seed in range(SEEDS):
        losses = [measure(train, val, share, seed) for share in grid]
        assert measure(train, val, shares[seed].item(), seed) < min(losses) + 1e-4
        assert abs(shares[seed].item() - grid[np.argmin(losses)]) < 0.06


def test_the_rule_makes_the_training_losses_alike() -> None:
    train, _ = draw(example.AS_TRAINED)
    shares = example.follow_rule(train, steps=25, rate=0.2).sigmoid()
    for seed in range(SEEDS):
        *halves, there, labels = (part[seed].numpy() for part in train)
        losses = []
        for place, model in enumerate(train_halves(train, shares[seed].item(), seed)):
            has = there[:, place] > 0
            logs = model.predict_log_proba(with_one(halves[place][has]))
            losses.append(-logs[np.arange(has.sum()), labels[has]].mean())
        assert losses[0] == pytest.approx(losses[1], rel=0.02)
