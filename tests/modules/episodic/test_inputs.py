"""Inputs and outputs of networks of users: right, or one line, in training and through adapt."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn import MAML, Batch, DivergenceError, Episode, Pooled, ShapeError
from tests.networks import TinyConv

CLASSES = torch.arange(3).repeat(2).repeat(2, 1)
Outputs = namedtuple("Outputs", "logits auxiliary")


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(2, 6, *shape, generator=torch.Generator().manual_seed(seed))


class Net(nn.Module):
    """A linear classifier whose forward pass is given."""

    def __init__(self, forward: Callable[[nn.Module, Tensor], Any], inputs: int = 8, outputs: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(inputs, outputs)
        self._forward = forward

    def forward(self, x: Tensor) -> Any:
        return self._forward(self, x)


def plain(net: Any, x: Tensor) -> Tensor:
    return net.head(x)


def plain_outputs(net: nn.Module, support: Batch, query: Tensor) -> Tensor:
    """The outputs of the queries after one step of size 0.1 on the cross-entropy."""
    values = dict(net.named_parameters())
    loss = F.cross_entropy(net(support.x), support.y.long())
    grads = torch.autograd.grad(loss, list(values.values()))
    moved = {name: value - 0.1 * grad for (name, value), grad in zip(values.items(), grads, strict=True)}
    return torch.func.functional_call(net, moved, (query,)).detach()


class Embedded(nn.Module):
    """Tokens ``[n]`` or ``[n, t]``."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head = nn.Embedding(10, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        found = self.embedding(x)
        return self.head(found if x.ndim == 1 else found.mean(1))


RIGHT: dict[str, tuple[nn.Module, Tensor, Tensor]] = {
    "numbers": (Net(lambda net, x: net.head(x.unsqueeze(-1)), inputs=1), noise(), CLASSES),
    "token": (Embedded(), torch.randint(0, 10, (2, 6), generator=torch.Generator().manual_seed(0)), CLASSES),
    "tokens": (Embedded(), torch.randint(0, 10, (2, 6, 5), generator=torch.Generator().manual_seed(0)), CLASSES),
    "double_inputs": (Net(plain), noise(8).double(), CLASSES),
    "half_inputs": (Net(plain), noise(8).bfloat16(), CLASSES),
    "double_network": (Net(plain).double(), noise(8), CLASSES.int()),
    "auxiliary_taken_apart": (Net(lambda net, x: Outputs(net.head(x), x).logits), noise(8), CLASSES.byte()),
}


@pytest.mark.parametrize("name", RIGHT)
def test_inputs_of_any_type_are_brought_to_the_networks(name: str) -> None:
    net, x, y = RIGHT[name]
    module = MAML(net, inner_steps=1, inner_lr=0.1)
    dtype = next(net.parameters()).dtype
    cast = x.to(dtype) if x.is_floating_point() else x
    losses, shares = [], []
    for task in range(2):
        expected = plain_outputs(net, Batch(cast[task], y[task]), cast[task].flip(0))
        found = module.adapt(Batch(x[task], y[task]))(x[task].flip(0))
        torch.testing.assert_close(found, expected)
        losses.append(F.cross_entropy(expected, y[task].flip(0).long()))
        shares.append((expected.argmax(-1) == y[task].flip(0)).float().mean())
    tasks = Episode(Batch(x, y), Batch(x.flip(1), y.flip(1)))
    loss = module.training_step(tasks, 0)
    loss.backward()
    torch.testing.assert_close(loss.detach(), torch.stack(losses).mean())
    torch.testing.assert_close(module.validation_step(tasks, 0)["acc"].float(), torch.stack(shares).mean())


WRONG: dict[str, tuple[nn.Module, Any, Any, str]] = {
    "tuple": (Net(lambda net, x: (net.head(x), x)), noise(8), CLASSES, "returns a tuple, .*one tensor"),
    "namedtuple": (Net(lambda net, x: Outputs(net.head(x), x)), noise(8), CLASSES, "returns a Outputs"),
    "mapping": (Net(lambda net, x: OrderedDict(out=net.head(x))), noise(8), CLASSES, "returns a OrderedDict"),
    "nothing": (Net(lambda net, x: None), noise(8), CLASSES, "returns a NoneType"),
    "whole_numbers": (Net(lambda net, x: net.head(x).argmax(-1)), noise(8), CLASSES, "outputs of int64"),
    "no_examples_kept": (Net(lambda net, x: net.head(x).mean(0)), noise(8), CLASSES, r"outputs of shape \[3\].*first axis"),
    "places": (nn.Conv2d(1, 3, 3), noise(1, 8, 8), CLASSES, r"outputs of shape \[6, 3, 6, 6\] for targets of shape \[6\]"),
    "bytes": (TinyConv(), torch.zeros(2, 6, 1, 8, 8).byte(), CLASSES, r"x\.float\(\) / 255"),
    "integers": (Net(plain), torch.zeros(2, 6, 8).long(), CLASSES, r"for others, x\.float\(\)"),
    "no_tokens": (Embedded(), noise(5), CLASSES, r"an embedding takes integers: x\.long\(\)"),
    "tokens_outside": (Embedded(), torch.full((2, 6), 10), CLASSES, "index out of range"),
    "complex": (Net(plain), noise(8) + 0j, CLASSES, "view_as_real"),
    "channels": (TinyConv(), noise(3, 8, 8), CLASSES, "to have 1 channels, but got 3"),
    "size": (TinyConv(), noise(1, 12, 12), CLASSES, "cannot take x of shape .*build it for these inputs"),
    "one_hot": (Net(plain), noise(8), F.one_hot(CLASSES), r"needs targets of shape \[examples, \.\.\.\]"),
    "column": (Net(plain), noise(8), CLASSES.unsqueeze(-1), r"targets of shape \[6, 1\]"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_one_line(name: str) -> None:
    net, x, y, message = WRONG[name]
    module = MAML(net, inner_steps=1, inner_lr=0.1)
    with pytest.raises(ShapeError, match=message) as caught:
        module.training_step(Episode(Batch(x, y), Batch(x, y)), 0)
    assert "\n" not in str(caught.value)
    with pytest.raises(ShapeError, match=message):
        module.adapt(Batch(x[0], y[0]))


def test_auxiliary_outputs_in_training_alone_are_told_too() -> None:
    module = MAML(Net(lambda net, x: Outputs(net.head(x), x) if net.training else net.head(x)), inner_steps=1)
    tasks = Episode(Batch(noise(8), CLASSES), Batch(noise(8), CLASSES))
    with pytest.raises(ShapeError, match="returns a Outputs.*one tensor"):
        module.training_step(tasks, 0)
    assert module.adapt(Batch(noise(8)[0], CLASSES[0]))(noise(8)[0]).shape == (6, 3)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (Batch({"a": noise(8)}, CLASSES), "x is a dict.*join its fields"),  # type: ignore[arg-type]
        (Batch(noise(8).numpy(), CLASSES), "x is a ndarray.*torch.as_tensor"),  # type: ignore[arg-type]
        (Batch(noise(8), ["cat", "dog"]), "y is a list.*number the strings"),  # type: ignore[arg-type]
        (Batch(noise(8)[:, :0], CLASSES[:, :0]), "there must be a task and an example"),
        (Batch(noise(8), noise(3).softmax(-1)), "both must be class labels, or neither"),
        (Batch(noise(5), CLASSES), "query: the backbone Net cannot take x"),
    ],
)
def test_query_sets_that_do_not_fit(part: Batch, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        MAML(Net(plain), inner_steps=1).training_step(Episode(Batch(noise(8), CLASSES), part), 0)


def test_a_forgotten_task_axis_is_never_taken_for_tasks_of_one_number() -> None:
    part = Batch(torch.randn(5, 1), torch.randn(5, 1))
    with pytest.raises(ShapeError, match="a task axis by unsqueeze"):
        MAML(nn.Linear(1, 1), loss="mse").training_step(Episode(part, part), 0)


@pytest.mark.parametrize("algorithm", [MAML, Pooled])
@pytest.mark.parametrize("part", ["support", "query"])
def test_targets_that_have_an_axis_more_in_one_part(algorithm: Any, part: str) -> None:
    whole = Batch(noise(1), noise(1))
    episode = Episode(whole, whole)._replace(**{part: Batch(whole.x, whole.y[..., 0])})
    with pytest.raises(ShapeError, match="y has shape .* both must have as many dimensions"):
        algorithm(nn.Linear(1, 1), loss="mse").meta_gradient(episode)


@pytest.mark.parametrize(
    ("support", "message"),
    [
        (noise(8)[0], "it must be a pair Batch"),
        (Batch(noise(8)[0, :0], CLASSES[0, :0]), "at least 1"),
        (Batch(noise(8)[0].masked_fill(torch.eye(6, 8).bool(), torch.nan), CLASSES[0]), "x of example 0 has an entry"),
        (Batch(noise(8)[0], ["cat"]), "y is list"),
        (Batch(noise(8)[0], CLASSES[0] + 1), "label 3 is outside"),
    ],
)
def test_support_sets_that_do_not_fit(support: Any, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        MAML(Net(plain), inner_steps=1).adapt(support)


@pytest.mark.parametrize(
    ("queries", "message"),
    [
        (noise(8)[0, :0], "there must be at least one"),
        (noise(5)[0], "cannot be taken .*must be like the support set"),
        (noise(8)[0].long(), "cannot be taken"),
        (noise(8)[0].masked_fill(torch.eye(6, 8).bool(), torch.inf), "query 0 has an entry that is not finite"),
        ([1.0], "are a list"),
    ],
)
def test_queries_that_do_not_fit(queries: Any, message: str) -> None:
    adapted = MAML(Net(plain), inner_steps=1).adapt(Batch(noise(8)[0], CLASSES[0]))
    with pytest.raises(ShapeError, match=message) as caught:
        adapted(queries)
    assert "\n" not in str(caught.value)


def test_data_that_are_not_finite_are_named_in_every_stage() -> None:
    bad = noise(8).index_fill(0, torch.tensor([1]), torch.nan)
    module = MAML(Net(plain), inner_steps=1)
    for step in (module.training_step, module.validation_step):
        with pytest.raises(DivergenceError, match=r"query\.x of task 1 of the batch has an entry that is not finite"):
            step(Episode(Batch(noise(8), CLASSES), Batch(bad, CLASSES)), 0)


def test_probabilities_are_of_classes_alone() -> None:
    adapted = MAML(Net(plain), inner_steps=1, loss="mse").adapt(Batch(noise(8)[0], noise(3)[0]))
    with pytest.raises(ValueError, match="no class labels; use adapted"):
        adapted.probabilities(noise(8)[0])
