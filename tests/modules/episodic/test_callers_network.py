"""The network that runs is the caller's: wrapping changes no output, layer or hook of it, and gradients are those of the network
as it was given, however its layers are held, called and normalised."""

from __future__ import annotations

import copy
import types
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from metalearn import MAML, Batch, ConfigError, Episode
from tests.modules.episodic.test_meta_gradient import plain_loop
from tests.networks import TinyConv, noise_episode

SHAPE = (1, 8, 8)


def close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-9) -> None:
    assert found.keys() == expected.keys()
    scale = max(float(value.norm()) for value in expected.values())
    for name, value in expected.items():  # a bias before a normalisation has no gradient but rounding
        assert float((found[name] - value).norm()) < tolerance * max(float(value.norm()), 1e-4 * scale), name


class Tapped(nn.Module):
    """Walks its layers and uses what is between them."""

    def __init__(self) -> None:
        super().__init__()
        layers = [nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=False), nn.MaxPool2d(2)]
        self.body, self.head = nn.Sequential(*layers), nn.Linear(18, 3)

    def forward(self, x: Tensor) -> Tensor:
        taps = []
        for layer in self.body:
            x = layer(x)
            taps.append(x.mean((2, 3)))
        return self.head(torch.cat(taps[1:], 1))


class NormAndReLU(nn.BatchNorm2d):
    """As several model zoos have it."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x)) + 0.1 * x


class NormByHand(nn.BatchNorm2d):
    """Calls the function itself, as timm's does."""

    def forward(self, x: Tensor) -> Tensor:
        y = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training, 0.1, self.eps)
        return F.silu(y)


class Functional(nn.Module):
    """No layer normalises, a function does."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3), nn.Linear(36, 3)
        self.scale, self.shift = nn.Parameter(torch.rand(4) + 0.5), nn.Parameter(torch.randn(4))
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("var", torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        y = F.batch_norm(self.conv(x), self.mean, self.var, self.scale, self.shift, self.training)
        return self.head(F.max_pool2d(y.relu(), 2).flatten(1))


class Frozen(nn.BatchNorm2d):
    """Normalises by stored statistics, in training too."""

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False)


class Bag:
    """Holds layers, and is no module."""

    def __init__(self, *layers: nn.Module) -> None:
        self.by_name = {str(index): layer for index, layer in enumerate(layers)}

    def run(self, x: Tensor) -> Tensor:
        for layer in self.by_name.values():
            x = layer(x)
        return x


class Holding(nn.Module):
    """Its layers are registered in one place and called by way of another: a list, an object, bound methods, a partial."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)])
        self.head = nn.Linear(64, 3)
        self.bag = Bag(*self.layers[:2])
        self.steps = [self.layers[2], (self.layers[3],)]
        self.last = self.head.forward
        self.finish = partial(self._finish, layer=self.head)

    def _finish(self, x: Tensor, layer: nn.Module) -> Tensor:
        return layer(x) + self.last(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.finish(self.steps[1][0](self.steps[0](self.bag.run(x))).tanh().flatten(1))


class Shared(nn.Module):
    """One normalisation at two places, one of them before a ReLU and pooling."""

    def __init__(self) -> None:
        super().__init__()
        norm = nn.BatchNorm2d(4)
        self.first = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), norm, nn.ReLU(), nn.MaxPool2d(2))
        self.second = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), norm)
        self.head = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x)).flatten(1))


class Recording(nn.Module):
    """Keeps something of its forward pass in an attribute, which its loss may read."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(64, 5), nn.Linear(5, 3)
        self.penalty: Tensor | float = 0.0
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        z = self.body(x.flatten(1)).tanh()
        self.penalty = z.square().mean()
        self.calls += 1
        return self.head(z)


class Checkpointed(TinyConv):
    """torch computes what it did not keep with the weights that it finds then, which are not those that were handed in."""

    saves = True

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.body, x, use_reentrant=False) if self.saves else self.body(x))


class MixedNorms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleDict(
            {"a": nn.GroupNorm(2, 4), "b": nn.InstanceNorm2d(4, affine=True), "c": nn.BatchNorm2d(4)}
        )
        self.conv, self.head = nn.Conv2d(1, 4, 3), nn.Sequential(nn.LayerNorm(144), nn.Linear(144, 3))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.head(sum(norm(y) for norm in self.norms.values()).relu_().flatten(1))  # type: ignore[union-attr]


def conv_norm(norm: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), norm, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 3))


def method_put_in() -> nn.Module:
    net = TinyConv()

    def forward(self: TinyConv, x: Tensor) -> Tensor:
        return self.head(self.body[4:](self.body[:4](x)) * 2.0)

    net.forward = types.MethodType(forward, net)  # type: ignore[method-assign]
    return net


def closure_put_in() -> nn.Module:
    net = TinyConv()
    net.forward = lambda x: net.head(net.body(x).tanh())  # type: ignore[method-assign]
    return net


PLACES: dict[str, nn.Module] = {}


def global_put_in() -> nn.Module:
    net = PLACES["net"] = TinyConv()
    net.forward = lambda x: PLACES["net"].head(PLACES["net"].body(x).tanh())  # type: ignore[method-assign]
    return net


def hook_that_changes() -> nn.Module:
    net = TinyConv()
    net.body[1].register_forward_hook(lambda layer, args, out: out * 1.5 + args[0])
    return net


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "tapped": Tapped,
    "norm_and_relu": lambda: conv_norm(NormAndReLU(4)),
    "norm_by_hand": lambda: conv_norm(NormByHand(4)),
    "functional": Functional,
    "frozen": lambda: conv_norm(Frozen(4)),
    "holding": Holding,
    "shared": Shared,
    "recording": Recording,
    "checkpointed": Checkpointed,
    "mixed_norms": MixedNorms,
    "method_put_in": method_put_in,
    "closure_put_in": closure_put_in,
    "global_put_in": global_put_in,
    "hook_that_changes": hook_that_changes,
    "without_statistics": lambda: conv_norm(nn.BatchNorm2d(4, affine=False, track_running_stats=False)),
    "synchronised": lambda: conv_norm(nn.SyncBatchNorm(4)),
    "weight_normed_norm": lambda: conv_norm(nn.utils.parametrizations.weight_norm(nn.BatchNorm2d(4), dim=None)),
}


def described(net: nn.Module) -> list[object]:
    """What a caller sees of a network: layers, their attributes, modes and hooks, and the values of all tensors."""
    layers = [
        (
            name,
            id(layer),
            type(layer),
            {key: id(value) for key, value in layer.__dict__.items()},
            len(layer._forward_hooks),
        )
        for name, layer in net.named_modules()
    ]
    return [layers, {name: value.clone() for name, value in net.state_dict().items()}]


def same(before: list[object], after: list[object]) -> bool:
    (layers, tensors), (now, values) = before, after
    return layers == now and all(torch.equal(values[name], value) for name, value in tensors.items())  # type: ignore[attr-defined,index]


@pytest.mark.parametrize("execution", ["sequential", "vectorized"])
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_are_those_of_the_network_as_given_and_nothing_of_it_changes(name: str, execution: str) -> None:
    torch.manual_seed(0)
    stock = NETWORKS[name]().double()
    episode = noise_episode(shape=SHAPE)
    state = copy.deepcopy(stock.state_dict())
    if name == "checkpointed":
        stock.saves = False  # type: ignore[assignment]
    expected = plain_loop(stock, episode, 2, 0.1, False)
    net = NETWORKS[name]().double()
    net.load_state_dict(state)
    x = episode.query.x[0]
    outputs = copy.deepcopy(net)(x) if "put_in" not in name else None
    module = MAML(net, inner_steps=2, inner_lr=0.1, execution=execution)  # type: ignore[arg-type]
    before = described(net)
    close(module.meta_gradient(episode), expected)
    module.adapt(Batch(episode.support.x[0], episode.support.y[0]))(x)
    if name != "recording":  # which is called as it is, and keeps what it keeps
        assert same(before, described(net))
    if outputs is not None:
        torch.testing.assert_close(net(x), outputs, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["norm_and_relu", "norm_by_hand", "functional", "shared"])
def test_every_policy_normalises_by_what_it_says(name: str) -> None:
    """Adapted by no step: ``support`` by the support set's statistics, ``running`` by the stored ones, in ``eval()`` as well."""
    torch.manual_seed(0)
    net = NETWORKS[name]().double()
    for key, value in net.named_buffers():
        if value.is_floating_point():
            value.copy_(torch.rand_like(value) + (1.0 if "var" in key else 0.0))
    support, query = (Batch(role.x[0], role.y[0]) for role in noise_episode(shape=SHAPE))
    stored = copy.deepcopy(net).eval()(query.x)
    of_batch = copy.deepcopy(net).train()(query.x)
    for policy, expected in (("running", stored), ("transductive", of_batch)):
        found = MAML(net, inner_lr=0.1, norm=policy).adapt(support, steps=0)(query.x)  # type: ignore[arg-type]
        torch.testing.assert_close(found, expected)
    by_support = MAML(net, inner_lr=0.1, norm="support").adapt(support, steps=0)
    one_by_one = torch.cat([by_support(x[None]) for x in query.x])
    torch.testing.assert_close(by_support(query.x), one_by_one)
    torch.testing.assert_close(by_support(support.x), copy.deepcopy(net).train()(support.x))


def test_frozen_statistics_stay_frozen_in_evaluation() -> None:
    torch.manual_seed(0)
    net = conv_norm(Frozen(4)).double()
    net[1].running_mean.normal_()  # type: ignore[operator,union-attr]
    support, query = (Batch(role.x[0], role.y[0]) for role in noise_episode(shape=SHAPE))
    torch.testing.assert_close(MAML(net, inner_lr=0.1).adapt(support, steps=0)(query.x), net.train()(query.x))


def test_layers_that_come_later_are_followed() -> None:
    """Another layer, a hook, an attribute: what the network is at the time is what runs."""
    torch.manual_seed(0)
    net, episode = TinyConv().double(), noise_episode(shape=SHAPE)
    module = MAML(net, inner_steps=1, inner_lr=0.1)

    def check() -> None:
        close(module.meta_gradient(episode), plain_loop(copy.deepcopy(net), episode, 1, 0.1, False))

    check()
    net.body[2] = nn.Tanh()
    check()
    net.head = nn.Linear(16, 3, bias=False).double()
    check()
    net.body[1].eps = 0.5
    check()
    net.body[4] = nn.Sequential(nn.Conv2d(4, 4, 1), NormAndReLU(4), nn.Conv2d(4, 4, 3, padding=1)).double()
    check()
    handle = net.body[4].register_forward_hook(lambda layer, args, out: out.sin())
    check()
    handle.remove()
    check()
    net.body[0].weight = nn.Parameter(torch.randn_like(net.body[0].weight))
    check()


def test_a_loss_may_read_what_the_network_keeps() -> None:
    torch.manual_seed(0)
    net, episode = Recording().double(), noise_episode(shape=SHAPE)
    stock = copy.deepcopy(net)
    outer = dict(stock.named_parameters())
    total: Tensor | float = 0.0
    for task in range(3):

        def loss(params: dict[str, Tensor], role: Batch, task: int = task) -> Tensor:
            outputs = torch.func.functional_call(stock, params, (role.x[task],))
            return F.cross_entropy(outputs, role.y[task]) + stock.penalty

        grads = torch.autograd.grad(loss(outer, episode.support), list(outer.values()), create_graph=True)
        adapted = {key: value - 0.1 * grad for (key, value), grad in zip(outer.items(), grads, strict=True)}
        total = total + loss(adapted, episode.query) / 3
    expected = torch.autograd.grad(total, list(outer.values()))  # type: ignore[arg-type]
    module = MAML(net, inner_steps=1, inner_lr=0.1, loss=lambda out, y: F.cross_entropy(out, y) + net.penalty)
    close(module.meta_gradient(episode), {f"backbone.{k}": v for k, v in zip(outer, expected, strict=True)})
    assert module.choice is not None
    assert "keeps something of its forward pass in its attribute" in module.choice.reasons[0]


def test_input_that_a_network_writes_to_is_not_the_callers() -> None:
    class Shifting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(64, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x.sub_(1.0).flatten(1))

    torch.manual_seed(0)
    net, episode = Shifting().double(), noise_episode(shape=SHAPE)
    before = [role.x.clone() for role in episode]
    shifted = Episode(*(Batch(role.x - 1.0, role.y) for role in episode))
    stock = nn.Sequential(nn.Flatten(), copy.deepcopy(net.linear))
    expected = {
        key.replace(".1.", ".linear."): value for key, value in plain_loop(stock, shifted, 2, 0.1, False).items()
    }
    for execution in ("sequential", "vectorized"):
        module = MAML(net, inner_steps=2, inner_lr=0.1, execution=execution)  # type: ignore[arg-type]
        close(module.meta_gradient(episode), expected)
        adapted = module.adapt(Batch(episode.support.x[0], episode.support.y[0]))
        first = adapted(episode.query.x[0])
        torch.testing.assert_close(adapted(episode.query.x[0]), first)
        assert all(torch.equal(role.x, kept) for role, kept in zip(episode, before, strict=True))


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda: nn.DataParallel(TinyConv()), "a DataParallel, which calls copies.*pass its .module"),
        (lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(3)), "layer '1'.*LazyLinear whose weight has no shape.*call the"),
        (lambda: nn.Sequential(nn.Flatten(), torch.compile(nn.Linear(64, 3))), "layer '1' of the backbone is compiled"),
    ],
)  # fmt: skip
def test_what_cannot_be_called_with_other_weights_is_refused(build: Callable[[], nn.Module], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as told:
        MAML(build())
    assert "\n" not in str(told.value)


def test_a_lazy_layer_that_has_seen_data_is_a_layer() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3)).double()
    episode = noise_episode(shape=SHAPE)
    net(episode.support.x[0])
    expected = plain_loop(copy.deepcopy(net), episode, 1, 0.1, False)
    close(MAML(net, inner_steps=1, inner_lr=0.1).meta_gradient(episode), expected)
