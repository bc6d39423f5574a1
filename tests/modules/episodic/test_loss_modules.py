"""A loss that is a module: its parameters are outer ones, held against a plain loop of autograd."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from metalearn import ANIL, MAML, Batch, ConfigError, Episode, Pooled
from tests.modules.episodic.test_evaluation import NoiseTasks, trainer
from tests.networks import noise_episode


class LearnedLoss(nn.Module):
    """Cross-entropy of a learned mixture of the outputs, with weights of the classes."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.mix = nn.Linear(3, 3)
        self.register_buffer("weight", torch.tensor([1.0, 2.0, 0.5]))

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(self.mix(self.scale * outputs), targets, weight=self.weight)


class Small(nn.Module):
    """A body and a head."""

    def __init__(self, inputs: int = 5) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(inputs, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x.flatten(1)).tanh())


def plain_gradient(net: nn.Module, loss: nn.Module, episode: Episode, adapts: str, steps: int) -> dict[str, Tensor]:
    """The meta-gradient by nothing but autograd."""
    outer = {f"backbone.{name}": value for name, value in net.named_parameters()}
    outer |= {f"loss.{name}": value for name, value in loss.named_parameters()}
    total = torch.zeros((), dtype=torch.float64)
    for x, y, xq, yq in zip(*episode.support, *episode.query, strict=True):
        weights = dict(net.named_parameters())
        names = [name for name in weights if name.startswith(adapts)]
        for _ in range(steps):
            inner = loss(functional_call(net, weights, (x,)), y)
            grads = torch.autograd.grad(inner, [weights[name] for name in names], create_graph=True)
            weights |= {name: weights[name] - 0.1 * grad for name, grad in zip(names, grads, strict=True)}
        total = total + loss(functional_call(net, weights, (xq,)), yq) / len(episode.support.x)
    return dict(zip(outer, torch.autograd.grad(total, list(outer.values())), strict=True))


@pytest.mark.parametrize(
    ("kind", "execution", "memory"),
    [*itertools.product([MAML, ANIL], ["sequential", "vectorized"], ["store", "remat", "mixed"])],
)
def test_parameters_of_a_loss_get_their_exact_meta_gradient(kind: type[MAML], execution: str, memory: str) -> None:
    torch.manual_seed(0)
    net, loss, episode = Small(), LearnedLoss(), noise_episode(4, shape=(5,))
    module = kind(net, inner_steps=2, inner_lr=0.1, loss=loss, execution=execution, memory=memory).double()  # type: ignore[arg-type]
    found = module.meta_gradient(episode)
    expected = plain_gradient(net, loss, episode, "" if kind is MAML else "head", 2)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-12, msg=name)
    assert module.choice is not None
    assert module.choice[:2] == (execution, memory)


@pytest.mark.parametrize("kind", [MAML, Pooled])
def test_a_trained_loss_is_saved_and_has_to_be_passed_again(kind: type[MAML], tmp_path: Path) -> None:
    loss = LearnedLoss()
    module = kind(Small(64), inner_steps=1, inner_lr=0.1, loss=loss, outer_optimizer=lambda p: torch.optim.SGD(p, 0.1))
    run = trainer(tmp_path, limit_val_batches=0)
    run.fit(module, datamodule=NoiseTasks(train_tasks=8))
    assert loss.scale.item() != 2.0
    run.save_checkpoint(tmp_path / "module.ckpt")
    again = kind.load_from_checkpoint(tmp_path / "module.ckpt", backbone=Small(64), loss=LearnedLoss())
    assert again.loss.scale.item() == loss.scale.item()


def test_a_loss_is_cast_with_its_module() -> None:
    """Under bf16 it still computes in float32."""
    episode = noise_episode(2, shape=(5,), dtype=torch.float32)
    half = Episode(*(Batch(x.bfloat16(), y) for x, y in episode))
    wide = MAML(Small(), inner_steps=1, inner_lr=0.1, loss=LearnedLoss())
    narrow = MAML(Small(), inner_steps=1, inner_lr=0.1, loss=LearnedLoss())
    narrow.load_state_dict(wide.state_dict())
    narrow.bfloat16()
    wide.load_state_dict({name: value.float() for name, value in narrow.state_dict().items()})
    found = narrow.training_step(half, 0)
    assert found.dtype == torch.float32
    assert float(found.detach()) == pytest.approx(float(wide.training_step(episode, 0).detach()), rel=0.05)


def test_losses_that_cannot_be_trained_exactly() -> None:
    net = Small()

    class Decay(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return F.cross_entropy(outputs, targets) + sum(value.square().sum() for value in self.net.parameters())

    with pytest.raises(ConfigError, match=r"loss shares its parameter net\.body\.weight with the backbone"):
        MAML(net, loss=Decay())
    with pytest.raises(ConfigError, match=r"loss is the class MSELoss.*use loss=MSELoss\(\)"):
        MAML(net, loss=nn.MSELoss)
