"""The picture of a task follows its data, and none of them costs the summary."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from metalearn import MAML, Batch, Episode
from metalearn.metrics import Interval
from metalearn.modules.episodic import task_picture
from metalearn.modules.episodic.outcome import find_better_steps
from metalearn.modules.episodic.task_picture import draw_task
from metalearn.reports.completion import find_pixels
from metalearn.reports.gallery import Gallery
from metalearn.reports.outcome import Fact, Picture

WAYS = 3
SEEDED = torch.Generator().manual_seed(0)


class Flat(nn.Module):
    """Any inputs to outputs of any shape."""

    def __init__(self, inputs: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(inputs, math.prod(shape)))

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.net(x.reshape(len(x), -1).to(self.net[1].weight.dtype))
        return outputs.reshape(len(x), *self.shape)


class Data:
    """One task of examples and targets of any shape."""

    def __init__(self, shape: tuple[int, ...], target: tuple[int, ...] | None, whole: bool) -> None:
        self.shape, self.target, self.whole = shape, target, whole

    def episode(self, seed: int, split: str, index: int) -> Episode:
        assert (split, index) == ("test", 0)
        generator = torch.Generator().manual_seed(0)

        def role(shots: int) -> Batch:
            n = WAYS * shots
            x = torch.randint(0, 9, (n, *self.shape), generator=generator)
            y = torch.arange(n) % WAYS
            values = x if self.whole else x.float() + y.reshape(-1, *(1 for _ in self.shape))
            return Batch(values, y if self.target is None else torch.randn(n, *self.target, generator=generator))

        return Episode(role(2), role(4))


@pytest.mark.parametrize(
    ("shape", "target", "whole", "drawn"),
    [
        ((1,), None, False, True),
        ((2,), None, False, True),
        ((8,), None, False, True),
        ((3, 40), None, False, True),
        ((20, 24), None, False, True),
        ((1, 9, 9), None, False, True),
        ((3, 9, 9), None, True, True),
        ((5, 9, 9), None, False, True),
        ((2, 4, 6, 6), None, False, True),
        ((2, 2, 3, 4, 4), None, False, False),
        ((12,), None, True, False),
        ((5, 12), None, True, False),
        ((1,), (1,), False, True),
        ((1,), (), False, True),
        ((4,), (1,), False, True),
        ((4,), (2, 3), False, True),
        ((3, 6, 6), (6, 6), False, True),
    ],
)
def test_a_picture_that_fits_the_data_or_none(
    shape: tuple[int, ...], target: tuple[int, ...] | None, whole: bool, drawn: bool, tmp_path: Path
) -> None:
    outputs = (WAYS,) if target is None else target
    module = MAML(
        Flat(math.prod(shape), outputs), inner_steps=2, inner_lr=0.01, loss="cross_entropy" if target is None else "mse"
    )
    path = draw_task(tmp_path / "episode.png", Data(shape, target, whole), module, "run")
    assert (path is not None) == drawn == (tmp_path / "episode.png").is_file()
    if path is not None:
        with Image.open(path) as picture:
            assert min(picture.size) > 100


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_a_module_in_another_precision_draws(kind: torch.dtype, tmp_path: Path) -> None:
    module = MAML(Flat(81, (WAYS,)), inner_steps=1, inner_lr=0.01).to(kind)
    assert draw_task(tmp_path / "episode.png", Data((1, 9, 9), None, False), module, "run") is not None


@pytest.mark.parametrize(("channels", "loss"), [(1, "mse"), (3, "mse"), (3, "gaussian_nll")])
def test_pixels_of_one_image_are_drawn_as_an_image(
    channels: int, loss: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = torch.cartesian_prod(torch.arange(5.0), torch.arange(4.0))[torch.randperm(20, generator=SEEDED)]
    colours = torch.rand(20, channels, generator=SEEDED)
    task = Episode(Batch(places[:6], colours[:6]), Batch(places[6:], colours[6:]))
    drawn: dict[str, Any] = {}
    monkeypatch.setattr(task_picture, "draw_completion", lambda *values: drawn.update(enumerate(values)))
    module = MAML(Flat(2, (channels * (1 + (loss == "gaussian_nll")),)), inner_steps=2, inner_lr=0.01, loss=loss)

    class Pixels:
        def episode(self, seed: int, split: str, index: int) -> Episode:
            return task

    draw_task(tmp_path / "a.png", Pixels(), module, "run")
    monkeypatch.undo()
    _, shape, (known, other), _, fits, _, spread = drawn.values()
    assert shape == (5, 4)
    assert torch.equal(torch.tensor([*known, *other]), (places[:, 0] * 4 + places[:, 1]).long())
    expected = module.adapt(task.support, steps=2)(task.query.x).detach()[:, :channels]
    torch.testing.assert_close(torch.from_numpy(fits[2][1]), expected)
    assert (spread is not None) == (loss == "gaussian_nll")
    path = draw_task(tmp_path / "a.png", Pixels(), module, "run")
    assert path is not None
    with Image.open(path) as picture:
        assert picture.width > 2.5 * picture.height


@pytest.mark.parametrize(
    "places",
    [
        torch.cartesian_prod(torch.arange(5.0), torch.arange(4.0))[1:],  # a pixel is missing
        torch.cartesian_prod(torch.arange(5.0), torch.arange(4.0))[[0, *range(19)]],  # one is there twice
        torch.cartesian_prod(torch.arange(20.0), torch.arange(3.0)),  # no image
        torch.rand(20, 2),
        torch.rand(20, 3),
        torch.rand(20),
    ],
)
def test_other_points_are_no_image(places: Tensor) -> None:
    assert find_pixels(places.numpy()) is None


def test_a_picture_that_fails_is_told(tmp_path: Path) -> None:
    def broken(path: Path) -> Path:
        raise ValueError("no\nsuch font")

    pictures = [Picture("a.png", broken), Picture("b.png", lambda path: path), Picture("c.png", lambda path: None)]
    assert Gallery(tmp_path).draw(lambda: pictures) == [
        Fact("pictures", str(tmp_path / "b.png"), {"pictures": [str(tmp_path / "b.png")]}),
        Fact("no picture", failure := "a.png could not be drawn (ValueError: no such font)", {"notes": [failure]}),
    ]
    failure = "none could be drawn (ZeroDivisionError: division by zero)"
    assert Gallery(tmp_path).draw(lambda: [Picture("d.png", broken)][1:2] or 1 / 0) == [  # type: ignore[arg-type, return-value]
        Fact("no picture", failure, {"notes": [failure]})
    ]


def results(kind: str, *values: tuple[float, float]) -> dict[tuple[str, int], Interval]:
    return {(kind, step): Interval(mean, ci95, 100) for step, (mean, ci95) in enumerate(values)}


@pytest.mark.parametrize(
    ("found", "classifies", "told"),
    [
        (
            results("acc", (0.2, 0.01), (0.774, 0.02), (0.6, 0.02), (0.561, 0.02)),
            True,
            "77.40 % ± 2.00 after 1 inner step of 3",
        ),
        (results("acc", (0.2, 0.01), (0.575, 0.02), (0.561, 0.02)), True, None),
        (results("acc", (0.6, 0.01), (0.5, 0.02)), True, "60.00 % ± 1.00 before adaptation"),
        (results("loss", (0.9, 0.01), (0.2, 0.01), (0.5, 0.02)), False, "0.2000 ± 0.0100 after 1 inner step of 2"),
        (results("loss", (0.9, 0.01), (0.5, 0.01), (0.2, 0.02)), False, None),
        (results("acc", (0.2, math.nan), (0.9, math.nan), (0.5, math.nan)), True, None),
    ],
)
def test_another_number_of_steps_is_told_where_it_is_better_by_more_than_the_interval(
    found: Any, classifies: bool, told: str | None
) -> None:
    facts = find_better_steps(found, max(step for _, step in found), classifies)
    assert len(facts) == (told is not None)
    if told is not None:
        assert facts[0].text.startswith(told)
