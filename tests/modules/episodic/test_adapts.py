"""Which parameters adapt is an argument: names, patterns and words, on networks of the user's own."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metalearn import ANIL, MAML, MLP, Batch, ConfigError
from metalearn.inner import FeatureLearner
from metalearn.inner.parts import Part
from tests.algorithms import Smooth
from tests.networks import TinyConv, noise_episode


class Tied(nn.Module):
    """An encoder, its transpose as a decoder by the same weight, and a head that is not called so."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 4)
        self.layer1 = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
        self.layer2 = nn.Sequential(nn.Linear(4, 4), nn.GroupNorm(2, 4))
        self.again = nn.Linear(4, 4, bias=False)
        self.again.weight = self.stem.weight
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.again(self.layer2(self.layer1(self.stem(x))).tanh()))


ALL = [name for name, _ in Tied().named_parameters()]


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        ("all", ALL),
        ("fc.bias", ["fc.bias"]),
        ("layer1", [name for name in ALL if name.startswith("layer1.")]),
        ("layer[12].0", ["layer1.0.weight", "layer1.0.bias", "layer2.0.weight", "layer2.0.bias"]),
        ("*.0.bias", ["layer1.0.bias", "layer2.0.bias"]),
        ("head", ["fc.weight", "fc.bias"]),
        ("body", ALL[:-2]),
        ("norm", ["layer1.1.weight", "layer1.1.bias", "layer2.1.weight", "layer2.1.bias"]),
        ("bias", [name for name in ALL if name.endswith("bias")]),
        ("again", ["stem.weight"]),
        (["layer2", "head", "!bias"], ["layer2.0.weight", "layer2.1.weight", "fc.weight"]),
        (["!layer*", "layer1.0"], ["stem.weight", "stem.bias", "layer1.0.weight", "layer1.0.bias", "fc.weight", "fc.bias"]),
    ],
)  # fmt: skip
def test_a_pattern_is_a_name_a_submodule_a_glob_or_a_word(patterns: Any, names: list[str]) -> None:
    assert Part.of(patterns).find(Tied()) == names


@pytest.mark.parametrize(
    ("adapts", "line"),
    [
        ("layer3", "adapts has 'layer3', but no tensor of Tied is meant by that; did you mean 'layer1'?"),
        (["fc", "!hed"], "did you mean 'head'?"),
        ("zzzzz", "there are stem, layer1, layer2, again, fc"),
        (["bias", "!all"], "that leaves no tensor of Tied"),
        ([], "adapts is [], but it must be a name"),
        (3, "adapts is 3, but it must be a name"),
        (["fc", ""], "but it must be a name"),
    ],
)
def test_a_pattern_that_fits_nothing_is_one_line(adapts: Any, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        MAML(Tied(), adapts=adapts)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_network_without_a_linear_head_is_one_line() -> None:
    network = nn.Sequential(nn.Conv2d(1, 3, 8), nn.Flatten())
    with pytest.raises(ConfigError, match="neither a submodule called head nor a torch.nn.Linear; name .* one of 0, 1"):
        MAML(network, adapts="body")
    assert [*MAML(network, adapts="0").adaptation.learner.able()] == ["0.weight", "0.bias"]


@pytest.mark.parametrize("norm", ["transductive", "support"])
def test_the_head_alone_is_anil_with_features_computed_once(norm: Any) -> None:
    episode = noise_episode(2)
    modules = [
        kind(TinyConv().double(), inner_steps=2, norm=norm, **options)
        for kind, options in ((ANIL, {}), (MAML, {"adapts": "head"}))
    ]
    modules[1].load_state_dict(modules[0].state_dict())
    grads = [module.double().meta_gradient(episode) for module in modules]
    assert all(torch.equal(grads[0][name], value) for name, value in grads[1].items())
    calls: list[nn.Module] = []
    modules[1].backbone.get_submodule("body.0").register_forward_hook(lambda *_: calls.append(_[0]))
    modules[1].adapt(Batch(episode.support.x[0], episode.support.y[0]), steps=9)
    before = len(calls)
    modules[1].adapt(Batch(episode.support.x[0], episode.support.y[0]), steps=2)
    assert len(calls) - before <= before
    learner = modules[1].adaptation.learner
    assert isinstance(learner.specialised(learner.outer(), episode.support.x[0], "as_it_is"), FeatureLearner)


@pytest.mark.parametrize("adapts", ["body", "bias", ["body.1", "head.bias"], "head.weight"])
def test_what_does_not_adapt_stays_and_is_still_trained(adapts: Any) -> None:
    module = MAML(Smooth(), adapts=adapts, inner_lr=0.5)
    episode = noise_episode(1, dtype=torch.float32)
    adapted = module.adapt(Batch(episode.support.x[0], episode.support.y[0]))
    meant = set(Part.of(adapts).find(module.backbone))
    before = dict(module.backbone.named_parameters())
    assert {name for name, value in adapted.params.items() if not torch.equal(value, before[name])} == meant
    assert all(float(grad.abs().max()) > 0 for grad in module.meta_gradient(episode).values())


def test_the_log_says_what_adapts_and_which_layer_is_the_head(caplog: pytest.LogCaptureFixture) -> None:
    network = Tied()
    with caplog.at_level(logging.INFO):
        x, y = torch.randn(6, 4), torch.arange(3).repeat(2)
        MAML(network, adapts="head").adapt(Batch(x, y))
    assert "MAML: 15 of the network's 91 weights adapt; the head is 'fc', the last torch.nn.Linear" in caplog.text


def test_a_head_that_does_not_adapt_cannot_be_widened() -> None:
    with pytest.raises(ConfigError, match="does not adapt, so that its rows would stay alike"):
        MAML(MLP(3, 4), adapts="body").adapt(Batch(torch.randn(5, 4), torch.arange(5)), ways=5)


def test_patterns_follow_layers_that_are_replaced() -> None:
    network = Tied()
    module = MAML(network, adapts="head", inner_lr="learn")
    network.fc = nn.Linear(4, 3, bias=False)
    assert [*module.adaptation.learner.able()] == ["fc.weight"]
