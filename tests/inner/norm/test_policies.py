"""Every policy of batch normalisation against a loop written out, and modules of several policies over one network."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn import MAML, Batch, Conv4, Episode
from metalearn.inner import NormPolicy
from metalearn.inner.norm.moments import compute_moments
from tests.networks import noise_episode

POLICIES: tuple[NormPolicy, ...] = get_args(NormPolicy)
STEPS, LR = 1, 0.2
SHAPE = (1, 16, 16)
Params = dict[str, Tensor]


def forward(
    net: Conv4, params: Params, x: Tensor, moments: dict[int, tuple[Tensor, Tensor]], rows: int | None
) -> Tensor:
    """Conv4 by its formulas; a block whose moments are not given is normalised by those of its first ``rows`` examples."""
    for block in range(4):
        x = F.conv2d(x, params[f"body.{block}.conv.weight"], padding=1)
        own = x[:rows].transpose(0, 1).flatten(1)
        mean, var = moments.get(block, (own.mean(1), own.var(1, correction=0)))
        scale = params[f"body.{block}.norm.weight"] / (var + net.body[block].norm.eps).sqrt()
        x = (x - mean[:, None, None]) * scale[:, None, None] + params[f"body.{block}.norm.bias"][:, None, None]
        x = F.max_pool2d(x, 2).relu()
    return x.flatten(1) @ params["head.weight"].t() + params["head.bias"]


def stored(module: MAML, net: Conv4, step: int) -> dict[int, tuple[Tensor, Tensor]]:
    """The moments that a policy stores for each block, as far as it does."""
    if module.norm == "running":
        return {index: (net.body[index].norm.running_mean, net.body[index].norm.running_var) for index in range(4)}
    if module.norm == "per_step" and not module.training:
        kept = [module.norm_statistics.of(f"body.{index}.norm") for index in range(4)]
        return {index: (mean[step], var[step]) for index, (mean, var) in enumerate(kept)}
    return {}


def by_hand(module: MAML, net: Conv4, support: Batch, query: Tensor) -> Tensor:
    """Query outputs after adaptation, with their graph to the network's parameters."""
    params = dict(net.named_parameters())
    for step in range(STEPS):
        loss = F.cross_entropy(forward(net, params, support.x, stored(module, net, step), None), support.y)
        grads = torch.autograd.grad(loss, list(params.values()), create_graph=True)
        params = {name: value - LR * grad for (name, value), grad in zip(params.items(), grads, strict=True)}
    joined = torch.cat([support.x, query]) if module.norm == "support" else query
    rows = len(support.x) if module.norm == "support" else None
    return forward(net, params, joined, stored(module, net, STEPS), rows)[-len(query) :]


def build(net: Conv4, policy: NormPolicy) -> MAML:
    module = MAML(net, inner_steps=STEPS, inner_lr=LR, norm=policy, execution="sequential")
    if module.norm_statistics is not None:
        for value in module.norm_statistics.buffers():
            value.add_(0.1 * torch.rand_like(value))
    return module


def network() -> Conv4:
    torch.manual_seed(0)
    net = Conv4(3, hidden=36, image_size=16).double()
    for block in net.body[:4]:
        block.norm.running_mean.normal_(std=0.1)
        block.norm.running_var.uniform_(0.5, 1.5)
    return net


def check(module: MAML) -> None:
    module.eval()
    support, query = (Batch(role.x[0], role.y[0]) for role in noise_episode(shape=SHAPE))
    outputs = module.adapt(support)(query.x)
    torch.testing.assert_close(
        outputs, by_hand(module, module.backbone, support, query.x).detach(), rtol=1e-9, atol=1e-9
    )


def test_modules_over_one_network_keep_their_policies() -> None:
    """Each is made before and after each other one, and used before and after it."""
    net = network()
    modules = [build(net, policy) for policy in (*POLICIES, *reversed(POLICIES))]
    random.Random(0).shuffle(modules)
    for module in [*modules, *reversed(modules)]:
        check(module)
    assert sorted(module.norm for module in modules) == sorted(2 * POLICIES)


def test_copies_and_what_is_loaded_keep_their_policies_beside_others(tmp_path: Path) -> None:
    net, path = network(), tmp_path / "weights.pt"
    for policy in POLICIES:
        module = build(net, policy)
        other = build(net, "support" if policy == "transductive" else "transductive")
        twin, again = copy.deepcopy(module), build(other.backbone, policy)
        torch.save(module.state_dict(), path)
        again.load_state_dict(torch.load(path, weights_only=True))
        for used in (twin, again, other, module):
            check(used)


@pytest.mark.parametrize("policy", POLICIES)
def test_the_meta_gradient_is_that_of_the_policy(policy: NormPolicy) -> None:
    net, episode = network(), noise_episode(tasks=2, shape=SHAPE)
    module = MAML(net, inner_steps=STEPS, inner_lr=LR, norm=policy, execution="vectorized")
    total = sum(
        F.cross_entropy(by_hand(module, net, Batch(x, y), query), targets)
        for x, y, query, targets in zip(*episode.support, *episode.query, strict=True)
    )
    expected = torch.autograd.grad(total / 2, list(net.parameters()))
    for value, exact in zip(module.meta_gradient(episode).values(), expected, strict=True):
        assert float((value - exact).norm()) < 1e-9 * float(exact.norm())


def test_the_policy_of_a_module_is_not_to_be_written_over() -> None:
    """It would be believed by nobody else."""
    module = MAML(network())
    with pytest.raises(AttributeError):
        module.norm = "support"  # type: ignore[misc]
    assert module.norm == "transductive"


def test_statistics_of_steps_are_those_of_the_passes_that_training_makes() -> None:
    """Each number of inner steps has its own; a second pass for the meta-gradient writes none."""
    net, episode = network(), noise_episode(tasks=1, shape=SHAPE)
    support = Batch(episode.support.x[0], episode.support.y[0])
    for memory in ("store", "remat", "mixed"):
        module = MAML(copy.deepcopy(net), inner_steps=1, inner_lr=LR, norm="per_step", memory=memory)  # type: ignore[arg-type]
        module.training_step(Episode(*episode), 0).backward()
        images = F.conv2d(support.x, module.backbone.body[0].conv.weight, padding=1).transpose(0, 1).flatten(1)
        mean, var = module.norm_statistics.of("body.0.norm")
        torch.testing.assert_close(mean[0], 0.1 * images.mean(1).detach())
        torch.testing.assert_close(var[0], 0.9 + 0.1 * images.var(1, correction=0).detach())


def test_a_network_may_be_one_normalisation() -> None:
    """Its layer has an empty name; in evaluation it is normalised by what was kept for it, which is nothing yet."""
    module = MAML(torch.nn.BatchNorm1d(3).double(), inner_steps=1, inner_lr=0.0001, norm="per_step").eval()
    x = torch.randn(6, 3, dtype=torch.float64)
    outputs = module.adapt(Batch(x, torch.arange(3).repeat(2)), steps=0)(x)
    torch.testing.assert_close(outputs, x / (1 + module.backbone.eps) ** 0.5)


def test_short_floats_are_summed_in_longer_ones() -> None:
    """A mean in bf16 would have an error of 4e-3."""
    x = 1.0 + torch.rand(8, 2, 14, 14).to(torch.bfloat16)
    rows = x.double().transpose(0, 1).flatten(1)
    mean, var = compute_moments(x)
    torch.testing.assert_close(mean.double(), rows.mean(1), rtol=1e-5, atol=0.0)
    torch.testing.assert_close(var.double(), rows.var(1, correction=0), rtol=1e-4, atol=0.0)
