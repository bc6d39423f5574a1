"""Networks that a vectorised inner loop cannot take: they run one task after another, with one line, and are never wrong."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from metalearn import MAML, ConfigError, Conv4
from tests.modules.episodic.test_meta_gradient import largest_error, plain_loop
from tests.networks import PlainWeightNorm, TinyConv, noise_episode


class DataDependent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.gate = nn.Linear(3, 3), Gate()

    def forward(self, x: Tensor) -> Tensor:
        return self.gate(self.first(x))


class Gate(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if float(x.detach().sum()) > 0 else 2 * x


class Counting(nn.Module):
    """Writes a buffer in place, from the data."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.register_buffer("seen", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        self.seen.add_(y.detach().mean(0))
        return y + 0.1 * self.seen


class Tied(nn.Module):
    """One parameter in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).tanh())


class Scaled(nn.Module):
    """A parameter without axes."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.scale = nn.Linear(3, 3), nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.linear(x).tanh()


def hooked() -> nn.Module:
    net = TinyConv()
    net.body[0].register_forward_hook(lambda module, args, output: 1.5 * output)
    return net


def spectral() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3)))


def weight_normed() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.utils.parametrizations.weight_norm(nn.Linear(3, 5)), nn.Tanh(), nn.Linear(5, 3)
    )


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attend, self.out = (
            nn.Linear(1, 4),
            nn.MultiheadAttention(4, 2, batch_first=True),
            nn.Linear(4, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        z = self.embed(x[..., None])
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            return self.out(self.attend(z, z, z, need_weights=False)[0].mean(1))


FLAT = (3,)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "tied": (Tied, FLAT),
    "scaled": (Scaled, FLAT),
    "hooked": (hooked, (1, 8, 8)),
    "data_dependent": (DataDependent, FLAT),
    "weight_norm": (weight_normed, FLAT),
    "attention": (Attention, FLAT),
    "group_norm": (lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)),
                   (1, 8, 8)),
    "layer_norm": (lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.GELU(), nn.Linear(4, 3)), FLAT),
    "average_pool": (lambda: nn.Sequential(nn.Conv2d(1, 4, 3, padding="same"), nn.BatchNorm2d(4), nn.AvgPool2d(2),
                                           nn.Flatten(), nn.Linear(64, 3)), (1, 8, 8)),
    "reflecting": (lambda: nn.Sequential(nn.Conv2d(1, 36, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(36),
                                         nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(576, 3)), (1, 8, 8)),
    "dilated": (lambda: nn.Sequential(nn.Conv2d(1, 6, 3, dilation=2, stride=2), nn.BatchNorm2d(6), nn.LeakyReLU(),
                                      nn.Conv2d(6, 6, 1, groups=3), nn.Flatten(), nn.Linear(24, 3)), (1, 8, 8)),
    "conv_1d": (lambda: nn.Sequential(nn.Unflatten(1, (1, 3)), nn.Conv1d(1, 4, 2), nn.BatchNorm1d(4), nn.Tanh(),
                                      nn.Flatten(), nn.Linear(8, 3)), FLAT),
    "norm_of_rows": (lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3)), FLAT),
    "conv4": (lambda: Conv4(3, hidden=36, image_size=16), (1, 16, 16)),
    "conv4_stride": (lambda: Conv4(3, hidden=36, image_size=16, downsample="stride"), (1, 16, 16)),
    "conv4_colour": (lambda: Conv4(3, in_channels=3, hidden=8, image_size=16), (3, 16, 16)),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # torch's, where it batches by a loop
@pytest.mark.parametrize("memory", ["store", "remat"])
@pytest.mark.parametrize("execution", ["sequential", "vectorized"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_gradient_is_that_of_a_plain_loop_whatever_the_network(name: str, execution: str, memory: str) -> None:
    torch.manual_seed(0)
    build, shape = NETWORKS[name]
    net, episode = build().double(), noise_episode(shape=shape)
    with PlainWeightNorm():
        expected = plain_loop(copy.deepcopy(net), episode, 2, 0.2, False)
    module = MAML(net, inner_steps=2, inner_lr=0.2, execution=execution, memory=memory)  # type: ignore[arg-type]
    grads = module.meta_gradient(episode)
    scale = max(float(value.norm()) for value in expected.values())
    for key, value in expected.items():  # a bias before a normalisation has no gradient but rounding
        assert float((grads[key] - value).norm()) < 1e-9 * max(float(value.norm()), 1e-6 * scale), key


@pytest.mark.parametrize(
    ("build", "shape", "reason"),
    [
        (hooked, (1, 8, 8), "layer 'body.0' has hooks"),
        (DataDependent, FLAT, "layer 'gate': "),
        (Counting, FLAT, "layer 'Counting': "),
    ],
)
def test_one_line_names_the_layer(
    build: Callable[[], nn.Module], shape: tuple[int, ...], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    module = MAML(build().double(), inner_steps=1, inner_lr=0.1, execution="vectorized")
    with caplog.at_level("INFO"):
        module.meta_gradient(noise_episode(shape=shape))
    (line,) = [record.getMessage() for record in caplog.records if "execution over tasks" in record.getMessage()]
    assert "sequential execution" in line
    assert reason in line
    assert "\n" not in line


class SinglePrecision(nn.Module):
    """Makes a float32 tensor in its forward pass, so that a float64 copy of it does not run."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) @ torch.eye(3, dtype=torch.float32)


def test_what_cannot_be_proven_runs_the_plainest_way(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    net, episode = SinglePrecision(), noise_episode(shape=FLAT, dtype=torch.float32)
    expected = plain_loop(copy.deepcopy(net), episode, 2, 0.2, False)
    with caplog.at_level("INFO"):
        grads = MAML(net, inner_steps=2, inner_lr=0.2, execution="vectorized", memory="mixed").meta_gradient(episode)
    assert largest_error(grads, expected) < 1e-5
    assert "does not run in float64, so nothing else is proven" in caplog.text


def test_tasks_do_not_meet_in_a_buffer() -> None:
    """Each starts from the buffer as it is, and the buffer stays as it was."""
    net, episode = Counting().double(), noise_episode(shape=FLAT)
    module = MAML(net, inner_steps=2, inner_lr=0.1)
    together = module.meta_loss(episode).logits
    assert float(net.seen.abs().sum()) == 0.0
    for task in range(3):
        alone = type(episode)(*(type(role)(role.x[task : task + 1], role.y[task : task + 1]) for role in episode))
        torch.testing.assert_close(module.meta_loss(alone).logits[0], together[task])


def test_spectral_norm_neither_learns_nor_is_wrong() -> None:
    """It writes its power iteration in every forward pass in training mode."""
    net, episode = spectral().double(), noise_episode(shape=FLAT)
    before = {name: value.clone() for name, value in net.named_buffers()}
    grads = MAML(net, inner_steps=2, inner_lr=0.1).meta_gradient(episode)
    assert all(bool(grad.isfinite().all()) for grad in grads.values())
    assert all(torch.equal(value, before[name]) for name, value in net.named_buffers())


class Watched(nn.Module):
    """Notes the thread of every forward pass.

    Args:
        network: what is called.
        threads: their names, in the order of calls.
    """

    def __init__(self, network: nn.Module, threads: list[str]) -> None:
        super().__init__()
        self.network = network
        self.note = lambda: threads.append(threading.current_thread().name)

    def forward(self, x: Tensor) -> Tensor:
        self.note()
        return self.network(x)


def test_threads_give_the_gradient_of_one() -> None:
    """16 tasks over two threads, each over a copy of the network's structure."""
    torch.manual_seed(0)
    names: list[str] = []
    conv4, episode = Conv4(3, hidden=36, image_size=16).double(), noise_episode(tasks=16, shape=(1, 16, 16))
    net = Watched(conv4, names)
    expected = plain_loop(copy.deepcopy(net), episode, 2, 0.2, False)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        module = MAML(net, inner_steps=2, inner_lr=0.2)
        grads = module.meta_gradient(episode)
        names.clear()
        module.meta_gradient(episode)
        assert len(names) == 2 * 3  # two parts of 8 tasks, two inner steps and a query set each
        assert threading.current_thread().name not in names
        assert torch.get_num_threads() == 2
        with torch.no_grad():
            conv4.head.weight.mul_(2)  # the copies share their tensors
        assert largest_error(module.meta_gradient(episode), grads) > 1e-3
    finally:
        torch.set_num_threads(threads)
    assert largest_error(grads, expected) < 1e-9


def test_tasks_at_once_bounds_what_is_computed_together() -> None:
    names: list[str] = []
    net, episode = Watched(TinyConv(), names).double(), noise_episode(tasks=5)
    expected = plain_loop(copy.deepcopy(net), episode, 1, 0.3, False)
    module = MAML(net, inner_steps=1, inner_lr=0.3, tasks_at_once=2)
    assert largest_error(module.meta_gradient(episode), expected) < 1e-9
    names.clear()
    module.meta_gradient(episode)
    assert len(names) == 3 * 2  # parts of 2, 2 and 1 tasks, a step and a query set each


class ConvolutionDtypes(TorchDispatchMode):
    """Notes the dtypes of what torch's convolutions and their derivatives are called with."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "convolution" in str(func):
            self.dtypes.update(value.dtype for value in args if isinstance(value, Tensor))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("execution", ["sequential", "vectorized"])
def test_convolutions_run_in_bf16_in_both_executions(execution: str) -> None:
    """torch's autocast does not reach convolutions under vmap; weights and inner updates stay in float32."""
    noting = ConvolutionDtypes()
    module = MAML(TinyConv(), inner_steps=1, inner_lr=0.1, execution=execution)  # type: ignore[arg-type]
    episode = noise_episode(dtype=torch.float32)
    module.training_step(episode, 0)
    module.adapt(
        type(episode.support)(episode.support.x[0], episode.support.y[0])
    )  # both have chosen how to run by now
    with noting, torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        loss = module.training_step(episode, 0)
        adapted = module.adapt(type(episode.support)(episode.support.x[0], episode.support.y[0]))
    loss.backward()
    assert noting.dtypes == {torch.bfloat16}
    assert loss.dtype == torch.float32
    assert {value.dtype for value in adapted.params.values()} == {torch.float32}
    assert {value.grad.dtype for value in module.parameters() if value.grad is not None} == {torch.float32}


class Joined(nn.Module):
    """Normalises by the examples of a call without any layer of normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last((self.first(x) - self.first(x).mean(0)).tanh())


def test_the_support_policy_is_refused_where_queries_meet_all_the_same() -> None:
    tasks = noise_episode(shape=(3,))
    with pytest.raises(
        ConfigError, match="norm is 'support'.*Joined does, by .*joins examples.*use norm='transductive'"
    ):
        MAML(Joined().double(), inner_steps=1, norm="support").meta_gradient(tasks)
    MAML(Joined().double(), inner_steps=1).meta_gradient(tasks)


def test_statistics_of_steps_say_why_a_network_must_not_be_called_itself() -> None:
    """A hook of a layer that is replaced by one with statistics of its own would be lost."""
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).double()
    net[1].register_forward_hook(lambda layer, inputs, output: 1.5 * output + 0.2)
    with pytest.raises(
        ConfigError, match="norm is 'per_step', which needs our copy.*outputs differ.*norm='transductive'"
    ):
        MAML(net, inner_steps=1, norm="per_step").meta_gradient(noise_episode(shape=(3,)))


def test_the_gradient_of_weight_normalisation_is_the_difference_quotient() -> None:
    """A loop over torch's own function would have the fault of its second derivative."""
    torch.manual_seed(0)
    module = MAML(weight_normed().double(), inner_steps=2, inner_lr=0.3)
    tasks = noise_episode(shape=FLAT)
    gradient = module.meta_gradient(tasks)
    for name, value in module.named_parameters():
        direction, kept, losses = torch.randn_like(value), value.detach().clone(), []
        for sign in (1e-5, -1e-5):
            with torch.no_grad():
                value.copy_(kept + sign * direction)
            losses.append(float(module.meta_loss(tasks).loss.detach()))
        with torch.no_grad():
            value.copy_(kept)
        expected = float((gradient[name] * direction).sum())
        assert (losses[0] - losses[1]) / 2e-5 == pytest.approx(expected, rel=1e-6, abs=1e-8), name
