"""The meta-gradient against a plain autograd loop, the closed forms of the quadratic, and finite differences."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from metalearn import ANIL, MAML, Batch, Conv4, Episode, MetaModule
from tests.networks import TinyConv, noise_episode

EXECUTIONS = ["sequential", "vectorized"]


def largest_error(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    assert found.keys() == expected.keys()
    return max(float((found[name] - expected[name]).norm() / expected[name].norm()) for name in expected)


def plain_loop(
    net: nn.Module, episode: Episode, steps: int, lr: float, first_order: bool, head: str = ""
) -> dict[str, Tensor]:
    """MAML (or ANIL, if a head is named) written out with nothing but torch.autograd.grad."""
    net.train()
    outer = dict(net.named_parameters())
    total = torch.zeros((), dtype=episode.support.x.dtype)
    tasks = len(episode.support.x)
    for task in range(tasks):
        params = dict(outer)
        adapted = [name for name in params if name.startswith(head)]
        for _ in range(steps):
            loss = F.cross_entropy(functional_call(net, params, (episode.support.x[task],)), episode.support.y[task])
            grads = torch.autograd.grad(loss, [params[name] for name in adapted], create_graph=True)
            for name, grad in zip(adapted, grads, strict=True):
                params[name] = params[name] - lr * (grad.detach() if first_order else grad)
        total = total + F.cross_entropy(functional_call(net, params, (episode.query.x[task],)), episode.query.y[task])
    grads = torch.autograd.grad(total / tasks, list(outer.values()))
    return {f"backbone.{name}": grad for name, grad in zip(outer, grads, strict=True)}


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("algorithm", ["maml", "anil"])
def test_equals_a_plain_autograd_loop(algorithm: str, steps: int, first_order: bool, execution: str) -> None:
    """With our operators and without any."""
    torch.manual_seed(0)
    net = TinyConv().double()
    episode = noise_episode()
    head = "head" if algorithm == "anil" else ""
    expected = plain_loop(copy.deepcopy(net), episode, steps, 0.3, first_order, head)
    kind = ANIL if algorithm == "anil" else MAML
    for kernels in (True, False):
        module = kind(net, steps, 0.3, first_order=first_order, execution=execution, kernels=kernels)  # type: ignore[arg-type]
        assert largest_error(module.meta_gradient(episode), expected) < 1e-9
        assert module.choice is not None
        assert (module.choice.name, module.choice.own_operators) == (execution, kernels)


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_training_step_hands_the_same_gradient_to_backward(execution: str) -> None:
    module = MAML(TinyConv().double(), inner_steps=2, inner_lr=0.3, execution=execution)  # type: ignore[arg-type]
    episode = noise_episode()
    expected = module.meta_gradient(episode)
    loss = module.training_step(episode, 0)
    loss.backward()
    found = {name: value.grad for name, value in module.named_parameters()}
    assert largest_error(found, expected) < 1e-12  # type: ignore[arg-type]


class Point(nn.Module):
    """Outputs its parameter for every input, so that a loss of outputs is a loss of parameters."""

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(dimension, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.w.expand(len(x), -1)


def quadratic_task() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    half = torch.randn(4, 4, dtype=torch.float64, generator=generator)
    other = torch.randn(4, 4, dtype=torch.float64, generator=generator)
    centre, query = torch.randn(2, 4, dtype=torch.float64, generator=generator)
    return half @ half.T / 4 + torch.eye(4), other @ other.T / 4 + torch.eye(4), centre, query


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("first_order", [False, True])
def test_equals_the_closed_form_of_the_quadratic(steps: int, first_order: bool, execution: str) -> None:
    """l_S = (w-c)'A(w-c)/2 and l_Q = (w-q)'B(w-q)/2 give M^N B (w_N - q), without M^N to first order."""
    a, b, centre, query = quadratic_task()
    lr = 0.1

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        """The targets carry the centre and which of the two matrices applies."""
        offset = outputs[0] - targets[0, :4]
        matrix = a * (1 - targets[0, 4]) + b * targets[0, 4]
        return offset @ matrix @ offset / 2

    def role(at: Tensor, which: float) -> Batch:
        y = torch.cat([at, torch.tensor([which])])
        return Batch(torch.zeros(1, 1, 1, dtype=torch.float64), y.view(1, 1, 5))

    net = Point(4)
    w = net.w.detach().clone()
    module = MAML(net, inner_steps=steps, inner_lr=lr, first_order=first_order, loss=loss, execution=execution)  # type: ignore[arg-type]
    found = module.meta_gradient(Episode(role(centre, 0.0), role(query, 1.0)))["backbone.w"]
    power = torch.linalg.matrix_power(torch.eye(4, dtype=torch.float64) - lr * a, steps)
    last = b @ (centre + power @ (w - centre) - query)
    expected = last if first_order else power @ last
    assert float((found - expected).norm() / expected.norm()) < 1e-12
    assert module.choice is not None
    assert module.choice.name == execution


def test_equals_finite_differences() -> None:
    """Central differences of the true query loss in float64: independent of autograd altogether."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    episode = noise_episode(shape=(3,))
    module = MAML(net, inner_steps=3, inner_lr=0.4, execution="sequential")
    found = module.meta_gradient(episode)

    def value() -> float:
        return float(module.training_step(episode, 0).detach())

    for name, parameter in module.named_parameters():
        flat = parameter.data.view(-1)
        for index in (0, len(flat) - 1):
            saved = float(flat[index])
            flat[index] = saved + 1e-5
            up = value()
            flat[index] = saved - 1e-5
            down = value()
            flat[index] = saved
            assert (up - down) / 2e-5 == pytest.approx(float(found[name].view(-1)[index]), rel=1e-6, abs=1e-9)


def test_support_policy_predicts_each_query_alone() -> None:
    module = MAML(TinyConv().double(), inner_steps=2, norm="support")
    episode = noise_episode(tasks=1)
    adapted = module.adapt(Batch(episode.support.x[0], episode.support.y[0]))
    together = adapted(episode.query.x[0])
    alone = torch.cat([adapted(x[None]) for x in episode.query.x[0]])
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize("kind", [MAML, ANIL])
def test_learned_step_sizes_get_their_gradient(kind: type[MetaModule]) -> None:
    """Finite differences of the query loss in one learned step size."""
    torch.manual_seed(0)
    module = kind(
        TinyConv().double(), inner_steps=2, inner_lr="learn", initial_inner_lr=0.2, execution="sequential"
    ).double()  # type: ignore[call-arg]
    episode = noise_episode()
    found = module.meta_gradient(episode)["solver.step_sizes.learned"]
    sizes = module.step_sizes.learned
    assert sizes is not None
    values = []
    for delta in (1e-5, -1e-5):
        sizes.data[-1] += delta
        values.append(float(module.training_step(episode, 0).detach()))
        sizes.data[-1] -= delta
    assert (values[0] - values[1]) / 2e-5 == pytest.approx(float(found[-1]), rel=1e-6)


def test_a_list_gives_each_step_its_size() -> None:
    """One step of 0.3 and one of 0.1 equal a plain loop with these sizes."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(3, 3)).double()
    episode = noise_episode(tasks=1, shape=(3,))
    params = dict(net.named_parameters())
    for lr in (0.3, 0.1):
        loss = F.cross_entropy(functional_call(net, params, (episode.support.x[0],)), episode.support.y[0])
        grads = torch.autograd.grad(loss, list(params.values()), create_graph=True)
        params = {k: v - lr * g for (k, v), g in zip(params.items(), grads, strict=True)}
    expected = functional_call(net, params, (episode.query.x[0],))
    adapted = MAML(net, inner_steps=2, inner_lr=[0.3, 0.1]).adapt(Batch(episode.support.x[0], episode.support.y[0]))
    torch.testing.assert_close(adapted(episode.query.x[0]), expected.detach())


def test_the_body_runs_once_per_set_in_anil() -> None:
    net = TinyConv().double()
    calls = []
    net.body.register_forward_hook(lambda *_: calls.append(1))
    module = ANIL(net, inner_steps=5, execution="sequential")
    episode = noise_episode(tasks=2)
    module.training_step(episode, 0)
    calls.clear()
    module.training_step(episode, 0)
    assert len(calls) == 2 * 2  # two tasks, support and query each


class Unbatchable(nn.Module):
    """Depends on the data by way of Python, which no batching rule can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        scale = 1.0 if float(x.detach().sum()) > 0 else 2.0
        return scale * self.linear(x)


def test_what_cannot_be_vectorised_runs_sequentially() -> None:
    net = Unbatchable().double()
    episode = noise_episode(shape=(3,))
    expected = plain_loop(copy.deepcopy(net), episode, 2, 0.3, False)
    module = MAML(net, inner_steps=2, inner_lr=0.3, execution="vectorized")
    assert largest_error(module.meta_gradient(episode), expected) < 1e-9
    assert module.choice is not None
    assert module.choice.name == "sequential"


class StockNorm(nn.Module):
    """Hides a functional batch normalisation from the replacement of layers: the case that vmap gets silently wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 4, 3), nn.Linear(4 * 36, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = F.batch_norm(self.first(x), None, None, training=True)
        return self.last(z.tanh().flatten(1))


def test_a_hidden_batch_norm_is_never_silently_wrong() -> None:
    """Whatever the probe decides, the gradient must be right."""
    net = StockNorm().double()
    episode = noise_episode()
    expected = plain_loop(copy.deepcopy(net), episode, 2, 0.3, False)
    found = MAML(net, inner_steps=2, inner_lr=0.3, execution="vectorized").meta_gradient(episode)
    expected.pop("backbone.first.bias")  # vanishes before the normalisation
    found.pop("backbone.first.bias")
    assert largest_error(found, expected) < 1e-9


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_bf16_costs_no_more_than_in_a_plain_loop(execution: str) -> None:
    """Rounding to bf16 turns the second-order gradient, here by some 30 degrees; ours must not turn it further than a plain
    loop's. (Under vmap torch keeps convolutions in float32, so the vectorised one is closer.)"""
    torch.manual_seed(0)
    episode = noise_episode(ways=5, shape=(1, 16, 16), dtype=torch.float32)
    net = Conv4(5, hidden=16, image_size=16)
    stock = copy.deepcopy(net)
    module = MAML(net, inner_steps=1, inner_lr=0.1, execution=execution)  # type: ignore[arg-type]

    def turned(gradient: Callable[[], dict[str, Tensor]]) -> float:
        exact = torch.cat([grad.flatten() for grad in gradient().values()])
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            rounded = torch.cat([grad.flatten() for grad in gradient().values()])
        assert rounded.dtype == torch.float32
        return float(F.cosine_similarity(exact, rounded, dim=0))

    plain = turned(lambda: plain_loop(stock, episode, 1, 0.1, False))
    assert turned(lambda: module.meta_gradient(episode)) > plain - 0.05
