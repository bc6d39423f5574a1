"""Which tensors adapt follows ``requires_grad`` at the time; adapting a frozen network needs none of it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import BackboneFinetuning
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import prune
from torch.utils.data import DataLoader

from metalearn import ANIL, MAML, Batch, ConfigError, Episode, MetaModule
from tests.algorithms import ALGORITHMS
from tests.modules.episodic.test_meta_gradient import largest_error
from tests.networks import noise_episode


def network() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential()
    net.add_module("body", nn.Sequential(nn.Linear(4, 5), nn.Tanh()))
    net.add_module("head", nn.Linear(5, 3))
    return net.double()


def loop(
    net: nn.Module, episode: Episode, moving: list[str], sizes: dict[str, float]
) -> tuple[dict[str, Tensor], Tensor]:
    """Two steps on the tensors ``moving``; the meta-gradient of what is trainable, and the first task's query outputs."""
    named = dict(net.named_parameters())
    outer = {name: value for name, value in named.items() if value.requires_grad}
    losses, outputs = [], []
    for xs, ys, xq, yq in zip(*episode.support, *episode.query, strict=True):
        params = {
            name: value if value.requires_grad else value.clone().requires_grad_() for name, value in named.items()
        }
        for _ in range(2):
            loss = F.cross_entropy(functional_call(net, params, (xs,)), ys)
            grads = torch.autograd.grad(loss, [params[name] for name in moving], create_graph=True)
            params |= {name: params[name] - sizes[name] * g for name, g in zip(moving, grads, strict=True)}
        outputs.append(functional_call(net, params, (xq,)))
        losses.append(F.cross_entropy(outputs[-1], yq))
    grads = torch.autograd.grad(torch.stack(losses).mean(), list(outer.values())) if outer else ()
    return {f"backbone.{k}": g for k, g in zip(outer, grads, strict=True)}, outputs[0].detach()


def support(episode: Episode) -> Batch:
    return Batch(episode.support.x[0], episode.support.y[0])


ALL = ["body.0.weight", "body.0.bias", "head.weight", "head.bias"]
HEAD = ALL[2:]


@pytest.mark.parametrize("inner_lr", [0.3, {"": 0.3}, "learn", "learn_per_step", "learn_per_element"])
@pytest.mark.parametrize("kind", [MAML, ANIL])
def test_freezing_and_unfreezing_at_any_time(kind: type[MetaModule], inner_lr: Any) -> None:
    episode = noise_episode(shape=(4,))
    net = network()
    net.body.requires_grad_(False)
    module = kind(net, inner_steps=2, inner_lr=inner_lr, initial_inner_lr=0.3).double()  # type: ignore[call-arg]
    for frozen in ["body.", "", "head.bias", "body.0.weight", "body."]:
        for name, value in net.named_parameters():
            value.requires_grad_(not (frozen and name.startswith(frozen)))
        moving = [name for name in (HEAD if kind is ANIL else ALL) if not frozen or not name.startswith(frozen)]
        expected, outputs = loop(net, episode, moving, dict.fromkeys(ALL, 0.3))
        found = {k: v for k, v in module.meta_gradient(episode).items() if k.startswith("backbone")}
        assert largest_error(found, expected) < 1e-6  # 0.3 in float32, where it is learned
        torch.testing.assert_close(module.adapt(support(episode))(episode.query.x[0]), outputs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "freeze", [lambda m: m.freeze(), lambda m: m.requires_grad_(False), lambda m: m.backbone.requires_grad_(False)]
)
@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_frozen_module_adapts_as_before(name: str, freeze: Callable[[MetaModule], Any]) -> None:
    episode = noise_episode(shape=(4,))
    module = ALGORITHMS[name].make_cheap(network())
    expected = module.adapt(support(episode))(episode.query.x[0])
    freeze(module)
    torch.testing.assert_close(module.adapt(support(episode))(episode.query.x[0]), expected, rtol=0, atol=0)
    assert not any(value.requires_grad for value in module.backbone.parameters())
    assert not [key for key in module.meta_gradient(episode) if key.startswith("backbone")]
    assert torch.isfinite(module.training_step(episode, 0))


def test_what_was_fixed_stays_fixed_in_a_module_that_is_frozen_whole() -> None:
    episode = noise_episode(shape=(4,))
    module = MAML(network(), inner_steps=2, inner_lr=0.3)
    module.backbone.body.requires_grad_(False)  # type: ignore[union-attr]
    module.freeze()
    stock = network()
    _, expected = loop(stock, episode, HEAD, dict.fromkeys(ALL, 0.3))
    torch.testing.assert_close(module.adapt(support(episode))(episode.query.x[0]), expected)


def test_a_frozen_module_gives_its_learned_step_sizes_their_gradient() -> None:
    """Central differences of the query loss, over a network that nothing trains."""
    episode = noise_episode(shape=(4,))
    net = network().requires_grad_(False)
    module = MAML(net, inner_steps=2, inner_lr="learn").double()
    found = module.meta_gradient(episode)
    sizes = module.step_sizes.learned
    assert sizes is not None
    for index in range(4):
        values = []
        for delta in (1e-5, -2e-5):
            sizes.data[index] += delta
            values.append(float(module.training_step(episode, 0).detach()))
        sizes.data[index] += 1e-5
        assert (values[0] - values[1]) / 2e-5 == pytest.approx(
            float(found["solver.step_sizes.learned"][index]), rel=1e-6
        )


def tasks(count: int = 8) -> DataLoader[Episode]:
    one = noise_episode(tasks=count, shape=(4,))
    each = [Episode(*(Batch(role.x[i], role.y[i]) for role in one)) for i in range(count)]
    return DataLoader(each, batch_size=4)  # type: ignore[arg-type]


def trainer(**options: Any) -> L.Trainer:
    return L.Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
                     accelerator="cpu", **options)  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*many workers:UserWarning", "ignore:.*no `val_dataloader`:UserWarning")
@pytest.mark.parametrize("kind", [MAML, ANIL])
def test_backbone_finetuning_trains_what_it_unfreezes(kind: type[MetaModule], caplog: pytest.LogCaptureFixture) -> None:
    net = network()
    before = copy.deepcopy(net.state_dict())
    moved: list[bool] = []

    class Watch(L.Callback):
        def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            moved.append(any(not torch.equal(value, before[name]) for name, value in net.state_dict().items()))

    module = kind(net, inner_steps=1, inner_lr=0.1)  # type: ignore[call-arg]
    with caplog.at_level("INFO"):
        trainer(max_epochs=3, callbacks=[BackboneFinetuning(unfreeze_backbone_at_epoch=1), Watch()]).fit(
            module, tasks()
        )
    assert moved == [False, True, True]
    assert "no parameter is trainable, so nothing is trained until a callback unfreezes some" in caplog.text


@pytest.mark.filterwarnings("ignore:.*many workers:UserWarning", "ignore:.*no `val_dataloader`:UserWarning")
def test_a_second_fit_trains_what_was_unfrozen_in_between() -> None:
    net = network()
    net.body.requires_grad_(False)
    module = ANIL(net, inner_steps=1, inner_lr="learn").double()
    trainer(max_steps=2).fit(module, tasks())
    fixed = net.body[0].weight.detach().clone()
    net.requires_grad_(True)
    trainer(max_steps=2).fit(module, tasks())
    assert float((net.body[0].weight.detach() - fixed).norm()) > 1e-4


@pytest.mark.parametrize("kind", [MAML, ANIL])
@pytest.mark.parametrize("inner_lr", [0.3, "learn", "learn_per_element"])
def test_a_pruned_layer_adapts_what_it_has_left(kind: type[MetaModule], inner_lr: Any) -> None:
    """Pruned after construction; the masked weights stay 0 in the adapted network too."""
    episode = noise_episode(shape=(4,))
    net = network()
    module = kind(net, inner_steps=2, inner_lr=inner_lr, initial_inner_lr=0.3).double()  # type: ignore[call-arg]
    module.meta_gradient(episode)
    prune.l1_unstructured(net.head, "weight", amount=0.5)
    assert (net.head.weight == 0).sum() == 8
    names = [name.replace("head.weight", "head.weight_orig") for name in (HEAD if kind is ANIL else ALL)]
    stock = network()
    prune.l1_unstructured(stock.head, "weight", amount=0.5)
    expected, outputs = loop(stock, episode, names, dict.fromkeys([*ALL, "head.weight_orig"], 0.3))
    found = {k: v for k, v in module.meta_gradient(episode).items() if k.startswith("backbone")}
    assert largest_error(found, expected) < 1e-6
    adapted = module.adapt(support(episode))
    torch.testing.assert_close(adapted(episode.query.x[0]), outputs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("inner_lr", [0.3, "learn", "learn_per_element"])
def test_a_head_that_is_replaced_before_training_has_step_sizes(inner_lr: Any) -> None:
    net = network()
    module = ANIL(net, inner_steps=2, inner_lr=inner_lr, initial_inner_lr=0.3).double()
    module.meta_gradient(noise_episode(shape=(4,)))
    net.head = nn.Linear(5, 4).double()
    optimizer = module.configure_optimizers()
    trained = {id(value) for group in optimizer.param_groups for value in group["params"]}
    assert {id(value) for value in module.parameters()} == trained
    episode = noise_episode(ways=4, shape=(4,))
    expected, outputs = loop(net, episode, HEAD, dict.fromkeys(ALL, 0.3))
    found = {k: v for k, v in module.meta_gradient(episode).items() if k.startswith("backbone")}
    assert largest_error(found, expected) < 1e-6
    torch.testing.assert_close(module.adapt(support(episode))(episode.query.x[0]), outputs, rtol=1e-6, atol=1e-6)


def test_a_layer_that_comes_too_late_for_a_learned_step_size_is_named() -> None:
    net = network()
    module = MAML(net, inner_steps=1, inner_lr="learn").double()
    net.append(nn.Linear(3, 3).double())
    with pytest.raises(ConfigError, match=r"2.weight came into the network after its step sizes were made.*before fit"):
        module.meta_gradient(noise_episode(shape=(4,)))
    module.configure_optimizers()
    module.meta_gradient(noise_episode(shape=(4,)))


def test_an_adapted_network_keeps_the_tensors_that_were_frozen() -> None:
    net, episode = network(), noise_episode(shape=(4,))
    net.body.requires_grad_(False)
    adapted = MAML(net, inner_steps=1, inner_lr=0.3).adapt(support(episode))
    expected = adapted(episode.query.x[0])
    with torch.no_grad():
        net.body[0].weight.mul_(3.0)
    torch.testing.assert_close(adapted(episode.query.x[0]), expected, rtol=0, atol=0)
