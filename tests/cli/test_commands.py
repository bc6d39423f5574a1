"""The command line end to end, as a user runs it."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metalearn import MAML
from metalearn.inner import Momentum
from tests.cli.test_configs import SMALL, TINY
from tests.made import run_cli


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """A folder in which ``fit`` without a config has run."""
    folder = tmp_path_factory.mktemp("fitted")
    done = run_cli("fit", *SMALL, *TINY, cwd=folder, cache=cache)
    assert "test accuracy" in done.stdout
    assert "before adaptation" in done.stdout
    assert "python -m metalearn test --ckpt_path runs/maml_glyphs_5w1s/version_0/checkpoints/best.ckpt" in done.stdout
    assert "python -m metalearn predict --ckpt_path" in done.stdout
    return folder


BEST = "runs/maml_glyphs_5w1s/version_0/checkpoints/best.ckpt"


def test_validate(fitted: Path, cache: Path) -> None:
    said = run_cli("validate", "--ckpt_path", BEST, cwd=fitted, cache=cache).stdout
    assert "val/acc" in said
    assert "DataLoader 0" not in said  # Lightning's own table


def test_predict_writes_probabilities(fitted: Path, cache: Path) -> None:
    done = run_cli("predict", "--ckpt_path", BEST, "--data.test_tasks", 3, cwd=fitted, cache=cache)
    path = next(word for word in done.stdout.split() if word.endswith("predictions.csv"))
    with (fitted / path).open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 25
    shares = np.array([[float(row[f"p{way}"]) for way in range(5)] for row in rows])
    np.testing.assert_allclose(shares.sum(1), 1, atol=1e-5)
    assert [int(row["predicted"]) for row in rows] == shares.argmax(1).tolist()
    assert {row["task"] for row in rows} == {"0", "1", "2"}


def test_own_images(fitted: Path, cache: Path, tmp_path: Path) -> None:
    """Dark crosses and bars on light paper, in sub-folders per class."""
    for label in ("bar", "cross", "dot"):
        (tmp_path / "support" / label).mkdir(parents=True)
        (tmp_path / "query").mkdir(exist_ok=True)
        for index in range(3):
            image = np.full((40, 40), 255, np.uint8)
            if label != "dot":
                image[:, 18 + index : 23 + index] = 0
            if label == "cross":
                image[18:23] = 0
            if label == "dot":
                image[15:25, 15:25] = 0
            where = tmp_path / "support" / label if index else tmp_path / "query"
            Image.fromarray(image).save(where / f"{label}{index}.png")
    done = run_cli("predict", "--ckpt_path", BEST, "--support", tmp_path / "support", "--query", tmp_path / "query",
                   "--output", tmp_path / "out", cwd=fitted, cache=cache)  # fmt: skip
    assert "bar, cross, dot" in done.stdout
    with (tmp_path / "out" / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3
    assert list(rows[0]) == ["image", "predicted", "bar", "cross", "dot"]
    assert (tmp_path / "out" / "predictions.png").stat().st_size > 0


def test_a_checkpoint_of_the_cli_loads_in_python(fitted: Path) -> None:
    from metalearn import MAML

    torch.load(fitted / BEST, weights_only=True)
    assert isinstance(MAML.load_from_checkpoint(fitted / BEST), MAML)


def test_resume_from_the_command_line(fitted: Path, cache: Path) -> None:
    done = run_cli("fit", *SMALL, *TINY, "--trainer.max_steps", 4, "--ckpt_path", BEST, cwd=fitted, cache=cache)
    assert "4 steps" in done.stdout


BAD = [
    (["fit", "--config", "maml_omniglot_5w1"], "did you mean maml_omniglot_5w1s"),
    (["fit", "--data.ways", "200"], "ways is 200, but the train split|ways is 200, but the (val|test) split"),
    (["fit", "--data.shots", "40", "--data.queries", "40"], r"shots \+ queries is 40 \+ 40 = 80, but class"),
    (["fit", "--data.ways", "1"], "ways is 1, .*at least 2"),
    (["fit", "--model.inner_steps", "0"], "inner_steps is 0"),
    (["fit", "--model.inner_lr", "-1"], "inner_lr is -1"),
    (["fit", "--model.inner_lr", ".nan"], "inner_lr is nan, .*finite"),
    (["fit", "--model.inner_lr", "fast"], "model.inner_lr is 'fast', but it must be a number or .*'learn_per_step'"),
    (["fit", "--trainer.precision", "16-true"], "precision is 16-true, .*bf16-mixed"),
    (["fit", "--trainer.max_steps", "many"], "trainer.max_steps.*many"),
    (["fit", "--model.nonsense", "1"], "model.nonsense is no option here"),
    (["fit", "--config", "maml_omniglot_5w1s", "--data.root", "nowhere", "--data.download", "false"],
     "images_background is not in nowhere"),
    (["fit", "--config", "anil_omniglot_5w1s", "--data.root", "{omniglot}", "--model.head", "fc"], "head is 'fc'"),
    (["test"], "neither --ckpt_path nor --config"),
    (["test", "--ckpt_path", "nowhere.ckpt"], "nowhere.ckpt does not exist"),
    (["predict", "--ckpt_path", "nowhere.ckpt", "--support", "x", "--query", "y"], "nowhere.ckpt does not exist"),
    (["predict", "--support", "x"], "required"),
    (["predict", "--query", "x"], "required: .*--support"),
    (["predict", "--support", "", "--query", "x"], "it is empty, but it must name a folder; write [.] for the working folder"),
    (["test", "--ckpt_path", "best"], "without --config nothing says of which run; name the file, or add --config"),
]  # fmt: skip


@pytest.mark.parametrize(("args", "message"), BAD, ids=[" ".join(args) for args, _ in BAD])
def test_bad_input_is_one_line(args: list[str], message: str, tmp_path: Path, omniglot: Path, monkeypatch: pytest.MonkeyPatch,
                               capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    import re

    from metalearn.cli import main

    monkeypatch.chdir(tmp_path)
    before = sys.argv
    with pytest.raises(SystemExit) as caught:
        main([arg.format(omniglot=omniglot) for arg in args])
    assert caught.value.code == 2
    errors = capsys.readouterr().err
    line = next(line for line in errors.splitlines() if line.startswith("metalearn: error: "))
    assert re.search(message, line), errors
    assert "Traceback" not in errors
    assert sys.argv is before
    assert not list(tmp_path.rglob("*.ckpt"))


def test_debug_shows_the_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from metalearn import ConfigError
    from metalearn.cli import main

    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError):
        main(["fit", "--model.inner_steps", "0", "--debug"])


def test_a_checkpoint_of_another_architecture(fitted: Path, cache: Path) -> None:
    done = run_cli("test", "--ckpt_path", BEST, "--model.backbone.hidden", 8, cwd=fitted, cache=cache, code=2)
    assert "another architecture" in done.stderr


def test_a_diverging_run_says_at_which_step(tmp_path: Path, cache: Path) -> None:
    done = run_cli("fit", *TINY, "--model.inner_lr", 1e30, cwd=tmp_path, cache=cache, code=2)
    assert "at step 0, so training has diverged" in done.stderr
    assert "test accuracy" not in done.stdout


def test_two_processes(tmp_path: Path, cache: Path) -> None:
    """DDP through the command line: one summary, here as JSON, one table with every task once."""
    done = run_cli("fit", *SMALL, *TINY, "--data.test_tasks", 5, "--trainer.devices", 2, "--trainer.strategy", "ddp", "--json",
                   cwd=tmp_path, cache=cache)  # fmt: skip
    outcome = json.loads(done.stdout)
    assert outcome["result"]["tasks"] == 5
    assert (
        outcome["result"]["mean"] == outcome["test"]["accuracy"]["mean"] == pytest.approx(outcome["logged"]["test/acc"])
    )
    assert outcome["training"]["steps"] == 2
    assert (tmp_path / outcome["checkpoint"]).is_file()
    assert outcome["config"] == "maml_glyphs_5w1s"
    rows = (tmp_path / "runs/maml_glyphs_5w1s/version_0/test_tasks.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows[1:]] == ["0", "1", "2", "3", "4"]


def test_bf16(tmp_path: Path, cache: Path) -> None:
    done = run_cli("fit", *SMALL, *TINY, "--trainer.precision", "bf16-mixed", cwd=tmp_path, cache=cache)
    assert "test accuracy" in done.stdout


def test_inner_options_go_from_the_command_line_into_the_checkpoint(tmp_path: Path, cache: Path) -> None:
    """Momentum with an argument of its own, MAML++'s sizes, loss and statistics, clipping and recomputed steps."""
    run_cli(
        "fit", *SMALL, *TINY, "--model.inner_optimizer", "metalearn.inner.Momentum",
        "--model.inner_optimizer.init_args.momentum", "0.5", "--model.inner_lr", "learn_per_step", "--model.inner_steps", "2",
        "--model.inner_clip_norm", "1.0", "--model.multi_step_loss", "2", "--model.norm", "per_step",
        "--model.execution", "auto", "--model.memory", "remat", cwd=tmp_path, cache=cache,
    )  # fmt: skip
    best = tmp_path / "runs/maml_glyphs_5w1s/version_0/checkpoints/best.ckpt"
    module = MAML.load_from_checkpoint(best)
    assert module.adaptation.method.rule == Momentum(0.5)
    assert module.norm == "per_step"
    assert module.step_sizes.learned is not None
    assert module.step_sizes.learned.shape[0] == 2
    done = run_cli("test", "--ckpt_path", best, "--trainer.accelerator", "cpu", cwd=tmp_path, cache=cache)
    assert "batch norm 'per_step'" in done.stdout
