"""The end of a network on the features of its beginning: the same tasks, the same meta-gradients, or one line."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from metalearn import MAML, MLP, ConfigError, Conv4, Episode, LoRA, MetaModule, ProtoNet, Torchvision
from metalearn.datamodules import ArrayEpisodes, FeatureEpisodes
from metalearn.episode import Batch

NUMBERS = np.random.default_rng(0)
Y = np.repeat(np.arange(12), 8)
IMAGES = NUMBERS.integers(-3, 4, (96, 1, 6, 6)).astype(np.float32)


class Deep(nn.Module):
    """Layers one after the other; those of the beginning have whole weights, so that float32 holds what they give exactly."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 2)  # listed first, run last
        self.stem = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(inplace=True), nn.Dropout(0.5))
        self.last = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Tanh())
        with torch.no_grad():
            for value in self.stem.parameters():
                value.copy_(torch.randint(-3, 4, value.shape).float())

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.last(self.stem(x)).flatten(1))
        return logits


def data_of(encoder: nn.Module, folder: Path, x: Any = IMAGES, **options: Any) -> FeatureEpisodes:
    data = ArrayEpisodes(x, Y, ways=2, shots=2, queries=3)
    return FeatureEpisodes(data, encoder, cache_dir=str(folder), **options)


def as_batch(task: Episode) -> Episode:
    """One task in float64, with a task axis."""
    return Episode(*(Batch(role.x[None].double(), role.y[None]) for role in task))


def make(network: nn.Module, kind: str) -> MetaModule:
    torch.manual_seed(1)
    if kind == "lora":
        adapter = LoRA(rank=2, targets=["last", "head"], trains="factors")
        return MAML(network, adapter=adapter, inner_steps=2, inner_lr=0.3, norm="running").double()
    if kind == "block":
        return MAML(network, adapts=["last", "head"], inner_steps=2, inner_lr=0.3, norm="running").double()
    return ProtoNet(network, norm="running").double()


@pytest.mark.parametrize("kind", ["lora", "block", "prototypes"])
def test_meta_gradients_are_those_of_the_whole_network(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Deep()
    before = copy.deepcopy(network.state_dict())
    data = data_of(network, tmp_path, layer="last")
    assert data.shape == (3, 4, 4)
    assert data.width == 48
    task, plain = as_batch(data.episode(0, "train", 3)), as_batch(data.data.episode(0, "train", 3))
    part, whole = make(data.remaining_network(), kind), make(copy.deepcopy(network).eval(), kind)
    whole.eval()
    own, all_of_it = part.meta_gradient(task), whole.meta_gradient(plain)
    assert set(own) <= set(all_of_it)
    trained = {name for name in all_of_it if "stem" not in name}
    assert set(own) == trained
    assert any(float(value.abs().max()) > 1e-3 for value in own.values())
    for name, value in own.items():
        torch.testing.assert_close(value, all_of_it[name], rtol=0, atol=1e-9)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert network.training


@pytest.mark.parametrize("layer", ["network.layer4", "network.layer4.1", "network.avgpool", None])
def test_networks_of_torchvision_are_taken_apart(layer: str | None, tmp_path: Path) -> None:
    network = Torchvision("resnet18", ways=2)
    colours = np.repeat(np.pad(IMAGES, ((0, 0), (0, 0), (13, 13), (13, 13))), 3, 1)[:24]
    images = ArrayEpisodes(colours, Y[:24], ways=2, shots=1, queries=2, splits={"train": ["0", "1", "2"]})
    data = FeatureEpisodes(images, network, layer=layer, cache_dir=str(tmp_path))
    rest = data.remaining_network().eval()
    task, plain = data.episode(0, "train", 0), images.episode(0, "train", 0)
    torch.testing.assert_close(rest(task.query.x), network.eval()(plain.query.x), rtol=1e-4, atol=1e-4)
    assert {name for name, _ in rest.named_parameters()} <= {name for name, _ in network.named_parameters()}


def test_a_head_alone_remains_without_a_layer(tmp_path: Path) -> None:
    network = MLP(inputs=36, outputs=2, hidden=[7])
    data = data_of(network, tmp_path)
    rest = data.remaining_network()
    assert [name for name, _ in rest.named_parameters()] == ["head.weight", "head.bias"]
    assert rest.get_submodule("head").weight is not network.head.weight


class Joined(nn.Module):
    """What a list of layers does not say."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.first, self.second, self.head = nn.Linear(36, 5), nn.Linear(5, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        z = self.first(x.flatten(1)).relu()
        more = {"skip": lambda: z + self.second(z),
                "function": lambda: self.second(z).tanh(), "input": lambda: self.second(z) + x.mean(),
                "parallel": lambda: self.second(z) * self.first(x.flatten(1))}  # fmt: skip
        return self.head(more[self.kind]())


@pytest.mark.parametrize("kind", ["skip", "function", "input", "parallel"])
def test_other_networks_are_refused(kind: str, tmp_path: Path) -> None:
    data = data_of(Joined(kind), tmp_path, layer="second")
    with pytest.raises(ConfigError, match="after it Joined does more than run its layers in their order") as caught:
        data.remaining_network()
    assert "\n" not in str(caught.value)
    assert data_of(Joined(kind), tmp_path).remaining_network() is not None  # its head is a head


def test_outputs_leave_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing remains; set layer"):
        data_of(nn.Sequential(nn.Flatten(), nn.Linear(36, 4)), tmp_path).remaining_network()


def test_maps_are_maps(tmp_path: Path) -> None:
    encoder = Conv4(ways=2, in_channels=1, hidden=4, image_size=16)
    x = np.pad(IMAGES, ((0, 0), (0, 0), (5, 5), (5, 5)))
    data = data_of(encoder, tmp_path, x, layer="body.2")
    task, plain = data.episode(0, "test", 0), data.data.episode(0, "test", 0)
    expected = copy.deepcopy(encoder).eval().body[:2](plain.support.x)
    assert data.shape == tuple(expected.shape[1:])
    torch.testing.assert_close(task.support.x, expected)
