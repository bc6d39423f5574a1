"""Inner optimisers against torch.optim's own, weight decay and clipping, learned step sizes and MAML++."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from metalearn import ANIL, MAML, Batch, ConfigError, MetaModule
from metalearn.inner import Adam, AdamW, Momentum, UpdateRule
from tests.modules.episodic.test_evaluation import NoiseTasks, trainer
from tests.modules.episodic.test_meta_gradient import largest_error
from tests.networks import TinyConv, noise_episode

Params = dict[str, Tensor]
LR = 0.05


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3)).double()


STOCK: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, LR),
    "momentum": lambda p: torch.optim.SGD(p, LR, momentum=0.9),
    "nesterov": lambda p: torch.optim.SGD(p, LR, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, LR),
    "adamw": lambda p: torch.optim.AdamW(p, LR),
}


@pytest.mark.parametrize("name", STOCK)
def test_a_rule_walks_as_its_torch_optimiser(name: str) -> None:
    net, episode = mlp(), noise_episode(tasks=1, shape=(3,))
    support = Batch(episode.support.x[0], episode.support.y[0])
    adapted = MAML(copy.deepcopy(net), inner_steps=4, inner_lr=LR, inner_optimizer=name).adapt(support)
    optimizer = STOCK[name](net.parameters())
    for _ in range(4):
        optimizer.zero_grad()
        F.cross_entropy(net(support.x), support.y).backward()
        optimizer.step()
    for key, value in net.named_parameters():
        torch.testing.assert_close(adapted.params[key], value.detach(), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("execution", ["sequential", "vectorized"])
@pytest.mark.parametrize("name", [*STOCK, "torch.optim.Adagrad"])
def test_the_meta_gradient_of_a_rule_is_that_of_finite_differences(name: str, execution: str) -> None:
    if name.startswith("torch"):
        pytest.importorskip("higher", reason="higher is not installed: pip install 'metalearn-lightning[higher]'")
    net, episode = mlp(), noise_episode(shape=(3,))
    module = MAML(
        net, inner_steps=3, inner_lr="learn", initial_inner_lr=LR, inner_optimizer=name, execution=execution,  # type: ignore[arg-type]
        inner_weight_decay=0.3, inner_clip_norm=0.4,
    ).double()  # fmt: skip
    found = module.meta_gradient(episode)
    assert module.choice is not None
    # what fails in the stack is run one after the other, as is what goes by way of higher
    assert module.choice.name == ("sequential" if name.startswith("torch") else execution)
    for key, parameter in module.named_parameters():
        flat, step = parameter.data.view(-1), 1e-6
        values = []
        for delta in (step, -2 * step):
            flat[0] += delta
            values.append(float(module.meta_loss(episode).loss.detach()))
        flat[0] += step
        assert (values[0] - values[1]) / (2 * step) == pytest.approx(
            float(found[key].view(-1)[0]), rel=2e-5, abs=1e-9
        ), key


DECAYED: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, LR, weight_decay=2.0),
    "momentum": lambda p: torch.optim.SGD(p, LR, momentum=0.9, weight_decay=2.0),
    "nesterov": lambda p: torch.optim.SGD(p, LR, momentum=0.9, nesterov=True, weight_decay=2.0),
    "adam": lambda p: torch.optim.Adam(p, LR, weight_decay=2.0),
    "adamw": lambda p: torch.optim.AdamW(p, LR, weight_decay=2.0),
    # by way of higher, whose formulas of the other optimisers put eps elsewhere than torch does (1e-8 apart)
    "torch.optim.SGD": lambda p: torch.optim.SGD(p, LR, weight_decay=2.0),
}


@pytest.mark.parametrize("bound", [0.4, 1e-7, None])
@pytest.mark.parametrize("name", DECAYED)
def test_clipping_and_decay_are_those_of_the_torch_optimiser(name: str, bound: float | None) -> None:
    """``clip_grad_norm_``, then ``step``, which adds the decay."""
    if name.startswith("torch"):
        pytest.importorskip("higher", reason="higher is not installed: pip install 'metalearn-lightning[higher]'")
    net, episode = mlp(), noise_episode(tasks=1, shape=(3,))
    support = Batch(episode.support.x[0], episode.support.y[0])
    module = MAML(
        copy.deepcopy(net),
        inner_steps=4,
        inner_lr=LR,
        inner_optimizer=name,
        inner_weight_decay=2.0,
        inner_clip_norm=bound,
    )
    adapted = module.adapt(support)
    optimizer, norms = DECAYED[name](net.parameters()), []
    for _ in range(4):
        optimizer.zero_grad()
        F.cross_entropy(net(support.x), support.y).backward()
        if bound is not None:
            norms.append(float(torch.nn.utils.clip_grad_norm_(net.parameters(), bound)))
        optimizer.step()
    assert bound is None or max(norms) > bound
    for key, value in net.named_parameters():
        torch.testing.assert_close(adapted.params[key], value.detach(), rtol=1e-9, atol=1e-10)


def torch_move(name: str, count: int, grad: Tensor, state: list[Tensor]) -> Tensor:
    """The direction of torch's step number ``count`` in the formulas of its documentation; ``state`` is written."""
    if name == "sgd":
        return grad
    if name in ("momentum", "nesterov"):
        state[:] = [0.9 * state[0] + grad if state else grad]
        return grad + 0.9 * state[0] if name == "nesterov" else state[0]
    first, second = state or (torch.zeros_like(grad), torch.zeros_like(grad))
    state[:] = [0.9 * first + 0.1 * grad, 0.999 * second + 0.001 * grad * grad]
    return state[0] / (1 - 0.9**count) / ((state[1] / (1 - 0.999**count)).sqrt() + 1e-8)


@pytest.mark.parametrize("memory", ["store", "remat"])
@pytest.mark.parametrize("execution", ["sequential", "vectorized"])
@pytest.mark.parametrize("name", STOCK)
def test_the_meta_gradient_of_clipped_and_decayed_steps_is_that_of_a_plain_loop(
    name: str, execution: str, memory: str
) -> None:
    net, episode = mlp(), noise_episode(shape=(3,))
    rate, bound, lr = 0.5, 0.45, 0.3
    total = torch.zeros((), dtype=torch.float64)
    outer = dict(net.named_parameters())
    clipped = []
    for task in range(3):
        params = outer
        states: dict[str, list[Tensor]] = {key: [] for key in outer}
        for count in (1, 2, 3):
            loss = F.cross_entropy(functional_call(net, params, (episode.support.x[task],)), episode.support.y[task])
            found = torch.autograd.grad(loss, list(params.values()), create_graph=True)
            norm = torch.cat([g.flatten() for g in found]).norm()
            clipped.append(bool(norm > bound))
            moved = {}
            for (key, value), g in zip(params.items(), found, strict=True):
                g = g * (bound / (norm + 1e-6)).clamp(max=1.0)
                g, kept = (g, value * (1 - lr * rate)) if name == "adamw" else (g + rate * value, value)
                moved[key] = kept - lr * torch_move(name, count, g, states[key])
            params = moved
        query = functional_call(net, params, (episode.query.x[task],))
        total = total + F.cross_entropy(query, episode.query.y[task]) / 3
    assert len(set(clipped)) == 2, "both branches must be met"
    grads = torch.autograd.grad(total, list(outer.values()))
    expected = {f"backbone.{key}": grad for key, grad in zip(outer, grads, strict=True)}
    module = MAML(
        copy.deepcopy(net), inner_steps=3, inner_lr=lr, execution=execution, inner_optimizer=name,  # type: ignore[arg-type]
        inner_weight_decay=rate, inner_clip_norm=bound, memory=memory,  # type: ignore[arg-type]
    )  # fmt: skip
    assert largest_error(module.meta_gradient(episode), expected) < 1e-9
    assert module.choice is not None
    assert module.choice.name == execution


def test_a_vanishing_gradient_is_clipped_without_nan() -> None:
    """The norm has no derivative at 0: here the loss is flat at the start."""
    net, episode = mlp(), noise_episode(shape=(3,))
    module = MAML(
        net, inner_steps=2, inner_clip_norm=0.1, inner_weight_decay=0.1, loss=lambda out, _: out.square().mean()
    )
    for value in net.parameters():
        value.data.zero_()
    found = module.meta_gradient(episode)
    assert all(bool(grad.isfinite().all()) for grad in found.values())


def test_a_tensor_that_never_moves_gives_adam_no_nan() -> None:
    """The gradient of a bias times 0 is 0 at every step, where the root of the second moment has no derivative."""

    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.idle = mlp(), nn.Parameter(torch.ones(3, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x) + 0.0 * self.idle

    module = MAML(Idle(), inner_steps=2, inner_lr=LR, inner_optimizer="adam")
    found = module.meta_gradient(noise_episode(shape=(3,)))
    assert all(bool(grad.isfinite().all()) for grad in found.values())
    assert float(found["backbone.idle"].abs().max()) == 0.0


@pytest.mark.parametrize(
    "rule",
    [Momentum(0.5, nesterov=True), Adam((0.8, 0.9), 1e-3), AdamW(weight_decay=0.5)],
    ids=lambda r: type(r).__name__,
)
def test_a_rule_with_its_own_arguments_survives_a_checkpoint(rule: UpdateRule, tmp_path: Path) -> None:
    module = MAML(TinyConv(), inner_steps=1, inner_lr=LR, inner_optimizer=rule)
    run = trainer(tmp_path, limit_val_batches=0)
    run.fit(module, datamodule=NoiseTasks(train_tasks=4))
    run.save_checkpoint(tmp_path / "module.ckpt")
    again = MAML.load_from_checkpoint(tmp_path / "module.ckpt", backbone=TinyConv())
    assert again.adaptation.method.rule == rule


@pytest.mark.parametrize("kind", [MAML, ANIL])
@pytest.mark.parametrize("inner_lr", ["learn_per_step", "learn_per_element"])
def test_learned_sizes_get_their_gradient(kind: type[MetaModule], inner_lr: str) -> None:
    module = kind(TinyConv().double(), inner_steps=2, inner_lr=inner_lr, initial_inner_lr=0.2).double()  # type: ignore[call-arg]
    episode = noise_episode()
    found = module.meta_gradient(episode)
    checked = 0
    for name, parameter in module.named_parameters():
        if not name.startswith("solver."):
            continue
        flat, values = parameter.data.view(-1), []
        for delta in (1e-5, -2e-5):
            flat[-1] += delta
            values.append(float(module.meta_loss(episode).loss.detach()))
        flat[-1] += 1e-5
        assert (values[0] - values[1]) / 2e-5 == pytest.approx(float(found[name].view(-1)[-1]), rel=1e-5, abs=1e-10), (
            name
        )
        checked += 1
    assert checked == (1 if inner_lr == "learn_per_step" else 2 if kind is ANIL else 8)


def test_a_mapping_gives_parts_of_the_network_their_sizes() -> None:
    module = MAML(TinyConv(), inner_lr={"": 0.1, "body": 0.2, "body.4": 0.3})
    (sizes,) = module.step_sizes()
    assert sizes["head.weight"] == 0.1
    assert sizes["body.0.weight"] == 0.2
    assert sizes["body.4.weight"] == 0.3
    for wrong, message in (({"body": 0.1}, "no step size for head"), ({"": 0.1, "tail": 0.2}, "inner_lr names 'tail'")):
        with pytest.raises(ConfigError, match=message):
            MAML(TinyConv(), inner_lr=wrong)


def test_chunks_of_the_support_set_add_up() -> None:
    """Without batch statistics the mean of the chunks' gradients, weighted by their sizes, is the gradient."""
    net, episode = mlp(), noise_episode(shape=(3,))
    whole, parts = (MAML(copy.deepcopy(net), inner_steps=2, inner_lr=0.3, support_chunk=c) for c in (None, 4))
    assert largest_error(parts.meta_gradient(episode), whole.meta_gradient(episode)) < 1e-12


@pytest.mark.parametrize("execution", ["sequential", "vectorized"])
def test_the_multi_step_loss_is_that_of_a_plain_loop(execution: str) -> None:
    net, episode = mlp(), noise_episode(shape=(3,))
    module = MAML(copy.deepcopy(net), inner_steps=3, inner_lr=0.3, multi_step_loss=10, execution=execution)  # type: ignore[arg-type]
    assert module.multi_step_weights(0) == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3])
    assert module.multi_step_weights(5) == pytest.approx([0, 1 / 6, 1 / 6, 2 / 3])
    assert module.multi_step_weights(10) is None
    outer, total = dict(net.named_parameters()), torch.zeros((), dtype=torch.float64)
    for task in range(3):
        params = outer
        for _ in range(3):
            loss = F.cross_entropy(functional_call(net, params, (episode.support.x[task],)), episode.support.y[task])
            grads = torch.autograd.grad(loss, list(params.values()), create_graph=True)
            params = {k: p - 0.3 * g for (k, p), g in zip(params.items(), grads, strict=True)}
            total = (
                total
                + F.cross_entropy(functional_call(net, params, (episode.query.x[task],)), episode.query.y[task]) / 9
            )
    expected = {
        f"backbone.{k}": g for k, g in zip(outer, torch.autograd.grad(total, list(outer.values())), strict=True)
    }
    assert float(module.meta_loss(episode).loss.detach()) == pytest.approx(float(total.detach()))
    assert largest_error(module.meta_gradient(episode), expected) < 1e-9


def test_statistics_are_kept_for_each_inner_step(tmp_path: Path) -> None:
    """Training writes step by step what it normalises by, adaptation reads it and writes nothing, checkpoints hold it."""
    torch.manual_seed(0)
    module = MAML(TinyConv(), inner_steps=2, inner_lr=0.3, norm="per_step", memory="remat")
    episode = noise_episode(tasks=1, dtype=torch.float32)
    step_mean, step_var = module.norm_statistics.of("body.1")
    assert step_mean.shape == (3, 4)
    module.meta_gradient(episode)
    assert float(step_mean.abs().sum()) == 0.0  # only a training step writes
    module.training_step(episode, 0)
    convolved = F.conv2d(episode.support.x[0], module.backbone.body[0].weight, None, 1, 1)
    torch.testing.assert_close(step_mean[0], 0.1 * convolved.mean((0, 2, 3)).detach())  # momentum 0.1, written once
    torch.testing.assert_close(step_var[0], 0.9 + 0.1 * convolved.var((0, 2, 3), correction=0).detach())
    assert not torch.equal(step_mean[1], step_mean[0])
    before = {name: value.clone() for name, value in module.state_dict().items()}
    support = Batch(episode.support.x[0], episode.support.y[0])
    adapted = module.adapt(support, steps=4)  # more than in training: the last statistics serve
    together = adapted(episode.query.x[0])
    torch.testing.assert_close(torch.cat([adapted(x[None]) for x in episode.query.x[0]]), together)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    run = trainer(tmp_path, limit_val_batches=1)
    run.fit(module, datamodule=NoiseTasks(train_tasks=4))
    run.test(module, datamodule=NoiseTasks(train_tasks=4), verbose=False)
    run.save_checkpoint(tmp_path / "module.ckpt")
    again = MAML.load_from_checkpoint(tmp_path / "module.ckpt", backbone=TinyConv())
    assert torch.equal(again.norm_statistics.of("body.1")[0], step_mean)
    old = torch.load(tmp_path / "module.ckpt", weights_only=True)  # as versions wrote it that kept them in the network
    for kind in ("step_mean", "step_var"):
        for layer in (1, 5):
            old["state_dict"][f"backbone.body.{layer}.{kind}"] = old["state_dict"].pop(
                f"norm_statistics.body/{layer}:{kind}"
            )
    torch.save(old, tmp_path / "old.ckpt")
    again = MAML.load_from_checkpoint(tmp_path / "old.ckpt", backbone=TinyConv())
    assert torch.equal(again.norm_statistics.of("body.1")[0], step_mean)


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Flatten(), nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"inner_weight_decay": -1.0}, "inner_weight_decay is -1.0, .*at least 0"),
        ({"inner_clip_norm": 0.0}, "inner_clip_norm is 0.0, .*above 0"),
        ({"support_chunk": 0}, "support_chunk is 0"),
        ({"multi_step_loss": 0}, "multi_step_loss is 0"),
        ({"tasks_at_once": 0}, "tasks_at_once is 0"),
        ({"inner_optimizer": "torch.optim.Nothing"}, "torch.optim has no such optimiser"),
        ({"compile": True, "multi_step_loss": 10}, "compile is True with multi_step_loss"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        MAML(TinyConv(), **arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Momentum(momentum=1.0), "momentum is 1.0, .*below 1"),
        (lambda: Adam(betas=(0.9, -0.1)), r"betas\[1\] is -0.1"),
        (lambda: AdamW(weight_decay=-1.0), "weight_decay is -1.0"),
        (
            lambda: MAML(TinyConv(), inner_optimizer=AdamW(weight_decay=0.5), inner_weight_decay=0.1),
            "inner_weight_decay is 0.1, but AdamW's own weight_decay is 0.5; leave one of them out",
        ),
        (
            lambda: ANIL(TwoHeads(), head_solver="ridge"),
            "'head' is a Sequential, and only a torch.nn.Linear is solved for",
        ),
        (lambda: ANIL(TinyConv(), head_solver="ridge", inner_lr="learn"), "inner_lr is given with head_solver='ridge'"),
        (lambda: ANIL(TinyConv(), head_solver="ridge", initial_ridge=0.0), "initial_ridge is 0.0"),
    ],
)
def test_bad_rules_and_heads(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        build()
    assert "\n" not in str(caught.value)
