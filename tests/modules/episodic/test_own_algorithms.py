"""Algorithms of a user's own: a few lines make one, and a subclass is a LightningModule as PyTorch users expect it."""

from __future__ import annotations

import copy
import inspect
import pickle
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from metalearn import ANIL, MAML, Batch, ConfigError, MetaModule, RegularizationTuning
from metalearn.inner import Learner
from metalearn.inner.adaptation import InnerMethod, Settings
from metalearn.inner.inner_loop import InnerLoop
from metalearn.inner.solvers import TaskSolver
from metalearn.inner.step_sizes import InnerLR
from tests.modules.episodic.test_evaluation import trainer
from tests.networks import noise_episode


class Points(nn.Module):
    """Points of four numbers in three classes."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 5), nn.Tanh())
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class BodyLearner(Learner):
    """All but the head adapts."""

    def adapts(self, name: str) -> bool:
        return not name.startswith("head.")


class BOIL(MetaModule):
    """BOIL (Oh et al. 2021): the inner loop adapts the body, and the head stays."""

    def __init__(self, backbone: nn.Module, inner_steps: int = 2, inner_lr: InnerLR = 0.3) -> None:
        super().__init__(backbone, InnerLoop.of(locals()), learner=BodyLearner)


def loader() -> Any:
    return DataLoader([noise_episode(2, shape=(4,), dtype=torch.float32, seed=i) for i in range(4)], batch_size=None)  # type: ignore[arg-type]


def test_boil_is_a_plain_loop_over_the_body() -> None:
    torch.manual_seed(0)
    net, episode = Points().double(), noise_episode(3, shape=(4,))
    names = [name for name, _ in net.named_parameters()]
    total = torch.zeros((), dtype=torch.float64)
    for xs, ys, xq, yq in zip(*episode.support, *episode.query, strict=True):
        weights = dict(net.named_parameters())
        for _ in range(2):
            body = {name: value for name, value in weights.items() if name.startswith("body.")}
            loss = F.cross_entropy(torch.func.functional_call(net, weights, (xs,)), ys)
            grads = torch.autograd.grad(loss, list(body.values()), create_graph=True)
            weights |= {name: value - 0.3 * grad for (name, value), grad in zip(body.items(), grads, strict=True)}
        total = total + F.cross_entropy(torch.func.functional_call(net, weights, (xq,)), yq) / 3
    expected = torch.autograd.grad(total, list(net.parameters()))
    gradient = BOIL(copy.deepcopy(net)).meta_gradient(episode)
    assert list(gradient) == [f"backbone.{name}" for name in names]
    for name, grad in zip(names, expected, strict=True):
        torch.testing.assert_close(gradient[f"backbone.{name}"], grad, rtol=1e-9, atol=1e-12)


class ScaledMethod(InnerMethod):
    """The head is the mean feature of each class, times a learned scale."""

    needs_features = True

    def iterates(
        self, adaptation: Any, params: Any, support: Tensor, targets: Tensor, steps: int, settings: Settings, order: int
    ) -> Any:
        head, _ = adaptation.start(params, len(support))
        yield head
        one_hot = F.one_hot(targets, 3).to(support.dtype)
        means = one_hot.transpose(-1, -2) @ support / one_hot.sum(-2)[..., None]
        for _ in range(steps):
            yield {**head, "head.weight": settings[0]["scale"] * means}


class ScaledMeans(TaskSolver):
    """Learns that scale."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def method(self) -> InnerMethod:
        return ScaledMethod()

    def settings(self, tensors: Any) -> Settings:
        return [{"scale": self.scale}]


class Means(ANIL):
    """With a parameter made before, and everything else after, ``super().__init__``."""

    def __init__(self, backbone: nn.Module) -> None:
        self.kept, self.early = "a plain attribute", nn.Parameter(torch.tensor([1.0, 2.0]))
        self.register_buffer("noted", torch.tensor(3.0))
        self.extra = nn.Linear(2, 2)
        super().__init__(backbone, inner_steps=1)
        self.late = nn.Parameter(torch.tensor(4.0))


def test_a_solver_of_ones_own_learns_what_it_owns() -> None:
    class Prototypes(MetaModule):
        def __init__(self, backbone: nn.Module) -> None:
            from metalearn.inner import HeadLearner

            super().__init__(
                backbone,
                InnerLoop(inner_steps=1),
                learner=lambda network, norm: HeadLearner(network, norm, "head"),
                solver=lambda options, learner: ScaledMeans(),
            )

    module, episode = Prototypes(Points()).double(), noise_episode(3, shape=(4,))
    gradient = module.meta_gradient(episode)
    scale = module.solver.get_parameter("scale")
    losses = []
    for delta in (1e-5, -1e-5):
        scale.data.fill_(2.0 + delta)
        losses.append(float(module.meta_loss(episode).loss.detach()))
    assert (losses[0] - losses[1]) / 2e-5 == pytest.approx(float(gradient["solver.scale"]), rel=1e-7)


def test_parameters_may_be_made_before_and_after_the_constructor(tmp_path: Path) -> None:
    module = Means(Points())
    names = {name for name, _ in module.named_parameters()}
    assert {"early", "late", "extra.weight", "backbone.head.weight"} <= names
    assert module.kept == "a plain attribute"
    assert {"noted", "early", "late"} <= module.state_dict().keys()
    run = trainer(tmp_path, max_steps=2)
    run.fit(module, loader(), loader())
    run.save_checkpoint(tmp_path / "own.ckpt")
    module.early.data += 1
    with pytest.raises(AssertionError):
        same_state(Means.load_from_checkpoint(tmp_path / "own.ckpt", backbone=Points()), module)
    module.early.data -= 1
    for again in (
        Means.load_from_checkpoint(tmp_path / "own.ckpt", backbone=Points()),
        copy.deepcopy(module),
        pickle.loads(pickle.dumps(module)),
    ):
        same_state(again, module)
        assert again.kept == "a plain attribute"
        support = Batch(*(part[0] for part in noise_episode(1, shape=(4,), dtype=torch.float32).support))
        torch.testing.assert_close(again.adapt(support)(support.x), module.adapt(support)(support.x))


def same_state(one: nn.Module, other: nn.Module) -> None:
    assert one.state_dict().keys() == other.state_dict().keys()
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


def test_steps_and_optimisers_may_be_overridden(tmp_path: Path) -> None:
    class Own(MAML):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.log("train/own", 1.0)
            return super().training_step(batch, batch_idx) + 0.0 * self.weight

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
            outcome = super().validation_step(batch, batch_idx, dataloader_idx)
            self.log("val/own", outcome["acc"])
            return outcome

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    assert list(inspect.signature(Own).parameters) == list(inspect.signature(MAML).parameters)
    module = Own(Points(), inner_steps=1)
    module.weight = nn.Parameter(torch.tensor(1.0))
    before = copy.deepcopy(module.state_dict())
    run = trainer(tmp_path, max_steps=4)
    run.fit(module, loader(), loader())
    assert {"train/own", "train/loss", "val/own", "val/acc"} <= run.callback_metrics.keys()
    assert isinstance(run.optimizers[0], torch.optim.SGD)
    assert not torch.equal(module.state_dict()["backbone.head.weight"], before["backbone.head.weight"])


def test_a_bilevel_module_takes_early_parameters_too() -> None:
    class Own(RegularizationTuning):
        def __init__(self) -> None:
            self.early = nn.Parameter(torch.tensor(1.0))
            super().__init__()

    assert "early" in dict(Own().named_parameters())


class Tagged:
    """A mixin of no kind, in front."""

    def __init__(self, *args: Any, tag: str = "", **kwargs: Any) -> None:
        self.tag = tag
        super().__init__(*args, **kwargs)


class Scaled(nn.Module):
    """A mixin with a parameter, in front."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.scale = nn.Parameter(torch.tensor(2.0))


class Watched(L.LightningModule):
    """A LightningModule, behind."""

    def __init__(self) -> None:
        super().__init__()
        self.watched = nn.Parameter(torch.tensor(3.0))


class Mixed(Tagged, Scaled, MAML, Watched):
    """All of them, and a parameter made early."""

    def __init__(self, backbone: nn.Module, **kwargs: Any) -> None:
        self.early = nn.Parameter(torch.tensor(1.0))
        super().__init__(backbone, **kwargs)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) + self.early * self.scale * self.watched


def test_mixins_have_their_constructors_run(tmp_path: Path) -> None:
    module = Mixed(Points(), tag="mine", inner_steps=1)
    assert (module.tag, module.inner_steps) == ("mine", 1)
    own = {name: value.item() for name, value in module.named_parameters() if value.ndim == 0}
    assert own == {"early": 1.0, "watched": 3.0, "scale": 2.0}
    trainer(tmp_path, max_steps=1, limit_val_batches=0).fit(module, loader(), loader())
    assert all(own[name] != module.get_parameter(name).item() for name in own)


def test_a_backbone_that_is_replaced_is_refused(tmp_path: Path) -> None:
    """The inner loop would go on with the one before, and the new one would stay as it is."""
    module = MAML(Points())
    module.backbone.head = nn.Linear(5, 3)
    trainer(tmp_path, max_steps=1, limit_val_batches=0).fit(module, loader(), loader())
    module.backbone = Points()
    with pytest.raises(ConfigError, match="another network.*change its layers in place"):
        trainer(tmp_path, max_steps=1).fit(module, loader(), loader())
