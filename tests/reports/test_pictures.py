"""The pictures of a run: what is written into them."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from metalearn.bilevel import AID, CG, BiO, GradientDescent, quadratic, run
from metalearn.reports import bilevel_pictures, pictures


@pytest.mark.parametrize("points", [1, 2, 11, 12, 21, 51, 101])
def test_points_are_labelled_where_there_is_room(points: int) -> None:
    """The first and the last always; all of a few; at most a dozen."""
    places = pictures.choose_labelled(points)
    assert places[0] == 0
    assert places[-1] == points - 1
    assert len(places) == points if points <= 11 else len(places) <= 12
    gaps = {after - before for before, after in pairwise(places[1:])}
    assert len(gaps) <= 1


def test_the_steps_of_a_long_inner_loop(tmp_path: Path) -> None:
    path = pictures.draw_steps(tmp_path / "steps.png", {step: 80.0 + step / 10 for step in range(21)}, 20, "acc", "x")
    with Image.open(path) as picture:
        assert picture.width > picture.height > 100


def test_runs_against_what_they_cost(tmp_path: Path) -> None:
    q = quadratic(4, 3, 5.0, seed=0)
    x = torch.ones(3, dtype=torch.float64)
    estimator = AID(inner=GradientDescent(step_size=1.0, steps=2), solver=CG(iterations=2))
    runs = {f"{size:g}": run(q.problem, BiO(estimator=estimator, step_size=size), x, steps=3) for size in (1e-4, 2e-4)}
    path = bilevel_pictures.draw_runs(tmp_path / "runs.png", runs, "two step sizes")
    with Image.open(path) as picture:
        assert picture.width > picture.height > 400


def test_a_validation_lies_at_the_calls_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(bilevel_pictures, "save_figure", lambda figure, path: drawn.append(figure) or path)
    calls = {f"oracles/{name}": "10" for name in ("gc_f", "gc_g", "jvp", "hvp")}
    rows = [{"train/loss": "1.0", **calls}, {"val/acc": "0.5"}, {"val/acc": "0.75", "val/calls": "70"}]
    bilevel_pictures.draw_costs(tmp_path / "costs.png", rows, "x")
    (line,) = drawn[0].axes[1].lines
    assert list(line.get_xdata()) == [40.0, 70.0]
    assert list(line.get_ydata()) == [50.0, 75.0]
