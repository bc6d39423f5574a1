"""Constants of inner problems, against dense Hessians of a loop in plain autograd."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.data import DataLoader

from metalearn import ANIL, MAML, MLP, Batch, BilevelFewShot, Conv4, Episode, LoRA, MetalearnError
from metalearn.datamodules import SinusoidDataModule
from metalearn.theory import MeasuredConstants, measure_constants
from tests.algorithms import ALGORITHMS, Smooth, Task

EXACT = {"iterations": 80, "tolerance": 1e-8}
STEPS, RATE = 2, 0.3


def make_episode(tasks: int = 3, kind: torch.dtype = torch.float64) -> Episode:
    generator = torch.Generator().manual_seed(0)
    xs, xq = (torch.randn(tasks, shots, 1, 8, 8, generator=generator).to(kind) for shots in (6, 9))
    labels = torch.arange(3).repeat(tasks, 1)
    return Episode(Batch(xs, labels.repeat(1, 2)), Batch(xq, labels.repeat(1, 3)))


class Oracle:
    """The inner loop of a task, with dense Hessians by what adapts."""

    def __init__(self, net: nn.Module, names: list[str], task: Task) -> None:
        self.net, self.names, self.task = net, names, task
        self.fixed = {name: value.detach() for name, value in net.named_parameters()}
        self.start = torch.cat([self.fixed[name].reshape(-1) for name in names])

    def loss(self, flat: Tensor, query: bool = False) -> Tensor:
        parts = flat.split([self.fixed[name].numel() for name in self.names])
        moved = {name: part.reshape(self.fixed[name].shape) for name, part in zip(self.names, parts, strict=True)}
        x, y = self.task[2:] if query else self.task[:2]
        return F.cross_entropy(functional_call(self.net, {**self.fixed, **moved}, (x,)), y)

    def walk(self, start: Tensor) -> list[Tensor]:
        points = [start]
        for _ in range(STEPS):
            (grad,) = torch.autograd.grad(self.loss(points[-1]), points[-1], create_graph=True)
            points.append(points[-1] - RATE * grad)
        return points

    def hessian(self, point: Tensor) -> Tensor:
        return torch.autograd.functional.hessian(self.loss, point.detach(), vectorize=True)

    def grad(self, point: Tensor, query: bool = False) -> Tensor:
        leaf = point.detach().requires_grad_()
        return torch.autograd.grad(self.loss(leaf, query), leaf)[0]

    def meta_grad(self) -> Tensor:
        leaf = self.start.clone().requires_grad_()
        return torch.autograd.grad(self.loss(self.walk(leaf)[-1], query=True), leaf)[0]


def spectral_norm(matrix: Tensor) -> Tensor:
    return torch.linalg.eigvalsh(matrix).abs().max()


@pytest.mark.parametrize("execution", ["vectorized", "sequential"])
@pytest.mark.parametrize("kind", [MAML, ANIL])
def test_every_constant_is_that_of_dense_hessians(kind: Any, execution: str) -> None:
    torch.manual_seed(0)
    net = Smooth().double()
    module = kind(net, inner_steps=STEPS, inner_lr=RATE, execution=execution)
    episode = make_episode()
    measured = measure_constants(module, episode, **EXACT)
    names = [name for name, _ in net.named_parameters() if kind is MAML or name.startswith("head.")]
    oracles = [Oracle(net, names, task) for task in zip(*episode.support, *episode.query, strict=True)]
    walks = [[point.detach() for point in oracle.walk(oracle.start.requires_grad_())] for oracle in oracles]
    dense = [[oracle.hessian(point) for point in walk] for oracle, walk in zip(oracles, walks, strict=True)]
    norms = torch.tensor([[float(spectral_norm(matrix)) for matrix in row] for row in dense])
    assert [spread.mean for spread in measured.path_L] == pytest.approx(norms.double().mean(0).tolist(), rel=1e-4)
    assert measured.L.std == pytest.approx(float(norms[:, 0].double().std()), rel=1e-3)
    assert measured.largest_L == pytest.approx(float(norms.max()), rel=1e-4)
    tops = [float(torch.linalg.eigvalsh(row[0])[-1]) for row in dense]
    assert (measured.sharpness.least, measured.sharpness.most) == pytest.approx((min(tops), max(tops)), rel=1e-4)
    head = slice(-sum(value.numel() for name, value in net.named_parameters() if name.startswith("head.")), None)
    bottoms = torch.stack([torch.linalg.eigvalsh(row[0][head, head])[0] for row in dense])
    assert measured.mu is not None
    assert measured.mu.mean == pytest.approx(float(bottoms.mean()), abs=1e-6)
    rates = [
        max(float(spectral_norm(b - a) / (q - p).norm()) for a, b, p, q in
            zip(row, row[1:], walk, walk[1:], strict=False))
        for row, walk in zip(dense, walks, strict=True)
    ]  # fmt: skip
    assert measured.rho is not None
    assert (measured.rho.least, measured.rho.most) == pytest.approx((min(rates), max(rates)), rel=1e-4)
    support = [float(oracle.grad(oracle.start).norm()) for oracle in oracles]
    assert measured.support_gradient.mean == pytest.approx(sum(support) / 3)
    check_gradients(measured, torch.stack([o.grad(w[-1], True) for o, w in zip(oracles, walks, strict=True)]), "query")
    check_gradients(measured, torch.stack([oracle.meta_grad() for oracle in oracles]), "meta")


def check_gradients(measured: MeasuredConstants, grads: Tensor, name: str) -> None:
    """The norms and the variance over tasks of gradients ``[B, D]``."""
    spread, lengths = getattr(measured, f"{name}_gradient"), grads.norm(dim=-1)
    assert (spread.mean, spread.std) == pytest.approx((float(lengths.mean()), float(lengths.std())))
    expected = float((grads - grads.mean(0)).square().sum() / (len(grads) - 1))
    assert getattr(measured, f"{name}_variance") == pytest.approx(expected)


def test_a_quadratic_has_its_exact_constants() -> None:
    """Of ``mean (w x - y)^2`` the Hessian is ``2 mean x x'``, everywhere."""
    x = torch.randn(4, 20, 3, generator=torch.Generator().manual_seed(1))
    episode = Episode(Batch(x, x.sum(-1, keepdim=True)), Batch(x, x.sum(-1, keepdim=True)))
    module = MAML(nn.Linear(3, 1, bias=False), inner_steps=3, inner_lr=0.05, loss="mse")
    measured = measure_constants(module, episode, tolerance=1e-4)
    tops = torch.linalg.eigvalsh(2 * x.mT @ x / 20)[:, -1]
    assert measured.mu is None  # the network has no layer that is called head, and is a single layer itself
    for spread in measured.path_L:
        assert (spread.least, spread.most) == pytest.approx((float(tops.min()), float(tops.max())), rel=1e-4)
    assert measured.rho is not None
    assert measured.rho.most < 1e-4


def test_weight_decay_is_a_part_of_the_objective() -> None:
    plain, decayed = (
        measure_constants(
            ANIL(copy.deepcopy(NET), inner_steps=1, inner_lr=RATE, inner_weight_decay=decay), make_episode(), **EXACT
        )
        for decay in (0.0, 0.5)
    )
    assert decayed.L.mean == pytest.approx(plain.L.mean + 0.5)


torch.manual_seed(3)
NET = Smooth().double()
STEPPING = [name for name in ALGORITHMS if name not in ("ridge", "protonet", "baseline", "cosine")]


@pytest.mark.parametrize("name", STEPPING)
@pytest.mark.parametrize("training", [True, False])
def test_every_algorithm_that_takes_steps_is_measured_and_left_as_it_was(name: str, training: bool) -> None:
    module = ALGORITHMS[name].make_cheap(copy.deepcopy(NET)).train(training)
    torch.manual_seed(5)
    state, random = copy.deepcopy(module.state_dict()), torch.get_rng_state()
    modes = [part.training for part in module.modules()]
    measured = measure_constants(module, make_episode(), tasks=2, iterations=6)
    assert measured.L.tasks == 2
    assert measured.L.mean > 0
    assert torch.equal(random, torch.get_rng_state())
    assert modes == [part.training for part in module.modules()]
    assert all(value.grad is None for value in module.parameters())
    assert all(value.equal(state[key]) for key, value in module.state_dict().items())
    assert len(measured.path_L) == 1 + (module.inner_steps if training else module.eval_inner_steps)
    assert module.counts is None or not any(module.counts.as_dict().values())


def test_dropout_has_one_mask_for_all_products_and_draws_nothing() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 3)).double()
    module = MAML(net, inner_steps=1, inner_lr=RATE)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, second = (measure_constants(module, make_episode(), **EXACT) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    assert first == second
    assert first.sharpness.mean == pytest.approx(first.L.mean)  # the problem is convex for any mask


def test_batch_statistics_and_adapters() -> None:
    module = MAML(Conv4(ways=3, hidden=4, image_size=16), inner_steps=1, adapter=LoRA(rank=1))
    episode = Episode(*(Batch(part.x.repeat(1, 1, 1, 2, 2), part.y) for part in make_episode(2, torch.float32)))
    measured = measure_constants(module, episode, iterations=5)
    assert measured.mu is None  # a factor of the head adapts, the head does not
    assert measured.L.mean > 0


def test_sources_of_tasks() -> None:
    module = MAML(Smooth(), inner_steps=1, inner_lr=RATE)
    episode = make_episode(4, torch.float32)
    tasks = [Episode(*(Batch(part.x[i : i + 1], part.y[i : i + 1]) for part in episode)) for i in range(4)]
    loader = DataLoader(tasks, batch_size=None)
    measured = [measure_constants(module, source, tasks=3) for source in (episode, tasks, loader, iter(tasks))]
    assert all(constants.L.tasks == 3 for constants in measured)
    assert all(constants.L.mean == pytest.approx(measured[0].L.mean, rel=1e-3) for constants in measured)
    data = SinusoidDataModule(tasks_per_batch=2, train_tasks=4)
    assert measure_constants(MAML(MLP(hidden=[4]), loss="mse", inner_lr=0.01), data, tasks=3).L.tasks == 3


def test_the_table_and_the_dictionary() -> None:
    measured = measure_constants(MAML(NET, inner_steps=1, inner_lr=RATE), make_episode())
    lines = str(measured).splitlines()
    assert lines[0].startswith("L at w_0 ")
    assert lines[0].endswith(", 3 tasks)")
    assert measured.as_dict()["L"]["mean"] == measured.L.mean
    assert len(measured.as_dict()["path_L"]) == 2


@pytest.mark.parametrize(
    ("make", "arguments", "text"),
    [
        (lambda: ALGORITHMS["protonet"].make(Smooth()), {}, "ProtoNet adapts without gradient steps"),
        (lambda: ALGORITHMS["ridge"].make(Smooth()), {}, "ANIL adapts without gradient steps"),
        (lambda: ALGORITHMS["baseline"].make(Smooth()), {}, "Baseline adapts without gradient steps"),
        (lambda: BilevelFewShot(Smooth(), head_loss="ridge"), {}, "learned scale"),
        (lambda: Smooth(), {}, "module is a Smooth"),
        (lambda: MAML(Smooth()), {"tasks": 0}, "tasks is 0"),
        (lambda: MAML(Smooth()), {"iterations": 1.5}, "iterations is 1.5"),
        (lambda: MAML(Smooth()), {"tolerance": -1}, "tolerance is -1"),
        (lambda: MAML(Smooth()), {"episodes": 3}, "episodes is a int"),
        (lambda: MAML(Smooth()), {"episodes": []}, "no task"),
        (lambda: MAML(Smooth(), inner_lr=1e30, inner_steps=4, loss="mse", task="regression"), {}, "not finite"),
    ],
)
def test_what_is_wrong_is_one_line(make: Any, arguments: dict[str, Any], text: str) -> None:
    episode = make_episode(2, torch.float32)
    module = make()
    if "regression" in str(getattr(module, "hparams", "")):
        episode = Episode(*(Batch(part.x, F.one_hot(part.y, 3).float()) for part in episode))
    with pytest.raises(MetalearnError, match=text) as caught:
        measure_constants(module, **{"episodes": episode, **arguments})
    assert "\n" not in str(caught.value)
