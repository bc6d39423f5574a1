"""A network starts from that of a checkpoint, of whatever algorithm; another architecture is one line, and changes nothing."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import nn

from metalearn import ANIL, MAML, MLP, Baseline, CheckpointError, Conv4, Pooled, start_from
from metalearn.carried.shipped import checkpoint_path
from metalearn.cli import main
from metalearn.datamodules import GlyphsDataModule
from metalearn.shipping.starting import lacks_statistics

MADE: dict[str, Callable[[], L.LightningModule]] = {
    "maml": lambda: MAML(Conv4(ways=5, hidden=4), inner_lr="learn"),
    "per_step": lambda: MAML(Conv4(ways=5, hidden=4), norm="per_step"),
    "anil": lambda: ANIL(Conv4(ways=5, hidden=4), head_solver="ridge"),
    "pooled": lambda: Pooled(Conv4(ways=5, hidden=4)),
    "baseline": lambda: Baseline(Conv4(ways=5, hidden=4), classes=40),
}
QUICK = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--data.test_tasks", "3"]


def save(module: L.LightningModule, path: Path) -> dict[str, Any]:
    """The checkpoint that a trainer writes of a module, and its weights."""
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, barebones=True)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(path)
    return dict(torch.load(path, weights_only=True)["state_dict"])


@pytest.mark.parametrize("name", MADE)
def test_the_network_of_any_algorithm(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = save(MADE[name](), tmp_path / "a.ckpt")
    network = Conv4(ways=5, hidden=4)
    start_from(network, tmp_path / "a.ckpt")
    assert all(torch.equal(value, state[f"backbone.{key}"]) for key, value in network.state_dict().items())


def test_a_head_of_other_classes_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = save(MADE["pooled"](), tmp_path / "a.ckpt")
    network = Conv4(ways=7, hidden=4)
    head = copy.deepcopy(network.head.state_dict())
    with caplog.at_level(logging.INFO, "lightning.pytorch.shipping"):
        start_from(network, str(tmp_path / "a.ckpt"))
    assert "the head is left out, whose head.weight is [5, 4] there" in caplog.text
    assert all(torch.equal(value, head[key]) for key, value in network.head.state_dict().items())
    inside = {key: value for key, value in network.state_dict().items() if not key.startswith("head")}
    assert all(torch.equal(value, state[f"backbone.{key}"]) for key, value in inside.items())


def not_finite(state: dict[str, Any]) -> None:
    state["backbone.head.weight"][1, 2] = torch.nan


@pytest.mark.parametrize(
    ("change", "network", "words"),
    [
        (None, lambda: Conv4(ways=5, hidden=8), "is float32 [4, 1, 3, 3] there and float32 [8, 1, 3, 3] here"),
        (
            None,
            lambda: MLP(inputs=784, outputs=5),
            "body.1.bias, body.1.weight, body.3.bias and 1 more are missing in it",
        ),
        (None, lambda: nn.Sequential(Conv4(ways=5, hidden=4)), "are in it alone"),
        (
            lambda state: state.pop("backbone.head.bias"),
            lambda: Conv4(ways=5, hidden=4),
            "head.bias is missing in it; ",
        ),
        (not_finite, lambda: Conv4(ways=5, hidden=4), "values in head.weight that are not finite"),
        (lambda state: state.clear(), lambda: Conv4(ways=5, hidden=4), "holds no network"),
    ],
)
def test_another_architecture_is_one_line(change: Any, network: Any, words: str, tmp_path: Path) -> None:
    save(MADE["maml"](), tmp_path / "a.ckpt")
    contents = torch.load(tmp_path / "a.ckpt", weights_only=True)
    if change is not None:
        change(contents["state_dict"])
    torch.save(contents, tmp_path / "a.ckpt")
    own = network()
    before = copy.deepcopy(own.state_dict())
    with pytest.raises(CheckpointError) as caught:
        start_from(own, tmp_path / "a.ckpt")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in own.state_dict().items())


def test_pickled_code_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "CALLED",)

    torch.save({"state_dict": {"backbone.x": Evil()}}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match="cannot be read as plain tensors"):
        start_from(Conv4(), tmp_path / "a.ckpt")
    assert not (tmp_path / "CALLED").exists()


def test_whether_statistics_are_there() -> None:
    network = Conv4(ways=5, hidden=4)
    assert lacks_statistics(network)
    network(torch.randn(3, 1, 28, 28))
    assert not lacks_statistics(network)
    assert not lacks_statistics(MLP())


def test_heads_are_tested_on_the_network_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the checkpoint come network, data and normalisation; the command says the algorithm."""
    monkeypatch.chdir(tmp_path)
    words = [
        "test",
        "--start_from",
        "maml_glyphs_5w1s",
        "--model",
        "Baseline",
        "--model.classifier",
        "nearest_centroid",
    ]
    main([*words, *QUICK])
    printed = capsys.readouterr().out
    (shown,) = [line for line in printed.splitlines() if "test accuracy" in line]
    assert (tmp_path / "runs" / "from_maml_glyphs_5w1s" / "version_0" / "test_tasks.csv").is_file()
    trained = MAML.load_from_checkpoint(checkpoint_path("maml_glyphs_5w1s"))
    module = Baseline(trained.backbone, classifier="nearest_centroid", norm="transductive")
    data = GlyphsDataModule(ways=5, shots=1, queries=5, test_tasks=3, tasks_per_batch=16)
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)
    (logged,) = trainer.test(module, datamodule=data, verbose=False)
    assert f"{100 * logged['test/acc']:.2f} %" in shown


def test_training_goes_on_from_another_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    small = ["--trainer.max_steps", "1", "--data.train_tasks", "16", "--data.val_tasks", "2", *QUICK]
    still = ["--model.outer_optimizer", "torch.optim.SGD", "--model.outer_optimizer.lr", "1e-12"]
    main(["fit", "--config", "maml_glyphs_5w1s", "--start_from", "maml_glyphs_5w1s", *small, *still])
    there = torch.load(checkpoint_path("maml_glyphs_5w1s"), weights_only=True)["state_dict"]
    run = tmp_path / "runs" / "maml_glyphs_5w1s" / "version_0"
    here = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    for name in ("backbone.head.weight", "backbone.body.0.conv.weight"):
        torch.testing.assert_close(here[name], there[name])
    assert "start_from: maml_glyphs_5w1s" in (run / "config.yaml").read_text()
    capsys.readouterr()
    main(["test", "--config", str(run / "config.yaml"), "--ckpt_path", str(run / "checkpoints" / "last.ckpt"), *QUICK])
    assert "test accuracy" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["test", "--config", "baseline_glyphs_5w1s"], "use --model.norm transductive"),
        (["test", "--config", "maml_sinusoid_10s"], "build the network as the checkpoint's"),
        (["fit", "--model", "HyperCleaning"], "HyperCleaning has no network in its attribute backbone"),
    ],
)
def test_what_does_not_fit_is_one_line(
    words: list[str], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main([*words, "--start_from", "maml_glyphs_5w1s", "--trainer.accelerator", "cpu"])
    assert caught.value.code == 2
    (error,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert line in error
    assert not (tmp_path / "runs").exists()
