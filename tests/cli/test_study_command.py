"""``python -m metalearn study``: each study from tiny made files to its table, CSV file and picture."""

from __future__ import annotations

import copy
import csv
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metalearn import ANIL, Conv4
from metalearn.cli import main
from metalearn.datamodules import OmniglotDataModule
from metalearn.studies.cleaning_methods import METHODS, run_baseline
from metalearn.studies.curves import Trace, mean_and_spread
from metalearn.studies.few_shot_runs import SETTINGS, Run
from metalearn.studies.hyper_cleaning import BASELINES
from metalearn.studies.results import spread
from tests.made import make_folder, make_omniglot
from tests.made_bilevel import make_mnist, make_newsgroups


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_hyper_cleaning_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, output = make_mnist(tmp_path / "mnist"), tmp_path / "out"
    main(["study", "hyper_cleaning", "--root", str(root), "--output", str(output), "--seeds", "2", "--budget", "4000",
          "--train", "100", "--val", "50", "--test", "50", "--corruptions", "[0.4]"])  # fmt: skip
    printed = capsys.readouterr().out
    assert "AUROC" in printed
    found = rows(output / "hyper_cleaning.csv")
    assert {row["method"] for row in found} == {*METHODS, *BASELINES}
    assert {row["seed"] for row in found} == {"0", "1"}
    for name in (*METHODS, *BASELINES):
        assert f"0.4 {name}" in printed
        mine = [row for row in found if row["method"] == name and row["seed"] == "0"]
        calls = [float(row["calls"]) for row in mine]
        assert calls == sorted(calls)
        assert calls[-1] >= 4000
        assert calls[-1] == sum(float(mine[-1][key]) for key in ("gc_f", "gc_g", "jvp", "hvp"))
        assert all(0 <= float(row["auroc"]) <= 1 and 0 <= float(row["accuracy"]) <= 100 for row in mine)
    with Image.open(output / "hyper_cleaning_0.4.png") as picture:
        assert picture.width > 900


def test_a_baseline_is_gradient_descent_on_the_examples_that_it_keeps() -> None:
    generator = torch.Generator().manual_seed(0)
    x, labels = torch.randn(12, 5, generator=generator), torch.arange(12) % 3
    kept = torch.arange(12) % 4 != 0
    train = torch.arange(12), x, labels
    weights = torch.where(kept, torch.inf, -torch.inf)
    points = run_baseline(weights, train, train, lambda state: {"norm": float(state["y"].detach().norm())}, 120, 0)
    found = points[0]["norm"]
    start = 0.01 * torch.randn(10, 6, generator=torch.Generator().manual_seed(0))
    assert found == pytest.approx(float(start.norm()))
    inputs = torch.cat([x[kept], torch.ones(9, 1)], 1)
    for _ in range(10):
        leaf = start.clone().requires_grad_()
        each = torch.nn.functional.cross_entropy(inputs @ leaf.T, labels[kept], reduction="sum") / 12
        (gradient,) = torch.autograd.grad(each + 0.001 * leaf.square().sum(), leaf)
        start = start - 0.3 * gradient
    assert points[-1]["norm"] == pytest.approx(float(start.norm()), rel=1e-5)
    assert points[-1]["calls"] == 120


def test_hyper_cleaning_repeats(tmp_path: Path) -> None:
    root = make_mnist(tmp_path / "mnist")
    told = []
    for name in ("a", "b"):
        main(["study", "hyper_cleaning", "--root", str(root), "--output", str(tmp_path / name), "--seeds", "1",
              "--budget", "2000", "--train", "100", "--val", "50", "--test", "50", "--methods", "[stocBiO]"])  # fmt: skip
        told.append([{**row, "seconds": ""} for row in rows(tmp_path / name / "hyper_cleaning.csv")])
    assert told[0] == told[1]


def test_newsgroups_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, output = make_newsgroups(tmp_path / "news"), tmp_path / "out"
    main(["study", "newsgroups", "--root", str(root), "--output", str(output), "--seeds", "2", "--grid", "[-6, -3]",
          "--start", "-3", "--solve_steps", "400", "--steps", "3", "--inner_step_size", "1", "--step_size", "5"])  # fmt: skip
    printed = capsys.readouterr().out
    assert "learned, one a feature" in printed
    assert "learned minus constant, best val accuracy: " in printed
    found = rows(output / "newsgroups.csv")
    assert [row["log_penalty_or_step"] for row in found if row["penalty"] == "learned" and row["seed"] == "1"] == [
        "0.0", "1.0", "2.0", "3.0"]  # fmt: skip
    assert len([row for row in found if row["penalty"] == "constant"]) == 4
    losses = [float(row["val_loss"]) for row in found if row["penalty"] == "learned" and row["seed"] == "0"]
    assert losses[-1] < losses[0]
    assert (output / "newsgroups.png").is_file()


@pytest.fixture
def thin(monkeypatch: pytest.MonkeyPatch) -> None:
    """The networks of the few-shot study with 4 filters."""
    for name, setting in SETTINGS.items():
        monkeypatch.setitem(SETTINGS, name, replace(setting, network={**setting.network, "hidden": 4}))


def make_miniimagenet(root: Path) -> Path:
    """A folder for each split with five classes of 20 images."""
    classes = sorted(make_folder(root.with_name("classes"), classes=15, images=20).iterdir())
    for number, folder in enumerate(classes):
        split = root / ("train", "val", "test")[number // 5]
        split.mkdir(parents=True, exist_ok=True)
        folder.rename(split / folder.name)
    return root


CALLS = {
    "ANIL": {"gc_f": 1, "gc_g": 3, "jvp": 3, "hvp": 3},
    "ITD-BiO": {"gc_f": 1, "gc_g": 3, "jvp": 3, "hvp": 2},
    "AID-BiO": {"gc_f": 1, "gc_g": 4, "jvp": 1, "hvp": 2},
}
"""Of a task, with three inner steps and two iterations of conjugate gradients."""


def check_calls(found: list[dict[str, str]], tasks: int) -> None:
    """Each point's oracle calls are those of its outer steps, of as many tasks each."""
    for row in found:
        steps = float(row["step"])
        assert {name: float(row[name]) for name in CALLS["ANIL"]} == {
            name: each * tasks * steps for name, each in CALLS[row["method"]].items()
        }
        assert float(row["calls"]) == sum(CALLS[row["method"]].values()) * tasks * steps


@pytest.mark.usefixtures("thin")
def test_few_shot_end_to_end(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging.getLogger("lightning.pytorch"), "propagate", True)
    omniglot, mini = make_omniglot(tmp_path / "omniglot", drawings=10), make_miniimagenet(tmp_path / "mini")
    output = tmp_path / "out"
    main(["study", "few_shot", "--omniglot", str(omniglot), "--miniimagenet", str(mini), "--output", str(output),
          "--seeds", "2", "--seconds", "0.1", "--marks", "2", "--tasks", "1", "--inner_steps", "3",
          "--linear_steps", "2"])  # fmt: skip
    printed = capsys.readouterr().out
    found = rows(output / "few_shot.csv")
    for name, title, tasks in (
        ("omniglot", "Omniglot, 20-way", 4),
        ("miniimagenet", "miniImageNet's format, 5-way", 2),
    ):
        assert title in printed
        mine = [row for row in found if row["data"] == name]
        check_calls(mine, tasks)
        for method in CALLS:
            for seed in ("0", "1"):
                run = [row for row in mine if (row["method"], row["seed"]) == (method, seed)]
                assert [float(row["mark"]) for row in run] == [0.05, 0.1]
                assert all(float(row["seconds"]) >= float(row["mark"]) for row in run)
                assert all(0 <= float(row["accuracy"]) <= 100 for row in run)
                steps = [float(row["step"]) for row in run]
                assert steps == sorted(steps)
                assert steps[0] >= 1
        with Image.open(output / f"few_shot_{name}.png") as picture:
            assert picture.width > 900
    told = [record.getMessage() for record in caplog.records if "execution over tasks" in record.getMessage()]
    assert len(told) == len(set(told)) >= 2
    assert printed.count("| ANIL ") == printed.count("| AID-BiO ") == 2
    assert printed.count("ITD-BiO minus ANIL after 0.1 s: ") == 2
    assert "| 0.05 s | 0.1 s |" in " ".join(printed.split())


@pytest.mark.usefixtures("thin")
def test_few_shot_on_one_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["study", "few_shot", "--miniimagenet", str(make_miniimagenet(tmp_path / "mini")), "--output", str(tmp_path),
          "--seeds", "1", "--seconds", "0.01", "--marks", "1", "--tasks", "1"])  # fmt: skip
    assert "Omniglot" not in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} >= {"few_shot.csv", "few_shot_miniimagenet.png"}
    assert not (tmp_path / "few_shot_omniglot.png").exists()


def test_a_run_of_the_few_shot_study_is_a_plain_loop(tmp_path: Path) -> None:
    """Its first step changes nothing, its turns go on where the last one ended, and its tasks are those of its seed."""
    data = OmniglotDataModule(str(make_omniglot(tmp_path / "omniglot", drawings=4)), ways=3, shots=1, queries=2,
                              tasks_per_batch=2)  # fmt: skip
    data.ready()
    module = ANIL(Conv4(ways=3, hidden=4), inner_steps=2, inner_lr=0.1)
    plain = copy.deepcopy(module)
    run = Run(module, data, seed=7, outer_lr=0.01)
    run.train(1e-6)
    run.accuracy(2)
    run.train(run.seconds + 0.05)
    assert run.steps >= 2
    assert run.counts.as_dict() == {"gc_f": 2 * run.steps, **dict.fromkeys(("gc_g", "jvp", "hvp"), 4 * run.steps)}
    optimizer = torch.optim.Adam(plain.parameters(), lr=0.01)
    for step in range(run.steps):
        optimizer.zero_grad()
        plain.training_step(data.draw(7, "train", [2 * step, 2 * step + 1]), step).backward()
        optimizer.step()
    expected: Mapping[str, torch.Tensor] = dict(plain.named_parameters())
    for name, value in module.named_parameters():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["nothing"], "study is 'nothing', but it must be one of hyper_cleaning, newsgroups, few_shot"),
        (["hyper_cleaning", "--root", "ROOT", "--output", "x", "--methods", "[SGD]"], "methods has ['SGD']"),
        (["hyper_cleaning", "--root", "ROOT", "--output", "x", "--seeds", "0"], "seeds is 0"),
        (["hyper_cleaning", "--root", "ROOT", "--output", "x"], "has no MNIST files"),
        (["hyper_cleaning", "--root", "ROOT", "--output", "x", "--threads", "0"], "threads is 0"),
        (["hyper_cleaning", "--output", "x"], "root"),
        (["newsgroups", "--root", "ROOT", "--output", "x"], "has neither 20news-bydate.tar.xz nor"),
        (["newsgroups", "--root", "ROOT", "--output", "x", "--seeds", "0"], "seeds is 0"),
        (["few_shot", "--output", "x"], "omniglot and miniimagenet are both missing"),
        (["few_shot", "--miniimagenet", "ROOT", "--output", "x", "--marks", "0"], "marks is 0"),
        (["few_shot", "--miniimagenet", "ROOT", "--output", "x", "--seconds", "-1"], "seconds is -1"),
        (["few_shot", "--miniimagenet", "ROOT", "--output", "x", "--l2", "0"], "l2 is 0"),
        (["few_shot", "--miniimagenet", "ROOT", "--output", "x"], "miniImageNet"),
    ],
)
def test_what_a_user_gets_wrong_is_one_line(
    args: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["study", *(str(tmp_path) if arg == "ROOT" else arg for arg in args)])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.startswith("metalearn: error: ")
    assert error.count("\n") == 1


def test_help_names_the_studies(capsys: pytest.CaptureFixture[str]) -> None:
    main(["study"])
    assert "hyper_cleaning, newsgroups, few_shot" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    words = " ".join(capsys.readouterr().out.split())
    assert "metalearn study step_size" in words
    assert "metalearn data info" in words


def test_spread_over_seeds() -> None:
    assert spread([1.0, 3.0]) == (2.0, pytest.approx(2**0.5))
    assert spread([1.0]) == (1.0, 0.0)
    traces = [Trace("a", seed, [{"x": 0, "y": seed}, {"x": 2 + seed, "y": 2 + 2 * seed}]) for seed in (0, 1)]
    grid, mean, deviation = mean_and_spread(traces, "x", "y", places=3)
    np.testing.assert_allclose(grid, [0, 1, 2])
    np.testing.assert_allclose(mean, [0.5, (1 + 2) / 2, (2 + 3) / 2], atol=0.2)
    assert deviation[0] == pytest.approx(0.5**0.5)
