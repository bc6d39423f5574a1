"""Kernels err no more than torch's operators one by one, over a sample of the benchmark's rows; the benchmark would see it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import compositions
import kernel_errors
import pytest
import torch
from compositions import KERNELS, Kernel
from kernel_errors import FACTOR, Error, Setting, find_worst, measure_errors
from torch import Tensor

SAMPLE = [
    Setting("noise", "0..1", 28, False),
    Setting("noise", "0..255", 28, True),
    Setting("smooth", "100..101", 28, False),
    Setting("smooth", "0..1", 28, True),
    Setting("constant", "0..255", 28, False),
    Setting("each constant", "100..101", 28, True),
]


@pytest.mark.parametrize("name", KERNELS)
def test_errors_are_within_four_times_those_of_the_composition(name: str) -> None:
    for setting in SAMPLE:
        for error in measure_errors(KERNELS[name], setting):
            assert error.mark != "BEYOND", (setting, error)
            if error.name == "outputs y":
                assert error.ratio <= FACTOR, (setting, error)


@pytest.mark.parametrize("name", ["batch norm", "batch norm + ReLU", "batch norm + pool + ReLU"])
@pytest.mark.parametrize("images", ["noise", "smooth", "constant"])
def test_an_offset_costs_normalisation_no_digits_of_bf16(name: str, images: str) -> None:
    """Its output was rounded by the offset: more than 100 times as wrong."""
    errors = measure_errors(KERNELS[name], Setting(images, "100..101", 28, True))
    assert errors[0].ratio <= 2
    assert errors[0].relate(errors[0].ours) < 1e-2


@pytest.mark.parametrize("name", ["weight norm", "weight norm, whole"])
def test_a_norm_of_many_equal_values_keeps_its_digits(name: str) -> None:
    for error in measure_errors(KERNELS[name], Setting("constant", "0..1", 28, False)):
        assert error.relate(error.ours) < 3e-7, error


@pytest.mark.parametrize("bf16", [False, True])
def test_attention_is_the_plain_composition(bf16: bool) -> None:
    """With a width of which the root is no power of two, too, and where the softmax is saturated."""
    for images in ("noise", "smooth"):
        for error in measure_errors(KERNELS["attention"], Setting(images, "100..101", 28, bf16)):
            assert error.ratio <= 1.5, error


def test_edge_filters_answer_neither_brightness_nor_half_of_them_slopes() -> None:
    filters = compositions.edge_filters(8, 2, torch.Generator().manual_seed(0))
    slope = torch.arange(3.0).expand(3, 3)
    assert float(filters.sum((2, 3)).abs().max()) < 1e-6
    for direction in (slope, slope.T):
        answers = (filters * direction).sum((2, 3)).abs()
        assert float(answers[:4].max()) < 1e-6
        assert float(answers[4:].min()) > 1e-4


def wrong(kernel: Kernel, change: Callable[[Tensor], Tensor]) -> Kernel:
    return replace(kernel, ours=lambda **tensors: change(kernel.plain(**tensors)))


NOISE = Setting("noise", "0..1", 8, False)


@pytest.mark.parametrize(
    "change", [lambda y: y * (1 + 1e-5), lambda y: y + 1e-5, lambda y: y * math.nan, lambda y: y / 0]
)
def test_wrong_outputs_are_beyond(change: Callable[[Tensor], Tensor]) -> None:
    assert find_worst(measure_errors(wrong(KERNELS["conv"], change), NOISE))["outputs"].mark == "BEYOND"


def test_a_wrong_second_derivative_is_beyond() -> None:
    """As that of torch's weight normalisation, whose values and first derivatives are right."""
    kernel = replace(KERNELS["weight norm"], ours=lambda direction, length: torch._weight_norm(direction, length, 0))
    worst = find_worst(measure_errors(kernel, NOISE))
    assert [worst[group].mark for group in worst] == ["", "", "BEYOND"]


def test_the_other_of_two_equal_maxima_is_no_error() -> None:
    """Of a constant image, the last of four places has the derivative in the place of the first."""
    kernel = KERNELS["batch norm + pool"]
    turned = replace(kernel, ours=lambda images, weight, bias: kernel.plain(images.flip(2, 3), weight, bias).flip(2, 3))
    errors = {error.name: error for error in measure_errors(turned, Setting("constant", "0..1", 8, False))}
    assert errors["first images"].ratio > 1000
    assert errors["first images"].mark == "rounding"
    assert errors["outputs y"].mark == ""


@pytest.mark.parametrize(
    ("ours", "plain", "moved", "size", "ratio", "mark"),
    [
        (0.0, 0.0, 0.0, 0.0, 0.0, ""),
        (0.0, math.nan, 0.0, 1.0, 0.0, ""),
        (1.0, math.nan, 0.0, 1.0, 0.0, ""),
        (math.nan, math.nan, math.nan, 1.0, math.inf, "BEYOND"),
        (math.inf, 1.0, 1.0, 1.0, math.inf, "BEYOND"),
        (3.0, 1.0, 0.0, 1.0, 3.0, ""),
        (5.0, 1.0, 0.0, 1.0, 5.0, "BEYOND"),
        (5.0, 1.0, 2.0, 1.0, 5.0, "rounding"),
        (1.0, 0.0, 0.0, 0.0, math.inf, "BEYOND"),
        (1.0, 0.0, 1.0, 0.0, math.inf, "rounding"),
        (0.5, 0.0, 0.0, 4.0, 0.5, ""),
    ],
)
def test_ratios_where_something_is_no_number_or_nothing(
    ours: float, plain: float, moved: float, size: float, ratio: float, mark: str
) -> None:
    error = Error("outputs y", ours, plain, moved, size, 0.25)
    assert (error.ratio, error.mark) == (ratio, mark)


def test_norms_are_shown_relative_to_what_is_right() -> None:
    error = Error("outputs y", 1.0, 0.0, 0.0, 4.0, 0.25)
    assert (error.relate(1.0), error.relate(0.0)) == (0.25, 0.0)
    assert replace(error, size=0.0).relate(1.0) == math.inf


def test_large_images_are_drawn_less_often() -> None:
    assert [Setting("noise", "0..1", size, False).draws for size in (28, 84, 224)] == [3, 2, 1]


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(kernel_errors, "describe", lambda: "a machine")
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


ROWS = ["--images", "noise", "--ranges", "0..1", "--sizes", "8", "--threads", "1"]


@pytest.mark.usefixtures("light")
def test_a_table_and_a_summary(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        kernel_errors.main([*ROWS, "--kernels", "weight norm", "conv, edges"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert printed.startswith("a machine\n")
    table, summary = printed.split("|  rows |")
    assert table.count("| noise ") == 6
    assert [line.split("|")[-2].strip() for line in summary.splitlines()[2:]] == ["0"] * 6


@pytest.mark.usefixtures("light")
def test_a_kernel_beyond_ends_with_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(KERNELS, "conv", wrong(KERNELS["conv"], lambda y: y * 1.1))
    with pytest.raises(SystemExit) as ended:
        kernel_errors.main([*ROWS, "--kernels", "conv", "--types", "f32"])
    assert ended.value.code == 1
    printed = capsys.readouterr().out.splitlines()
    row = next(line for line in printed if line.startswith("| conv  "))
    assert row.endswith("| BEYOND |")
    summed = next(line for line in reversed(printed) if line.startswith("| conv  "))
    assert [part.strip() for part in summed.split("|")[4:-1]] == ["-", "-", "-", "0", "1"]
