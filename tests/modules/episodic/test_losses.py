"""Losses of users over targets of any kind, against a plain loop of autograd; what cannot be is one line."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from metalearn import ANIL, MAML, Batch, BilevelFewShot, ConfigError, DivergenceError, Episode, ShapeError

TASKS, EXAMPLES = 3, 6
CLASSES = torch.arange(3).repeat(2).repeat(TASKS, 1)
IGNORED = CLASSES.masked_fill(torch.tensor([[0, 0, 1, 0, 0, 1]] * TASKS).bool(), -100)
WEIGHTS = torch.tensor([1.0, 2.0, 3.0])


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(TASKS, EXAMPLES, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def episode(y: Tensor) -> Episode:
    return Episode(Batch(noise(8), y), Batch(noise(8, seed=1), y.flip(1)))


def network(outputs: int, *after: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, outputs), *after)


def quantiles(outputs: Tensor, targets: Tensor) -> Tensor:
    levels = torch.tensor([0.1, 0.5, 0.9], dtype=outputs.dtype)
    error = targets.reshape(-1, 1) - outputs
    return torch.maximum(levels * error, (levels - 1) * error).mean()


def gaussian(outputs: Tensor, targets: Tensor) -> Tensor:
    return 0.5 * (outputs[:, 1] + (targets - outputs[:, 0]) ** 2 / outputs[:, 1].exp()).mean()


def masked(outputs: Tensor, targets: Tensor) -> Tensor:
    """The second half of a target says which of its values count: how many do is a matter of all examples."""
    values, mask = targets.chunk(2, -1)
    return ((outputs - values) ** 2 * mask).sum() / mask.sum()


def dice(outputs: Tensor, targets: Tensor) -> Tensor:
    chosen = outputs[:, 0].sigmoid()
    return 1 - 2 * (chosen * targets).sum() / (chosen.sum() + targets.sum())


PLACES = torch.randint(0, 3, (TASKS, EXAMPLES, 2, 2), generator=torch.Generator().manual_seed(2))
MULTI = (noise(4, seed=3) > 0).double()

# the network, the loss as given, the loss of the plain loop in float64, the targets, whether they are class labels
RIGHT: dict[str, tuple[nn.Module, Any, Callable[[Tensor, Tensor], Tensor], Tensor, bool]] = {
    "smoothing": (network(3), nn.CrossEntropyLoss(label_smoothing=0.1),
                  lambda o, y: F.cross_entropy(o, y, label_smoothing=0.1), CLASSES, True),
    "class_weights": (network(3), nn.CrossEntropyLoss(weight=WEIGHTS.double()),
                      lambda o, y: F.cross_entropy(o, y, WEIGHTS.double()), CLASSES, True),
    "partial": (network(3), functools.partial(F.cross_entropy, weight=WEIGHTS.double()),
                lambda o, y: F.cross_entropy(o, y, WEIGHTS.double()), CLASSES, True),
    "nll": (network(3, nn.LogSoftmax(1)), F.nll_loss, F.nll_loss, CLASSES, True),
    "int32": (network(3), "cross_entropy", F.cross_entropy, CLASSES.int(), True),
    "uint8": (network(3), F.cross_entropy, F.cross_entropy, CLASSES.byte(), True),
    "bool": (network(2), "cross_entropy", F.cross_entropy, CLASSES > 1, True),
    "ignored": (network(3), "cross_entropy", F.cross_entropy, IGNORED, True),
    "ignored_255": (network(3), nn.CrossEntropyLoss(ignore_index=255),
                    lambda o, y: F.cross_entropy(o, y, ignore_index=255), IGNORED.where(IGNORED >= 0, 255), True),
    "segmentation": (network(12, nn.Unflatten(1, (3, 2, 2))), "cross_entropy", F.cross_entropy, PLACES, True),
    "soft_labels": (network(3), "cross_entropy", F.cross_entropy, noise(3, seed=4).softmax(-1), False),
    "multi_label": (network(4), F.binary_cross_entropy_with_logits, F.binary_cross_entropy_with_logits, MULTI, False),
    "pos_weight": (network(4), nn.BCEWithLogitsLoss(pos_weight=torch.full((4,), 2.0, dtype=torch.float64)),
                   lambda o, y: F.binary_cross_entropy_with_logits(o, y, pos_weight=2.0 * torch.ones(4).double()), MULTI, False),
    "one_logit": (network(1), lambda o, y: F.binary_cross_entropy_with_logits(o[:, 0], y.double()),
                  lambda o, y: F.binary_cross_entropy_with_logits(o[:, 0], y.double()), CLASSES % 2, False),
    "huber": (network(2), F.huber_loss, F.huber_loss, noise(2, seed=5), False),
    "negative": (network(2), F.l1_loss, F.l1_loss, noise(2, seed=5) - 9.0, False),
    "float32_targets": (network(2), "mse", lambda o, y: ((o - y.double()) ** 2).mean(), noise(2, seed=5).float(), False),
    "images": (network(12, nn.Unflatten(1, (3, 2, 2))), "mse", lambda o, y: ((o - y) ** 2).mean(), noise(3, 2, 2), False),
    "no_axis": (network(1, nn.Flatten(0)), "mse", lambda o, y: ((o - y) ** 2).mean(), noise(seed=5), False),
    "sum": (network(2), nn.MSELoss(reduction="sum"), lambda o, y: ((o - y) ** 2).sum(), noise(2, seed=5), False),
    "quantiles": (network(3), quantiles, quantiles, noise(1, seed=5), False),
    "quantiles_flat": (network(3), quantiles, quantiles, noise(seed=5), False),
    "gaussian": (network(2), gaussian, gaussian, noise(seed=5), False),
    "masked": (network(4), masked, masked, torch.cat([noise(4, seed=5), MULTI], -1), False),
    "dice": (network(4, nn.Unflatten(1, (1, 2, 2))), dice, dice, MULTI.unflatten(-1, (2, 2)), False),
}  # fmt: skip


def plain_step(
    net: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], tasks: Episode
) -> tuple[Tensor, dict[str, Tensor]]:
    """The meta-loss of two inner steps and its gradient, by nothing but autograd."""
    total = torch.zeros((), dtype=torch.float64)
    for x, y, xq, yq in zip(*tasks.support, *tasks.query, strict=True):
        y, yq = (part if part.is_floating_point() else part.long() for part in (y, yq))
        weights = dict(net.named_parameters())
        for _ in range(2):
            grads = torch.autograd.grad(
                loss(functional_call(net, weights, (x,)), y), list(weights.values()), create_graph=True
            )
            weights = {name: value - 0.1 * grad for (name, value), grad in zip(weights.items(), grads, strict=True)}
        total = total + loss(functional_call(net, weights, (xq,)), yq) / TASKS
    names = dict(net.named_parameters())
    found = torch.autograd.grad(total, list(names.values()))
    return total.detach(), {f"backbone.{name}": grad for name, grad in zip(names, found, strict=True)}


@pytest.mark.parametrize("name", RIGHT)
def test_a_loss_is_taken_for_what_its_targets_are(name: str) -> None:
    net, loss, plain, y, classes = RIGHT[name]
    net.double()
    tasks = episode(y)
    module = MAML(net, inner_steps=2, inner_lr=0.1, loss=loss).double()
    value, expected = plain_step(net, plain, tasks)
    torch.testing.assert_close(module.training_step(tasks, 0).detach().double(), value, rtol=1e-9, atol=1e-12)
    for key, grad in module.meta_gradient(tasks).items():
        torch.testing.assert_close(grad, expected[key], rtol=1e-9, atol=1e-12, msg=key)
    assert module.classifies is classes
    scores = module.validation_step(tasks, 0)
    torch.testing.assert_close(scores["loss"], value, rtol=1e-9, atol=1e-12)
    assert ("acc" in scores) is classes


@pytest.mark.parametrize("name", ["ignored", "segmentation"])
def test_accuracy_is_of_what_the_loss_counts(name: str) -> None:
    """Places are counted alike, and ignored labels not at all."""
    net, loss, _, y, _ = RIGHT[name]
    tasks = episode(y)
    module = MAML(net.double(), inner_steps=2, inner_lr=0.1, loss=loss)
    shares = []
    for x, y, xq, yq in zip(*tasks.support, *tasks.query, strict=True):
        chosen = module.adapt(Batch(x, y))(xq).argmax(1)
        counted = [(a, b) for a, b in zip(chosen.flatten().tolist(), yq.flatten().tolist(), strict=True) if b != -100]
        shares.append(sum(a == b for a, b in counted) / len(counted))
    assert float(module.validation_step(tasks, 0)["acc"]) == pytest.approx(sum(shares) / TASKS)


class Unregistered:
    """A loss with a parameter that no module knows of."""

    def __init__(self) -> None:
        self.scale = nn.Parameter(torch.tensor(2.0))

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.mse_loss(self.scale * outputs, targets)


class Counting(nn.Module):
    """A loss that writes down how often it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        self.calls += 1
        return F.mse_loss(outputs, targets)


def squared(outputs: Tensor, targets: Tensor) -> Tensor:
    return ((outputs - targets) ** 2).mean()


WRONG: dict[str, tuple[nn.Module, Any, Tensor, type[Exception], str]] = {
    "column_against_row": (network(1), squared, noise(seed=5), ShapeError, r"compares every output with the targets of other"),
    "row_against_column": (network(1, nn.Flatten(0)), squared, noise(1, seed=5), ShapeError, r"outputs of shape \[6\] and tar"),
    "square": (network(6), squared, noise(seed=5), ShapeError, r"outputs of shape \[6, 6\] and targets of shape \[6\]"),
    "torchs_own": (network(1), F.mse_loss, noise(seed=5), ShapeError, "compares every output"),
    "named": (network(1), "mse", noise(seed=5), ShapeError, r"the loss 'mse' needs targets of shape \[6, 1\]"),
    "not_probabilities": (network(2), "cross_entropy", noise(2), ShapeError, "no class probabilities.*loss='mse'"),
    "float_labels": (network(3), "cross_entropy", CLASSES.double(), ShapeError, "of integer classes"),
    "ones_and_zeros": (network(4), F.binary_cross_entropy_with_logits, MULTI.long(), ShapeError, "change the targets to floats"),
    "label_outside": (network(2), F.cross_entropy, CLASSES, ShapeError, "label 2 is outside 0..1.*for regression.*floats"),
    "all_ignored": (network(3), "cross_entropy", torch.full_like(CLASSES, -100), ShapeError, "every label of task 0 is -100"),
    "no_reduction": (network(2), nn.MSELoss(reduction="none"), noise(2), ConfigError, r"shape \[6, 2\].*reduction='mean'"),
    "number": (network(2), lambda o, y: squared(o, y).item(), noise(2), ConfigError, "gives a float"),
    "no_gradient": (network(2), lambda o, y: squared(o.round(), y).detach(), noise(2), ConfigError, "no gradient by the outp"),
    "nan": (network(2), lambda o, y: squared(o, y) * float("nan"), noise(2), DivergenceError, "is nan for the finite outp"),
    "three_arguments": (network(2), nn.TripletMarginLoss(), noise(2), ShapeError, "missing 1 required positional.*outputs and"),
    "unregistered": (network(2), Unregistered(), noise(2), ConfigError, "trainable tensors of its own"),
    "counts_calls": (network(2), Counting(), noise(2), ConfigError, "writes its buffer calls"),
    "no_second_derivative": (network(3), nn.MultiMarginLoss(), CLASSES, ConfigError, "no second derivative.*first_order=True"),
    "compares_kinds": (network(3), squared, CLASSES.unsqueeze(-1).expand(-1, -1, 2), ShapeError, "cannot take outputs"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_one_line(name: str) -> None:
    net, loss, y, kind, message = WRONG[name]
    tasks = episode(y)
    module = MAML(net.double(), inner_steps=1, inner_lr=0.1, loss=loss)
    with pytest.raises(kind, match=message) as caught:
        module.training_step(tasks, 0)
    assert "\n" not in str(caught.value)
    with pytest.raises(kind, match=message):
        module.adapt(Batch(*(part[0] for part in tasks.support)))


def test_a_loss_without_second_derivatives_or_batching_rules_runs_in_first_order() -> None:
    net, loss = network(3).double(), nn.MultiMarginLoss()
    tasks = episode(CLASSES)
    module = MAML(net, inner_steps=1, inner_lr=0.1, loss=loss, first_order=True)
    expected = torch.zeros(())
    for x, y, xq, yq in zip(*tasks.support, *tasks.query, strict=True):
        weights = dict(net.named_parameters())
        grads = torch.autograd.grad(loss(net(x), y), list(weights.values()))
        moved = {name: value - 0.1 * grad for (name, value), grad in zip(weights.items(), grads, strict=True)}
        expected = expected + loss(functional_call(net, moved, (xq,)), yq) / TASKS
    assert module.training_step(tasks, 0).item() == pytest.approx(expected.item(), rel=1e-9)
    assert module.choice is not None
    assert module.choice.name == "sequential"


def test_chunks_need_a_mean_over_examples() -> None:
    for loss in (nn.MSELoss(reduction="sum"), lambda o, y: squared(o, y).sqrt()):
        with pytest.raises(ConfigError, match="support_chunk is 2, but the loss .* is no mean over examples"):
            MAML(network(2).double(), inner_steps=1, loss=loss, support_chunk=2).training_step(episode(noise(2)), 0)


def test_ignored_labels_are_refused_where_heads_are_fitted_to_one_hot_vectors() -> None:
    tasks = episode(IGNORED)
    for module in (
        ANIL(network(3).double(), head="2", head_solver="ridge"),
        BilevelFewShot(network(3).double(), head="2", head_loss="ridge"),
    ):
        with pytest.raises(ShapeError, match="a label is -100.*fitted to one-hot vectors"):
            module.training_step(tasks, 0)


def test_a_loss_in_float32_alone_is_named_as_the_reason() -> None:
    weights = torch.tensor([1.0, 2.0, 3.0])
    tasks = Episode(*(Batch(x.float(), y) for x, y in episode(CLASSES)))
    module = MAML(network(3), inner_steps=1, inner_lr=0.1, loss=lambda o, y: F.cross_entropy(o, y, weights))
    module.training_step(tasks, 0)
    assert module.choice is not None
    assert module.choice.reasons[0].startswith("the loss does not run in float64")
