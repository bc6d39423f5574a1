"""Linear layers of tasks with weights of their own, against torch's one task at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import vmap

from metalearn import MAML, Batch, Episode
from metalearn.inner import own_kernels
from metalearn.inner.execution import step_recorder
from metalearn.inner.kernels import fully_connected
from metalearn.inner.kernels.fully_connected import linear
from metalearn.inner.kernels.routing import KERNEL_ANSWERS, Routing
from tests.inner.kernels.test_kernels import check, tensor

WIDE, ROWS = (24, 20), (5,)


@pytest.mark.parametrize("rows", [(), (1,), ROWS, (2, 2), (2, 3, 4), (0,)], ids=str)
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("of_all", [None, "input", "weight"], ids=str)
def test_values_and_derivatives(rows: tuple[int, ...], biased: bool, of_all: str | None) -> None:
    """Few inputs and many, in any number of axes, and inputs or weights that all tasks share."""
    inputs = [tensor(*rows, WIDE[1], shared=of_all == "input"), tensor(*WIDE, shared=of_all == "weight")]
    inputs += [tensor(WIDE[0])] if biased else []
    check(linear, F.linear, inputs, [of_all == "input", of_all == "weight", False][: len(inputs)])


def test_the_gradient_lies_in_memory_as_the_weights_do() -> None:
    """Transposed, what is computed with both takes several times as long."""
    weight = tensor(*WIDE)
    for rows, contiguous in ((ROWS, True), ((100,), False)):
        y = vmap(linear)(tensor(*rows, WIDE[1]), weight)
        (gradient,) = torch.autograd.grad(y.square().sum(), weight)
        assert gradient.is_contiguous() is contiguous


@pytest.mark.parametrize("wrong", [(5, 19), (19,), (1, 2, 3)], ids=str)
def test_inputs_that_do_not_fit_get_torchs_own_words(wrong: tuple[int, ...]) -> None:
    with pytest.raises(RuntimeError) as expected:
        vmap(F.linear)(tensor(*wrong), tensor(*WIDE))
    with pytest.raises(RuntimeError) as found:
        vmap(linear)(tensor(*wrong), tensor(*WIDE))
    assert str(found.value) == str(expected.value)


def test_calls_by_name_and_under_autocast() -> None:
    x, weight = tensor(*ROWS, WIDE[1]).float(), tensor(*WIDE).float()

    def call(x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(input=x, bias=None, weight=weight)

    with own_kernels("linear"), Routing(KERNEL_ANSWERS):
        torch.testing.assert_close(vmap(call)(x, weight), torch.bmm(x, weight.mT))
        with torch.autocast("cpu", torch.bfloat16):
            y = vmap(F.linear)(x, weight)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), torch.bmm(x, weight.mT), rtol=0.05, atol=0.1)


def loss_of(network: nn.Module, weights: dict[str, Tensor], batch: Batch) -> Tensor:
    return F.cross_entropy(torch.func.functional_call(network, weights, batch.x), batch.y)


@pytest.mark.parametrize("recorded", [False, "steps"])
@pytest.mark.parametrize("first_order", [False, True])
def test_meta_gradient_of_a_wide_network(recorded: bool, first_order: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a plain loop, and with the layers that are meant to be meant."""

    def count(*arguments: Tensor) -> bool:
        answers.append(is_wide(*arguments))
        return answers[-1]

    def replay(*arguments: Any) -> Any:
        replayed.append(len(arguments))
        return replay_steps(*arguments)

    is_wide, answers = fully_connected.is_wide, list[bool]()
    replay_steps, replayed = step_recorder.replay, list[int]()
    monkeypatch.setattr(fully_connected, "is_wide", count)
    monkeypatch.setattr(step_recorder, "replay", replay)
    monkeypatch.setattr(step_recorder.StepRecorder, "meetings", 1)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(49, 32), nn.Tanh(), nn.Linear(32, 24), nn.Tanh(), nn.Linear(24, 3))
    network.double()
    support, query = (
        Batch(torch.randn(4, 3 * n, 7, 7, dtype=torch.float64), torch.arange(3).repeat(4, n)) for n in (1, 2)
    )
    module = MAML(network, 3, 0.5, first_order=first_order, compile=recorded)
    module.training_step(Episode(support, query), 0).backward()
    assert {True, False} == set(answers)  # the hidden layers, and the head
    assert bool(replayed) is (recorded == "steps")
    total = torch.zeros((), dtype=torch.float64)
    outer = {name: value.detach().requires_grad_() for name, value in module.backbone.named_parameters()}
    for task in range(4):
        weights = dict(outer)
        for _ in range(3):
            loss = loss_of(network, weights, Batch(support.x[task], support.y[task]))
            grads = torch.autograd.grad(loss, list(weights.values()), create_graph=not first_order)
            weights = {name: value - 0.5 * grad for (name, value), grad in zip(weights.items(), grads, strict=True)}
        total = total + loss_of(network, weights, Batch(query.x[task], query.y[task])) / 4
    expected = torch.autograd.grad(total, list(outer.values()))
    for parameter, value in zip(module.backbone.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, value, rtol=1e-9, atol=1e-12)
