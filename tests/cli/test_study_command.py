"""``python -m metalearn study``: each study from tiny made files to its table, CSV file and picture."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metalearn.cli import main
from metalearn.theory.studies.curves import Trace, mean_and_spread, spread
from metalearn.theory.studies.hyper_cleaning import BASELINES, METHODS, run_baseline
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


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["nothing"], "study is 'nothing', but it must be one of hyper_cleaning, newsgroups"),
        (["hyper_cleaning", "--root", "ROOT", "--output", "x", "--methods", "[SGD]"], "methods has ['SGD']"),
        (["hyper_cleaning", "--root", "ROOT", "--output", "x", "--seeds", "0"], "seeds is 0"),
        (["hyper_cleaning", "--root", "ROOT", "--output", "x"], "has no MNIST files"),
        (["hyper_cleaning", "--root", "ROOT", "--output", "x", "--threads", "0"], "threads is 0"),
        (["hyper_cleaning", "--output", "x"], "root"),
        (["newsgroups", "--root", "ROOT", "--output", "x"], "has neither 20news-bydate.tar.xz nor"),
        (["newsgroups", "--root", "ROOT", "--output", "x", "--seeds", "0"], "seeds is 0"),
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
    assert "hyper_cleaning, newsgroups" in capsys.readouterr().out


def test_spread_over_seeds() -> None:
    assert spread([1.0, 3.0]) == (2.0, pytest.approx(2**0.5))
    assert spread([1.0]) == (1.0, 0.0)
    traces = [Trace("a", seed, [{"x": 0, "y": seed}, {"x": 2 + seed, "y": 2 + 2 * seed}]) for seed in (0, 1)]
    grid, mean, deviation = mean_and_spread(traces, "x", "y", places=3)
    np.testing.assert_allclose(grid, [0, 1, 2])
    np.testing.assert_allclose(mean, [0.5, (1 + 2) / 2, (2 + 3) / 2], atol=0.2)
    assert deviation[0] == pytest.approx(0.5**0.5)
