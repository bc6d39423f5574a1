"""A network whose last layer has another name: its last linear layer is the head, for every algorithm alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from metalearn import ANIL, MAML, Baseline, BilevelFewShot, ConfigError, MetaModule, ProtoNet
from tests.networks import noise_episode


def unnamed() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.Tanh(), nn.Linear(6, 3)).double()


MODULES: dict[str, Callable[..., MetaModule]] = {
    "anil": lambda net, **head: ANIL(net, inner_steps=2, inner_lr=0.3, **head),
    "ridge": lambda net, **head: ANIL(net, head_solver="ridge", **head),
    "protonet": lambda net, **head: ProtoNet(net, **head),
    "baseline": lambda net, **head: Baseline(net, head_steps=3, **head),
    "cosine": lambda net, **head: Baseline(net, classifier="cosine", head_steps=3, **head),
    "few_shot": lambda net, **head: BilevelFewShot(net, l2=1.0, inner_steps=3, **head),
}  # fmt: skip


@pytest.mark.parametrize("name", list(MODULES))
def test_the_last_linear_layer_is_the_head(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    """With the same gradient and answers as where a user names it, and a line that says so."""
    episode = noise_episode(2)
    by_itself, by_name = MODULES[name](unnamed()), MODULES[name](unnamed(), head="3")
    for key, expected in by_name.meta_gradient(episode).items():
        torch.testing.assert_close(by_itself.meta_gradient(episode)[key], expected, rtol=0, atol=1e-12)
    support, query = (type(role)(role.x[0], role.y[0]) for role in episode)
    adapted = by_itself.adapt(support)
    assert [key for key, _ in adapted.named_parameters()] == ["3.weight", "3.bias"]
    assert torch.equal(adapted(query.x), by_name.adapt(support)(query.x))


def test_the_log_names_it(caplog: pytest.LogCaptureFixture) -> None:
    support = noise_episode(1).support
    for head, says in (("head", True), ("3", False)):
        caplog.clear()
        with caplog.at_level("INFO"):
            ProtoNet(unnamed(), head=head).adapt((support.x[0], support.y[0]))
        assert ("ProtoNet: the head is '3', the last torch.nn.Linear" in caplog.text) is says


def test_the_gradient_is_that_of_maml_restricted_to_it() -> None:
    episode = noise_episode(2)
    expected = MAML(unnamed(), inner_steps=2, inner_lr=0.3, adapts="head").meta_gradient(episode)
    for key, value in MODULES["anil"](unnamed()).meta_gradient(episode).items():
        torch.testing.assert_close(value, expected[key], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", list(MODULES))
def test_a_network_without_a_linear_head_is_one_line(name: str) -> None:
    convolutions = nn.Sequential(nn.Conv2d(1, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    lines: dict[Any, str] = {
        convolutions: "head is 'head', but Sequential has neither a submodule called head nor a torch.nn.Linear; name .*",
        nn.Linear(
            64, 3
        ): r"head is 'head', but the network is a Linear itself, .*; use torch\.nn\.Sequential\(network\)",
    }
    for network, line in lines.items():
        with pytest.raises(ConfigError, match=line) as caught:
            MODULES[name](network)
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="head is 'fc', but Sequential has no submodule of that name"):
        MODULES[name](unnamed(), head="fc")
