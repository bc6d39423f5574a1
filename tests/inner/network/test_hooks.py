"""Hooks of the caller's network, of every kind and registered at any time, see and change what they would without us."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metalearn import ANIL, MAML, Batch, ConfigError
from tests.modules.episodic.test_meta_gradient import largest_error, plain_loop
from tests.networks import TinyConv, noise_episode

KINDS: dict[str, Callable[[nn.Module], Any]] = {
    "forward_pre": lambda layer: layer.register_forward_pre_hook(lambda _, args: (args[0] * 1.3,)),
    "forward_pre_with_kwargs": lambda layer: layer.register_forward_pre_hook(
        lambda _, args, keywords: ((args[0] * 1.3,), keywords), with_kwargs=True
    ),
    "forward": lambda layer: layer.register_forward_hook(lambda _, args, out: out * 1.5 + 0.1),
    "forward_with_kwargs": lambda layer: layer.register_forward_hook(
        lambda _, args, keywords, out: out * 1.5 + 0.1, with_kwargs=True
    ),
    "forward_always_called": lambda layer: layer.register_forward_hook(
        lambda _, args, out: out * 1.5 + 0.1, always_call=True
    ),
    "full_backward_pre": lambda layer: layer.register_full_backward_pre_hook(lambda _, grads: (grads[0] * 1.5,)),
    "full_backward": lambda layer: layer.register_full_backward_hook(
        lambda _, grads, __: tuple(None if grad is None else grad * 1.5 for grad in grads)
    ),
    "backward": lambda layer: layer.register_backward_hook(
        lambda _, grads, __: tuple(None if grad is None else grad * 1.5 for grad in grads)
    ),
}


@pytest.mark.filterwarnings("ignore:Using a non-full backward hook:FutureWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_a_hook_that_comes_later_changes_what_it_says(kind: str) -> None:
    """The module has run by then, with its blocks as one and tasks together."""
    torch.manual_seed(0)
    net, episode = TinyConv().double(), noise_episode()
    hooked = copy.deepcopy(net)
    module = MAML(net, inner_steps=1, inner_lr=0.1)
    for layer in ("body.1", "head"):
        module.meta_gradient(episode)
        handle = KINDS[kind](net.get_submodule(layer))
        reference = KINDS[kind](hooked.get_submodule(layer))
        expected = plain_loop(hooked, episode, 1, 0.1, first_order=False)
        assert largest_error(module.meta_gradient(episode), expected) < 1e-9
        handle.remove()
        reference.remove()
    assert largest_error(module.meta_gradient(episode), plain_loop(hooked, episode, 1, 0.1, False)) < 1e-9


def test_a_hook_sees_feature_maps_of_one_task_at_a_time() -> None:
    net, episode = TinyConv().double(), noise_episode()
    module = MAML(net, inner_steps=1, inner_lr=0.1)
    module.meta_gradient(episode)
    shapes: set[tuple[int, ...]] = set()
    net.body[3].register_forward_hook(lambda layer, args, out: shapes.update([tuple(args[0].shape), tuple(out.shape)]))
    module.meta_gradient(episode)
    shapes.clear()
    module.meta_gradient(episode)
    module.adapt(Batch(episode.support.x[0], episode.support.y[0]))
    assert shapes == {(6, 4, 8, 8), (6, 4, 4, 4), (9, 4, 8, 8), (9, 4, 4, 4)}


def test_an_adapted_network_obeys_a_hook_that_comes_after_it() -> None:
    torch.manual_seed(0)
    net, episode = TinyConv().double(), noise_episode()
    adapted = MAML(net, inner_steps=1, inner_lr=0.1).adapt(Batch(episode.support.x[0], episode.support.y[0]))
    adapted(episode.query.x[0])
    net.body[1].register_forward_hook(lambda layer, args, out: out.sin() + 0.3)
    expected = torch.func.functional_call(copy.deepcopy(net).train(), adapted.params, (episode.query.x[0],))
    torch.testing.assert_close(adapted(episode.query.x[0]), expected.detach())


def test_a_hook_of_the_head_is_a_part_of_it() -> None:
    torch.manual_seed(0)
    net, episode = TinyConv().double(), noise_episode()
    module = ANIL(net, inner_steps=1, inner_lr=0.1)
    module.meta_gradient(episode)
    net.head.register_forward_hook(lambda layer, args, out: out.sin() + args[0].mean(1, keepdim=True))
    expected = plain_loop(copy.deepcopy(net), episode, 1, 0.1, False, head="head")
    assert largest_error(module.meta_gradient(episode), expected) < 1e-9


def test_statistics_of_steps_refuse_a_hook_that_comes_later() -> None:
    """It would be lost with the layer that ours stands for."""
    net, episode = TinyConv().double(), noise_episode()
    module = MAML(net, inner_steps=1, inner_lr=0.1, norm="per_step")
    module.meta_gradient(episode)
    net.body[1].register_forward_hook(lambda layer, args, out: 1.5 * out)
    with pytest.raises(ConfigError, match="norm is 'per_step', which needs our copy"):
        module.meta_gradient(episode)


@pytest.mark.parametrize("execution", ["sequential", "vectorized"])
def test_a_hook_of_a_parameter_is_called_once_with_the_meta_gradient(execution: str) -> None:
    """Not with the gradients of inner steps, which are of other tensors."""
    torch.manual_seed(0)
    net, episode = TinyConv().double(), noise_episode()
    expected = plain_loop(copy.deepcopy(net), episode, 2, 0.1, first_order=False)
    module = MAML(net, inner_steps=2, inner_lr=0.1, execution=execution)  # type: ignore[arg-type]
    seen: list[Tensor] = []
    net.head.weight.register_hook(lambda grad: seen.append(grad) or 3.0 * grad)
    module.meta_gradient(episode)
    seen.clear()
    module.training_step(episode, 0).backward()
    assert len(seen) == 1
    torch.testing.assert_close(seen[0], expected["backbone.head.weight"], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(net.head.weight.grad, 3.0 * seen[0])
