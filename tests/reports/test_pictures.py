"""The pictures of a run: what is written into them."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image

from metalearn.reports import pictures


@pytest.mark.parametrize("points", [1, 2, 11, 12, 21, 51, 101])
def test_points_are_labelled_where_there_is_room(points: int) -> None:
    """The first and the last always; all of a few; at most a dozen."""
    places = pictures._labelled(points)
    assert places[0] == 0
    assert places[-1] == points - 1
    assert len(places) == points if points <= 11 else len(places) <= 12
    gaps = {after - before for before, after in pairwise(places[1:])}
    assert len(gaps) <= 1


def test_the_steps_of_a_long_inner_loop(tmp_path: Path) -> None:
    path = pictures.draw_steps(tmp_path / "steps.png", {step: 80.0 + step / 10 for step in range(21)}, 20, "acc", "x")
    with Image.open(path) as picture:
        assert picture.width > picture.height > 100
