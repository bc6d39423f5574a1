"""Advice on step sizes, against plain autograd; and what the callback does with it under a stock Trainer."""

from __future__ import annotations

import copy
import logging
import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader

from metalearn import (
    ANIL,
    IMAML,
    MAML,
    Batch,
    CheckpointError,
    Episode,
    MeTAL,
    MetalearnError,
    ProtoNet,
    Reptile,
    StepSizeAdvisor,
)
from metalearn.reports.outcome import RunRecord
from metalearn.theory import StepAdvice, advise_steps
from tests.algorithms import Smooth
from tests.theory.test_measuring import NET, Oracle, make_episode


def make_loader(batches: int = 4) -> DataLoader[Episode]:
    return DataLoader([make_episode(kind=torch.float32)] * batches, batch_size=None)


def train(
    module: L.LightningModule,
    folder: Path,
    *callbacks: L.Callback,
    steps: int = 3,
    ckpt_path: Path | None = None,
    **options: Any,
) -> L.Trainer:
    trainer = L.Trainer(
        max_steps=steps, callbacks=list(callbacks), logger=CSVLogger(folder), accelerator="cpu", enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, log_every_n_steps=1, limit_val_batches=0,
        num_sanity_val_steps=0, **options,
    )  # fmt: skip
    trainer.fit(module, make_loader(), make_loader(1), ckpt_path=ckpt_path, weights_only=True)
    return trainer


@pytest.mark.parametrize(
    "sizes", [0.3, [0.3, 0.1], {"": 0.3}, {"body": 0.1, "head": 0.6}, "learn", "learn_per_element"]
)
def test_the_measured_values_are_those_of_plain_autograd(sizes: Any) -> None:
    net, episode = copy.deepcopy(NET), make_episode()
    module = MAML(net, inner_steps=2, inner_lr=sizes, initial_inner_lr=0.3).double()
    advice = advise_steps(module, episode, iterations=60)
    names = [name for name, _ in net.named_parameters()]
    shares = sizes if isinstance(sizes, dict) else {"": sizes[0] if isinstance(sizes, list) else 0.3}
    share = torch.cat([torch.full((value.numel(),), shares.get(name.split(".")[0], shares.get("", 0.0))).double()
                       for name, value in net.named_parameters()])  # fmt: skip
    norms, downs, bends = [], [], []
    for task in zip(*episode.support, *episode.query, strict=True):
        oracle = Oracle(net, names, task)
        hessian, slope = oracle.hessian(oracle.start), oracle.grad(oracle.start)
        norms.append(torch.linalg.eigvalsh(share.sqrt()[:, None] * hessian * share.sqrt()).abs().max())
        downs.append(slope @ (share * slope))
        bends.append((share * slope) @ hessian @ (share * slope))
    assert advice.inner_lr == pytest.approx(float(share.mean()))
    assert pytest.approx(float(torch.stack(norms).mean() / share.mean()), rel=1e-2) == advice.L
    edge = torch.stack(downs).sum() / torch.stack(bends).sum() / 2  # over two steps
    assert advice.suggested is not None
    halvings = 2 * math.log2(float(edge) * advice.inner_lr / advice.suggested)  # each by the square root of 2
    assert halvings == pytest.approx(round(halvings), abs=1e-6)
    assert halvings > -1e-6


def test_a_quadratic_is_stable_exactly_below_two_over_its_smoothness() -> None:
    """In one dimension the rule of thumb is half the edge of stability, over the number of steps."""
    x = torch.ones(2, 5, 1)
    episode = Episode(Batch(x, 3 * x), Batch(x, 3 * x))
    for rate, descends in ((0.5, True), (0.99, True), (1.02, False), (50.0, False), (1e-6, True)):
        module = MAML(nn.Linear(1, 1, bias=False), inner_steps=3, inner_lr=rate, loss="mse")
        advice = advise_steps(module, episode)
        assert (advice.L, advice.along, advice.stable) == pytest.approx((2.0, 2.0, 1.0), rel=1e-4)
        assert advice.suggested == pytest.approx(1 / 6, rel=1e-4)
        assert advice.descends == descends
        assert advice.guaranteed == pytest.approx(1 / (8 * 2 * 3), rel=1e-4)
        assert advice.alpha_L_N == pytest.approx(rate * 2 * 3, rel=1e-4)
        assert (advice.fault is None) == (0.02 <= rate <= 1)


def test_a_loss_without_curvature_is_not_advised_on() -> None:
    episode = make_episode(2, torch.float32)
    module = ANIL(Smooth(), inner_steps=1, inner_lr=0.1, loss=lambda outputs, targets: outputs.mean())
    advice = advise_steps(module, episode)
    assert (advice.suggested, advice.fault, advice.factor) == (None, None, 1.0)
    assert "no curvature" in str(advice)


@pytest.mark.parametrize("kind", [MAML, ANIL, Reptile, MeTAL])
@pytest.mark.parametrize("sizes", [1e-5, 30.0])
def test_a_wrong_step_size_is_set_to_the_same_right_one(kind: Any, sizes: float, tmp_path: Path) -> None:
    modules = []
    for rate in (sizes, 0.3):
        torch.manual_seed(0)
        modules.append(kind(Smooth(), inner_steps=2, inner_lr=rate))
        advisor = StepSizeAdvisor(apply=True, every=2)
        train(modules[-1], tmp_path, advisor)
        assert modules[-1].hparams["inner_lr"] == pytest.approx(rate * advisor.applied)
        assert [advice.step for advice in advisor.series] == [0, 2]
    first, second = (dict(module.named_parameters()) for module in modules)
    assert all(torch.allclose(first[name], second[name], atol=1e-5) for name in first)


@pytest.mark.parametrize("sizes", [[5.0, 3.0], {"": 4.0, "head": 8.0}, "learn", "learn_per_step", "learn_per_element"])
def test_every_kind_of_step_sizes_is_rescaled_by_one_factor_and_kept(sizes: Any, tmp_path: Path) -> None:
    module = MAML(Smooth(), inner_steps=2, inner_lr=sizes, initial_inner_lr=5.0)
    before = module.solver.settings(module.backbone.state_dict() and dict(module.backbone.named_parameters()))
    start = [{name: torch.as_tensor(value).clone() for name, value in step.items()} for step in before]
    advisor = StepSizeAdvisor(apply=True, every=100)
    trainer = train(module, tmp_path, advisor, steps=1)
    after = module.solver.settings(dict(module.backbone.named_parameters()))
    assert advisor.applied < 1
    for old, new in zip(start, after, strict=True):
        for name, value in old.items():
            step = 2e-3 if isinstance(sizes, str) else 1e-6  # what the optimiser has learned since
            assert torch.allclose(torch.as_tensor(new[name]), value * advisor.applied, atol=step)
    trainer.save_checkpoint(tmp_path / "there.ckpt")
    again = MAML.load_from_checkpoint(tmp_path / "there.ckpt", backbone=Smooth())
    loaded = again.solver.settings(dict(again.backbone.named_parameters()))
    for new, kept in zip(after, loaded, strict=True):
        assert all(torch.allclose(torch.as_tensor(new[name]), torch.as_tensor(kept[name])) for name in new)


def test_sizes_that_it_set_count_as_those_of_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    module = MAML(Smooth(), inner_steps=2, inner_lr=40.0)
    train(module, tmp_path, StepSizeAdvisor(apply=True, every=100), steps=1)
    support = Batch(torch.rand(4, 1, 8, 8), torch.arange(4))
    with caplog.at_level(logging.INFO):
        module.adapt(support, ways=4)
    assert "4 classes, where the network tells 3 apart: 2 inner steps of its sizes may leap" in caplog.text


def test_a_run_that_goes_on_keeps_the_applied_step_size(tmp_path: Path) -> None:
    modules = []
    for parts in ((4,), (2, 4)):
        path = None
        for steps in parts:
            torch.manual_seed(0)
            module, advisor = MAML(Smooth(), inner_steps=2, inner_lr=40.0), StepSizeAdvisor(apply=True, every=1)
            trainer = L.Trainer(
                max_steps=steps, callbacks=[advisor], logger=False, accelerator="cpu", enable_progress_bar=False,
                enable_model_summary=False, enable_checkpointing=False, default_root_dir=tmp_path, limit_val_batches=0,
            )  # fmt: skip
            trainer.fit(module, make_loader(2), make_loader(1), ckpt_path=path, weights_only=True)
            path = tmp_path / "part.ckpt"
            trainer.save_checkpoint(path)
        assert [advice.step for advice in advisor.series] == [0, 1, 2, 3]
        modules.append(module)
    assert modules[0].hparams["inner_lr"] == pytest.approx(modules[1].hparams["inner_lr"])
    first, second = (module.state_dict() for module in modules)
    assert all(torch.allclose(first[name], second[name]) for name in first)


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_a_test_of_an_earlier_checkpoint_takes_its_step_sizes_and_leaves_the_series(tmp_path: Path) -> None:
    """The advisor has measured since that checkpoint was written, and has set the step size again."""
    torch.manual_seed(0)
    module, advisor = MAML(Smooth(), inner_steps=2, inner_lr=40.0), StepSizeAdvisor(apply=True, every=1)
    saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    trainer = train(module, tmp_path, advisor, saver)
    early, saved = tmp_path / "step=1.ckpt", module.hparams["inner_lr"]
    module.rescale_steps(0.5)
    (there,) = trainer.test(module, make_loader(2), ckpt_path=early, verbose=False, weights_only=True)
    assert module.hparams["inner_lr"] == pytest.approx(saved)
    assert [advice.step for advice in advisor.series] == [0, 1, 2]
    loaded = MAML.load_from_checkpoint(early, backbone=Smooth())
    (alone,) = L.Trainer(logger=False, accelerator="cpu").test(loaded, make_loader(2), verbose=False)
    assert there == pytest.approx(alone)
    train(module, tmp_path / "more", advisor, steps=1)  # goes on with what the test has loaded
    assert module.hparams["inner_lr"] == pytest.approx(saved)


def test_a_checkpoint_from_before_a_size_was_set_has_its_own(tmp_path: Path) -> None:
    module, advisor = MAML(Smooth(), inner_steps=2, inner_lr=0.3), StepSizeAdvisor()
    trainer = train(module, tmp_path, advisor, steps=1)
    trainer.save_checkpoint(tmp_path / "before.ckpt")
    module.rescale_steps(4.0)
    advisor.applied = 4.0
    trainer.test(module, make_loader(1), ckpt_path=tmp_path / "before.ckpt", verbose=False, weights_only=True)
    assert module.hparams["inner_lr"] == pytest.approx(0.3)


@pytest.mark.parametrize(
    "state",
    [{"series": {"0": {"x": 1}}}, {"series": 3}, {"inner_lr": [0.1, "x"]}, {"inner_lr": -1.0}, {"applied": "x"}],
)
def test_a_state_of_another_version_is_one_line(state: dict[str, Any], tmp_path: Path) -> None:
    module, advisor = MAML(Smooth(), inner_steps=2, inner_lr=40.0), StepSizeAdvisor(apply=True)
    trainer = train(module, tmp_path, advisor, steps=1)
    trainer.save_checkpoint(tmp_path / "good.ckpt")
    saved = torch.load(tmp_path / "good.ckpt", weights_only=True)
    (key,) = [key for key in saved["callbacks"] if "StepSizeAdvisor" in key]
    saved["callbacks"][key].update(state)
    torch.save(saved, tmp_path / "bad.ckpt")
    fresh = MAML(Smooth(), inner_steps=2, inner_lr=40.0)
    with pytest.raises(CheckpointError, match=r"callbacks.StepSizeAdvisor") as raised:
        train(fresh, tmp_path, StepSizeAdvisor(apply=True), ckpt_path=tmp_path / "bad.ckpt")
    assert "\n" not in str(raised.value)


def test_it_warns_once_and_changes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    module, plain = MAML(Smooth(), inner_steps=2, inner_lr=1e-4), MAML(Smooth(), inner_steps=2, inner_lr=1e-4)
    plain.load_state_dict(module.state_dict())
    advisor = StepSizeAdvisor(every=1)
    with caplog.at_level(logging.INFO):
        train(module, tmp_path, advisor)
    (warning,) = [line for line in caplog.messages if line.startswith("StepSizeAdvisor: warning:")]
    assert "hardly learned, far below its useful range; use inner_lr=" in warning
    train(plain, tmp_path)
    assert all(value.equal(plain.state_dict()[name]) for name, value in module.state_dict().items())
    assert module.hparams["inner_lr"] == 1e-4
    rows = (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").read_text().splitlines()
    assert {"advice/alpha_L_N", "advice/L", "advice/suggested_inner_lr"} <= set(rows[0].split(","))
    assert len(advisor.series) == 3
    (picture,) = advisor.pictures(RunRecord("mine"))
    assert picture.draw(tmp_path / picture.name) == tmp_path / "step_sizes.png"
    (fact,) = advisor.summary_facts("fit")
    assert fact.name == "inner step size"
    assert "convergence is proved up to 0.125" in fact.text


def test_too_large_a_step_is_said() -> None:
    advice = advise_steps(MAML(Smooth(), inner_steps=3, inner_lr=1e4), make_episode(2, torch.float32))
    assert "rises along the inner path; use inner_lr=" in str(advice.fault)


def test_steps_of_evaluation_must_descend_too() -> None:
    """Momentum-free steps on two curvatures: the first one falls, and the steep direction takes over in later ones."""
    x = torch.diag(torch.tensor([1.0, 0.2])).repeat(2, 1, 1)
    episode = Episode(Batch(x, x.sum(-1, keepdim=True)), Batch(x, x.sum(-1, keepdim=True)))
    network = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([[1.001, -5.0]]))  # far from the minimum along the flat direction alone
    few, many = (
        advise_steps(MAML(network, inner_steps=1, eval_inner_steps=steps, inner_lr=0.1, loss="mse"), episode)
        for steps in (1, 12)
    )
    assert few.suggested is not None
    assert many.suggested is not None
    assert few.suggested > 2  # the edge of stability of the steep direction
    assert many.suggested < few.suggested


def test_the_steps_that_go_as_far() -> None:
    advice = StepAdvice(step=0, inner_lr=0.01, inner_steps=2, L=4.0, along=1.0, suggested=0.1, descends=True)
    assert advice.suggested_steps == 20


@pytest.mark.parametrize(
    ("module", "text"),
    [
        (lambda: ProtoNet(Smooth()), "takes no inner steps of given sizes"),
        (lambda: IMAML(Smooth()), "takes no inner steps of given sizes"),
        (lambda: ANIL(Smooth(), head_solver="ridge"), "takes no inner steps of given sizes"),
        (lambda: MAML(Smooth(), inner_optimizer="adam"), "inner_optimizer is 'adam'"),
        (lambda: Plain(), "got a Plain"),
    ],
)
def test_a_module_that_cannot_be_advised_is_refused_in_one_line(module: Any, text: str, tmp_path: Path) -> None:
    with pytest.raises(MetalearnError, match=text) as caught:
        train(module(), tmp_path, StepSizeAdvisor())
    assert "\n" not in str(caught.value)


class Plain(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return F.mse_loss(self.layer(torch.ones(1)), torch.ones(1))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        return

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("arguments", [{"every": 0}, {"tasks": 0}, {"apply": "maybe"}, {"iterations": 0.5}])
def test_wrong_arguments_are_one_line(arguments: dict[str, Any]) -> None:
    with pytest.raises(MetalearnError, match=f"{next(iter(arguments))} is"):
        StepSizeAdvisor(**arguments)
