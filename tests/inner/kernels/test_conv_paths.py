"""The ways to compute convolutions of many tasks: each product by each path, and the choice among them."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn import MAML, ConfigError
from metalearn.inner.kernels import Geometry, conv_choice
from metalearn.inner.kernels.conv_choice import CHOICE, VARIABLE, ConvChoice, measure
from metalearn.inner.kernels.paths import PATHS
from tests.networks import TinyConv, noise_episode

GEOMETRIES = [
    Geometry(),
    Geometry(padding=(1, 1)),
    Geometry((2, 2), (1, 1)),
    Geometry((3, 2), (0, 2), (2, 1)),
    Geometry(padding=(4, 3)),  # wider than the filters: the input gradient is cut off, not padded
    Geometry((2, 1), (1, 0), (1, 2), 2),
]


@pytest.mark.parametrize("kernel", [(3, 3), (1, 1), (2, 3)])
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("name", PATHS)
def test_every_product_is_that_of_a_loop_over_tasks(name: str, geometry: Geometry, kernel: tuple[int, int]) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 2, 4, 8, 7, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 6, 4 // geometry.groups, *kernel, dtype=torch.float64, requires_grad=True)
    y = torch.stack([F.conv2d(task, own, None, *geometry) for task, own in zip(x, weight, strict=True)])
    grad = torch.randn_like(y)
    of_x, of_weight = torch.autograd.grad(y, [x, weight], grad)
    path = PATHS[name]
    with torch.no_grad():
        pairs = [
            (path.convolve(x, weight, geometry), y),
            (path.differentiate_x(grad, x, weight, geometry), of_x),
            (path.differentiate_weight(grad, x, weight, geometry), of_weight),
        ]
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", PATHS)
def test_the_meta_gradient_is_the_same_by_every_path(name: str) -> None:
    module, episode = MAML(TinyConv().double(), inner_steps=2, inner_lr=0.1, tasks_at_once=2), noise_episode(2)
    expected = module.meta_gradient(episode)
    with CHOICE.forcing(name):
        found = module.meta_gradient(episode)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-9, atol=1e-12)


def fake(seconds: dict[str, float], timed: list[str]) -> ConvChoice:
    """A choice whose clock shows these seconds, in the order of the paths."""
    clock = itertools.cycle(seconds)

    def show(run: Callable[[], Tensor]) -> float:
        run()
        timed.append(next(clock))
        return seconds[timed[-1]]

    return ConvChoice(show)


def product(choice: ConvChoice, size: int = 5, dtype: torch.dtype = torch.float32) -> str:
    """Which path a product takes."""
    x, weight, taken = torch.randn(2, 1, 1, size, size, dtype=dtype), torch.randn(2, 1, 1, 3, 3, dtype=dtype), []
    names = {id(path): name for name, path in PATHS.items()}

    def compute(path: object) -> Tensor:
        taken.append(names[id(path)])
        return PATHS[taken[-1]].convolve(x, weight, Geometry())

    choice.run("output", compute, x, weight, Geometry())
    return taken[-1]


def test_each_product_is_timed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conv_choice, "may_be_timed", lambda x: True)
    timed: list[str] = []
    choice = fake({"grouped": 2.0, "patches": 1.0, "turns": 3.0}, timed)
    assert choice.describe() is None
    assert [product(choice), product(choice), product(choice, 6), product(choice, 5, torch.float64)] == ["patches"] * 4
    assert timed == list(PATHS) * 3  # for another size and another type anew
    assert "of 3 products, each timed once, the fastest are 3 patches; METALEARN_CONVOLUTION=" in str(choice.describe())
    with choice.forcing("turns"):
        assert product(choice) == "turns"
    monkeypatch.setattr(conv_choice, "MOST_TIMED", 3)
    assert product(choice, 7) == "grouped"


@pytest.mark.parametrize("how", ["algorithms", "cudnn"])
def test_deterministic_runs_measure_nothing(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conv_choice, "may_be_timed", lambda x: True)
    timed: list[str] = []
    choice = fake({"grouped": 2.0, "patches": 1.0, "turns": 3.0}, timed)
    if how == "cudnn":
        monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    torch.use_deterministic_algorithms(how == "algorithms")
    try:
        assert product(choice) == "grouped"
    finally:
        torch.use_deterministic_algorithms(False)
    assert not timed


def test_a_path_that_does_not_fit_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the memory of its patches, or as it is tried."""
    monkeypatch.setattr(conv_choice, "may_be_timed", lambda x: True)

    def show(run: Callable[[], Tensor]) -> float:
        run()
        calls.append(1)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("no room")
        return float(len(calls))

    calls: list[int] = []
    assert product(ConvChoice(show)) == "patches"
    monkeypatch.setattr(conv_choice, "MOST_BYTES", 10)
    calls.clear()
    assert product(ConvChoice(show)) == "turns"
    assert len(calls) == 2


def test_what_is_traced_or_on_a_cpu_is_not_timed() -> None:
    timed: list[str] = []
    assert product(fake({"grouped": 2.0}, timed)) == "grouped"
    assert not timed


def test_the_environment_names_a_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "patches")
    assert ConvChoice().forced == "patches"
    monkeypatch.setenv(VARIABLE, "patch")
    with pytest.raises(ConfigError, match="METALEARN_CONVOLUTION is 'patch', but it must be one of grouped, patches"):
        ConvChoice()


def test_the_clock_runs_a_computation() -> None:
    runs: list[int] = []

    def run() -> Tensor:
        runs.append(1)
        return torch.zeros(1)

    assert measure(run) > 0
    assert len(runs) == 2 + conv_choice.REPEATS
