"""Adapters: their meta-gradients against plain loops over the original network, and what they cannot take."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import AdamW

from metalearn import MAML, Batch, ConfigError, Context, Episode, LoRA, MetaModule, PrototypeHead, SharedHead
from metalearn.inner import Adapter
from tests.algorithms import Params, Smooth, Task
from tests.networks import TinyConv, noise_episode

STEPS, LR = 2, 0.3


def one_hot_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """A loss that a common shift of all rows changes, as it does not change cross-entropy."""
    return (outputs - F.one_hot(targets, outputs.shape[1])).square().mean()


def lora(net: nn.Module, own: Params, moved: Params, ways: int) -> Params:
    def change(layer: str) -> Tensor:
        weight = own[f"{layer}.weight"]
        b, a = (moved[f"{layer.replace('.', '/')}:{side}"] for side in "ba")
        return weight + 3.0 / 2 * (b @ a).reshape(weight.shape)

    return {f"{layer}.weight": change(layer) for layer in net.layers}  # type: ignore[union-attr,operator]


def context(net: nn.Module, own: Params, moved: Params, ways: int) -> Params:
    """The bias that inputs joined to a context amount to."""
    matrices = {layer: moved[f"{layer.replace('.', '/')}:context"] for layer in net.layers}  # type: ignore[union-attr,operator]
    return {f"{layer}.bias": own[f"{layer}.bias"] + matrix @ moved["context"] for layer, matrix in matrices.items()}


def shared(net: nn.Module, own: Params, moved: Params, ways: int) -> Params:
    return {}


CASES: dict[str, tuple[Adapter, Callable[..., Params], list[str], list[str]]] = {
    "lora": (LoRA(2, alpha=3.0), lora, ["body.1", "head"], ["body/1:a", "body/1:b", "head:a", "head:b"]),
    "lora of the head": (LoRA(2, "head", alpha=3.0), lora, ["head"], ["head:a", "head:b"]),
    "context": (Context(2, "body"), context, ["body.1"], ["context"]),
    "context of all": (Context(2, "all"), context, ["body.1", "head"], ["context"]),
}


def plain_loss(net: nn.Module, case: str, start: Params, extra: Params, task: Task) -> Tensor:
    """The query loss after gradient steps by the adapter's moving tensors alone, written out."""
    _, merge, net.layers, moving = CASES[case]  # type: ignore[assignment]
    moved = {**extra, "context": torch.zeros(2, dtype=torch.float64, requires_grad=True)}
    for _ in range(STEPS):
        outputs = functional_call(net, {**start, **merge(net, start, moved, 3)}, (task[0],))
        grads = torch.autograd.grad(F.cross_entropy(outputs, task[1]), [moved[k] for k in moving], create_graph=True)
        moved = moved | {k: moved[k] - LR * grad for k, grad in zip(moving, grads, strict=True)}
    return F.cross_entropy(functional_call(net, {**start, **merge(net, start, moved, 3)}, (task[2],)), task[3])


def make(net: nn.Module, adapter: Adapter, **options: Any) -> MetaModule:
    """With tensors of the adapter away from where they start, where some gradients are 0."""
    module = MAML(net, inner_steps=STEPS, inner_lr=LR, adapter=adapter, **options).double()
    assert module.adapter is not None
    generator = torch.Generator().manual_seed(1)
    for value in module.adapter.parameters():
        value.data = 0.4 * torch.randn(value.shape, generator=generator, dtype=torch.float64)
    return module


def network() -> Smooth:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Smooth().double()


def tasks_of(episode: Episode) -> list[Task]:
    (xs, ys), (xq, yq) = episode
    return list(zip(xs, ys, xq, yq, strict=True))


@pytest.mark.parametrize("memory", ["store", "remat"])
@pytest.mark.parametrize("execution", ["sequential", "vectorized"])
@pytest.mark.parametrize("case", CASES)
def test_the_meta_gradient_is_that_of_a_plain_loop(case: str, execution: str, memory: str) -> None:
    net, episode = network(), noise_episode(2)
    module = make(net, CASES[case][0], execution=execution, memory=memory)
    found = module.meta_gradient(episode)
    start = {name: value.detach().clone().requires_grad_() for name, value in net.named_parameters()}
    extra = {name: value.detach().clone().requires_grad_() for name, value in module.adapter.named_parameters()}  # type: ignore[union-attr]
    plain = copy.deepcopy(net)
    losses = [plain_loss(plain, case, start, extra, task) for task in tasks_of(episode)]
    grads = torch.autograd.grad(torch.stack(losses).mean(), [*start.values(), *extra.values()])
    names = [*(f"backbone.{name}" for name in start), *(f"adapter.{name}" for name in extra)]
    assert found.keys() == set(names)
    for name, grad in zip(names, grads, strict=True):
        torch.testing.assert_close(found[name], grad, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("adapts", [None, "head"])
@pytest.mark.parametrize("execution", ["sequential", "vectorized"])
def test_a_shared_row_gets_the_gradient_of_a_plain_loop(execution: str, adapts: str | None) -> None:
    net, episode = network(), noise_episode(2)
    module = make(net, SharedHead(), execution=execution, loss=one_hot_error, adapts=adapts)
    found = module.meta_gradient(episode)
    body = {name: value.detach().clone().requires_grad_() for name, value in net.named_parameters() if "body" in name}
    row, shift = (module.adapter.get_parameter(name).detach().clone().requires_grad_() for name in ("row", "shift"))  # type: ignore[union-attr]
    losses = []
    for x, y, xq, yq in tasks_of(episode):
        params = {**body, "head.weight": row.repeat(3, 1), "head.bias": shift.repeat(3)}
        moving = [name for name in params if adapts is None or name.startswith(adapts)]
        for _ in range(STEPS):
            loss = one_hot_error(functional_call(net, params, (x,)), y)
            grads = torch.autograd.grad(loss, [params[name] for name in moving], create_graph=True)
            params |= {name: params[name] - LR * grad for name, grad in zip(moving, grads, strict=True)}
        losses.append(one_hot_error(functional_call(net, params, (xq,)), yq))
    expected = torch.autograd.grad(torch.stack(losses).mean(), [*body.values(), row, shift])
    names = [*(f"backbone.{name}" for name in body), "adapter.row", "adapter.shift"]
    for name, grad in zip(names, expected, strict=True):
        torch.testing.assert_close(found[name], grad, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("adapter", [SharedHead(), PrototypeHead()])
def test_renumbered_classes_change_nothing_and_there_may_be_more(adapter: Adapter) -> None:
    module = make(network(), adapter, loss="cross_entropy")
    episode = noise_episode(1, ways=7, shots=2)
    x, y, query = episode.support.x[0], episode.support.y[0], episode.query.x[0]
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    outputs = module.adapt(Batch(x, y), ways=7)(query)
    renumbered = module.adapt(Batch(x, order[y]), ways=7)(query)
    assert outputs.shape[1] == 7
    torch.testing.assert_close(renumbered[:, order], outputs, rtol=1e-9, atol=1e-9)


def test_no_step_from_prototypes_is_a_prototypical_network() -> None:
    net = network()
    module = MAML(net, adapter=PrototypeHead(), inner_lr=0.1).double()
    episode = noise_episode(1, ways=5)
    (x, y), (query, _) = ((part.x[0], part.y[0]) for part in episode)
    z, means = net.body(query), torch.stack([net.body(x)[y == label].mean(0) for label in range(5)])
    expected = (-torch.cdist(z, means).square()).softmax(1)
    found = module.adapt(Batch(x, y), steps=0, ways=5)(query).softmax(1)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "adapter", [LoRA(2, ["all", "!head"]), Context(3, "norm"), PrototypeHead(), SharedHead()], ids=str
)
def test_convolutional_networks_run_vectorised(adapter: Adapter) -> None:
    """Under batch normalisation and max-pooling; a float64 probe has compared this with the network as it is."""
    module = MAML(TinyConv().double(), inner_steps=1, adapter=adapter)
    module.meta_gradient(noise_episode(2))
    assert module.choice is not None
    assert module.choice.name == "vectorized"


def test_factors_alone_are_trained() -> None:
    """The caller's network stays as trainable as it was, and no step of the outer loop moves it."""
    net = Smooth()
    net.body[1].bias.requires_grad_(False)
    before, flags = copy.deepcopy(net.state_dict()), [value.requires_grad for value in net.parameters()]
    module = MAML(net, adapter=LoRA(2, trains="factors"), adapts="head.bias", outer_optimizer=partial(AdamW, lr=0.1))
    trained = {"backbone.head.bias", *(f"adapter.{name}" for name in CASES["lora"][3])}
    episode = noise_episode(2, dtype=torch.float32)
    assert module.meta_gradient(episode).keys() == trained
    assert [value.requires_grad for value in net.parameters()] == flags
    names = {id(value): name for name, value in module.named_parameters()}
    optimizer = module.configure_optimizers()
    assert {names[id(value)] for group in optimizer.param_groups for value in group["params"]} == trained
    module.training_step(episode, 0).backward()
    optimizer.step()
    moved = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"head.bias"}
    assert [value.requires_grad for value in net.parameters()] == flags


@pytest.mark.parametrize("layer", ["conv", "block.2", "block.1"])
def test_a_shift_that_is_not_taken_out_at_once_is_not_refused(layer: str) -> None:
    """Of layers outside of a ``Sequential`` nobody knows the order; a ReLU between the two keeps a part of the shift."""
    assert len(list(Context(2, layer).build(Grouped()).parameters())) == 1


def test_an_adapted_model_says_what_moved() -> None:
    module = make(network(), Context(2, "body.1"))
    support = noise_episode(1).support
    adapted = module.adapt(Batch(support.x[0], support.y[0]))
    learner = module.adaptation.learner
    moved = {name: value for name, value in adapted.params.items() if learner.adapts(name)}
    assert {name: tuple(value.shape) for name, value in moved.items()} == {"adapter:context": (2,)}
    assert float(moved["adapter:context"].abs().min()) > 0


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, groups=2)
        self.up = nn.ConvTranspose2d(4, 4, 3)
        self.conv = nn.Conv2d(4, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.block = nn.Sequential(
            nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.ReLU(), nn.BatchNorm2d(4)
        )
        self.bare = nn.Conv2d(4, 4, 1, bias=False)
        self.out = nn.Linear(4, 5, bias=False)


@pytest.mark.parametrize(
    ("adapter", "line"),
    [
        (LoRA(2, "first"), "targets has 'first', but layer 'first' is a convolution of 2 groups"),
        (LoRA(2, "up"), "is a transposed convolution"),
        (LoRA(2, "norm"), "layer 'norm' is a BatchNorm2d"),
        (LoRA(2, "outt"), "did you mean 'out'"),
        (LoRA(2, "zzz"), "there are first, up, conv"),
        (LoRA(5), "rank is 5, but the weight of layer 'conv' is 4 x 36; use at most 4"),
        (LoRA(2, ["out", "!all"]), "that leaves no layer"),
        (Context(2, "bare"), "layer 'bare' has no bias"),
        (Context(2, "block.0"), "is followed by the batch normalisation 'block.1'"),
        (Context(2, "hed"), "did you mean 'head'"),
        (PrototypeHead(), "the head 'out' has no bias"),
        (PrototypeHead("conv"), "the head 'conv' is a Conv2d"),
        (SharedHead("nothing"), "no submodule of that name"),
    ],
    ids=str,
)  # fmt: skip
def test_what_an_adapter_cannot_take_is_one_line(adapter: Adapter, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        MAML(Grouped(), adapter=adapter)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_prototypes_need_class_labels() -> None:
    module = MAML(Smooth(), adapter=PrototypeHead(), loss="mse")
    x = torch.randn(4, 1, 8, 8)
    with pytest.raises(ConfigError, match="not one class label for each example"):
        module.adapt(Batch(x, torch.randn(4, 3)))
