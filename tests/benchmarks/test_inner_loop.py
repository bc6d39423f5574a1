"""The benchmark of the inner loop at toy size: right gradients beside wrong ones, rows, progress and what is left out."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import inner_loop
import machine
import peers
import pytest
import rows
import systems
import torch
from measure import largest_difference
from systems import SYSTEMS, System, build, reference_gradient
from torch import nn
from works import WORKS, Work, flops, network, noise, reduce

TOY = {
    "conv4": {"tasks": 2, "queries": 2, "hidden": 4, "size": 16},
    "resnet12": {"tasks": 2, "queries": 2, "hidden": 2, "size": 16},
    "fully_connected": {"tasks": 2, "queries": 2, "hidden": 80, "size": 6},
    "transformer": {"tasks": 2, "queries": 2, "hidden": 8, "size": 8},
    "lstm": {"tasks": 2, "queries": 2, "hidden": 4, "size": 6},
}
# what learn2learn and higher say of themselves on today's Python and torch, none of it about the gradients
pytestmark = pytest.mark.filterwarnings("ignore")


def shrink(name: str) -> Work:
    work = WORKS[name]
    return replace(work, steps=min(work.steps, 2), **TOY[work.backbone])  # type: ignore[arg-type]


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in WORKS:
        monkeypatch.setitem(WORKS, name, shrink(name))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


LIGHT = ["--threads", "1", "--allocator", "none"]


PAIRS = [
    pytest.param(shrink(name), system, id=f"{name}, {system.name}")
    for name in (
        "second_order",
        "anil",
        "first_order",
        "resnet12",
        "resnet12_anil",
        "fully_connected",
        "transformer",
        "lstm",
    )
    for system in SYSTEMS
    if system.why_not(WORKS[name]).endswith("not installed") or not system.why_not(WORKS[name])
    if not system.bf16 and "compiled" not in system.name
    if "recorded" not in system.name or name == "second_order"
]


@pytest.mark.parametrize(("work", "system"), PAIRS)
def test_gradients_are_those_of_the_plain_loop(work: Work, system: System) -> None:
    """But for torch's normalisation under vmap, whose second derivative is wrong: the table must show that."""
    if system.why_not(work):
        pytest.skip(system.why_not(work))
    error = largest_difference(build(system, work, "cpu", torch.float64).gradient(), reference_gradient(work))
    if "stock" in system.name and work.backbone != "lstm" and work.order == 2 and work.algorithm == "maml":
        assert error > 1e-5
    else:
        assert error < 1e-9


@pytest.mark.parametrize("name", ["second_order", "transformer"])
def test_a_step_in_bf16_runs_under_autocast(name: str) -> None:
    system = next(system for system in SYSTEMS if system.name == "ours: auto, bf16")
    seen = []
    running = build(
        replace(system, make=lambda *parts: peers.Running(lambda: seen.append(peek()), dict)),
        shrink(name),
        "cpu",
        torch.float32,
    )
    running.step()
    running.gradient()
    assert seen == [True]
    build(system, shrink(name), "cpu", torch.float32).step()


def peek() -> bool:
    return torch.is_autocast_enabled("cpu")


def count_by_hooks(net: nn.Module, x: torch.Tensor) -> dict[str, float]:
    """Twice the multiplications of each convolution, from the sizes of what goes in and comes out."""
    counts: dict[str, float] = {}
    for name, layer in net.named_modules():
        if isinstance(layer, nn.Conv2d):

            def count(layer: nn.Conv2d, _: object, y: torch.Tensor, name: str = name) -> None:
                counts[name] = 2.0 * y.numel() * layer.weight[0].numel()

            layer.register_forward_hook(count)
    net.eval()(x)  # one image of 1x1 has no statistics
    return counts


@pytest.mark.parametrize("name", ["second_order", "strided", "first_order", "anil", "resnet12", "resnet12_anil"])
def test_arithmetic_is_that_of_the_convolutions(name: str) -> None:
    """One image's, by way of hooks, and what each pass costs in units of a forward pass."""
    work = shrink(name)
    net = network(work)
    counts = count_by_hooks(net, noise(work).support.x[0, :1].float())
    reads_images = {
        name
        for name, layer in net.named_modules()
        if isinstance(layer, nn.Conv2d) and layer.in_channels == work.channels
    }
    image = sum(count * (2 / 3 if name in reads_images else 1) for name, count in counts.items())
    support, query = 5 * work.shots, 5 * work.queries
    passes = 3 * query + (3 if work.algorithm == "anil" else work.steps * (3 if work.order == 1 else 9)) * support
    assert flops(work) == pytest.approx(image * work.tasks * passes)


def test_sequences_and_vectors_have_no_convolutions() -> None:
    assert flops(WORKS["lstm"]) is flops(WORKS["transformer"]) is flops(WORKS["fully_connected"]) is None


def test_tokens_are_padded_at_the_end() -> None:
    for role in noise(WORKS["lstm"]):
        assert role.x.dtype == torch.int64
        real = role.x != 0
        assert bool(real[..., 0].all())
        assert not bool(real.all())
        assert bool((real.int().diff() <= 0).all())


def test_titles_say_what_the_work_is() -> None:
    assert WORKS["resnet12"].title == (
        "MAML, second order, 1 inner step of 0.01: 2 tasks, 5-way 1-shot, 1 query a class, "
        "ResNet-12 with 64 to 512 filters, 84x84x3"
    )
    assert WORKS["first_order"].title.endswith(
        "16 tasks, 5-way 1-shot, 15 queries a class, Conv4 with 64 filters, 28x28x1"
    )
    assert WORKS["strided"].title.endswith("5 queries a class, strided Conv4 with 64 filters, 28x28x1")
    assert WORKS["fully_connected"].title.endswith("1 query a class, layers of widths 256, 128, 64, 64, 28x28x1")
    assert WORKS["transformer"].title.endswith("a transformer of width 64, up to 32 tokens")
    assert WORKS["lstm"].title.endswith("an LSTM of width 64 each way, up to 16 tokens")


def test_gradients_are_compared_on_little() -> None:
    assert [reduce(WORKS[name]).size for name in ("resnet12", "miniimagenet", "lstm")] == [32, 84, 16]
    assert (reduce(WORKS["50_steps"]).steps, reduce(WORKS["second_order"]).tasks) == (2, 2)


@pytest.mark.parametrize("name", ["transformer", "lstm", "resnet12", "maml"])
def test_rows_of_two_checkouts(name: str) -> None:
    row = replace(rows.ROWS[name], work=shrink(rows.ROWS[name].work.name))
    rows.Running(row).step()
    exact = reference_gradient(row.work)
    found = {key.removeprefix("backbone."): value for key, value in rows.Running(row, exact=True).values().items()}
    assert largest_difference(found, exact) < 1e-9


class Watched(io.StringIO):
    """A stream that knows what was not flushed."""

    pending = ""

    def write(self, text: str) -> int:
        self.pending += text
        return super().write(text)

    def flush(self) -> None:
        self.pending = ""


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> Watched:
    """Standard output, of which everything must be flushed whenever something is measured."""
    stream = Watched()
    monkeypatch.setattr(machine, "gemm_peak", lambda **_: 1.0)
    monkeypatch.setattr(inner_loop, "gemm_peak", lambda: 1.0)
    take_turns = inner_loop.take_turns

    def watch(*args: Any, **keywords: Any) -> Any:
        assert stream.pending == ""
        return take_turns(*args, **keywords)

    monkeypatch.setattr(inner_loop, "take_turns", watch)
    return stream


@pytest.mark.usefixtures("toys")
def test_a_run_prints_its_rows_and_how_far_it_is(
    stream: Watched, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "--rounds",
        "1",
        "--warmup",
        "1",
        "--works",
        "second_order",
        "lstm",
        "--systems",
        "sequential, remat",
        "by hand",
    ]
    with contextlib.redirect_stdout(stream):
        inner_loop.main([*arguments, *LIGHT, "--png", str(tmp_path / "bars.png")])
    printed, progress = stream.getvalue(), capsys.readouterr().err.splitlines()
    conv, lstm = printed.split("### ")[1:]
    assert "%" in line_of(conv, "ours: sequential, remat")
    assert "(wrong)" not in conv
    assert line_of(conv, "torch.func vmap, normalisation by hand")
    assert line_of(lstm, "ours: sequential, remat").split("|")[6].strip() == "-"
    assert "No row: torch.func vmap, normalisation by hand (the network has no normalisation)." in lstm
    assert "No row" not in conv
    assert progress[0] == "second_order: the gradient of the plain loop in float64"
    for line in (
        "the gradient of ours: sequential, remat in float64",
        "ours: sequential, remat is built",
        "ours: sequential, remat takes its first step",
    ):
        assert f"second_order: {line}" in progress
    assert [line for line in progress if "lstm: round" in line] == [
        f"lstm: round {k} of 2, 1 of them to warm up" for k in (1, 2)
    ]
    assert not (tmp_path / "bars.png").exists()  # its bars are ratios to learn2learn, which was not asked for


def line_of(table: str, begin: str) -> str:
    return next((line for line in table.splitlines() if line.startswith(f"| {begin}")), "")


@pytest.mark.usefixtures("toys")
def test_a_quick_run_says_what_it_leaves_out(stream: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inner_loop, "multiplies_bf16", lambda: True)
    with contextlib.redirect_stdout(stream):
        inner_loop.main(["--quick", "--works", "anil", "transformer", *LIGHT, "--png", str(tmp_path / "bars.png")])
    printed = stream.getvalue()
    left = next(line for line in printed.splitlines() if line.startswith("--quick leaves out"))
    assert "second_order, one_step" in left
    assert "anil" not in left.replace("resnet12_anil", "")
    assert "ours: sequential, remat" in left
    assert "higher 0.2.1" not in left
    assert "3 rounds after 1 to warm up" in printed
    assert "peers run the transformer with torch's math attention" in printed
    assert "ours: sequential" not in printed.replace(left, "")
    assert printed.count("| ours: auto ") == 2


def test_quick_chooses_where_nothing_is_asked_for() -> None:
    quick = inner_loop.read_options(["--quick"])
    assert (quick.works, quick.rounds, quick.warmup) == (inner_loop.QUICK["works"], 3, 1)
    assert inner_loop.read_options(["--quick", "--rounds", "5"]).rounds == 5
    full = inner_loop.read_options([])
    assert (full.works, full.rounds, full.warmup) == (list(WORKS), 7, 2)
    assert set(inner_loop.QUICK["systems"]) <= {system.name for system in SYSTEMS}
    asked = inner_loop.read_options(["--quick", "--systems", "sequential"])
    named = {system.name for system in inner_loop.choose_systems(WORKS["anil"], asked)}
    assert named == {"ours: sequential", "ours: sequential, remat", "ours: sequential, steps recorded, remat"}


@pytest.mark.parametrize(
    ("has", "arguments", "rows_in_bf16"),
    [
        (True, [], True),
        (None, [], True),
        (False, [], False),
        (False, ["--bf16"], True),
        (False, ["--device", "cuda"], True),
    ],
)
def test_rows_in_bf16_where_the_cpu_has_it_or_they_are_asked_for(
    has: bool | None,
    arguments: list[str],
    rows_in_bf16: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(inner_loop, "multiplies_bf16", lambda: has)
    options = inner_loop.read_options(arguments)
    systems = inner_loop.choose_systems(WORKS["second_order"], options)
    assert any(system.bf16 for system in systems) is rows_in_bf16
    inner_loop.explain_choice(options)
    assert ("no rows in bf16" in capsys.readouterr().out) is not rows_in_bf16


def test_compiled_rows_are_asked_for() -> None:
    def choose(*arguments: str) -> list[str]:
        chosen = inner_loop.choose_systems(WORKS["anil"], inner_loop.read_options(list(arguments)))
        return [system.name for system in chosen if "compiled" in system.name]

    assert not choose()
    assert "ours: compiled" in choose("--compile")


def test_missing_peers_are_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(systems.importlib.util, "find_spec", lambda name: None)
    inner_loop.explain_gaps(WORKS["50_steps"], inner_loop.read_options(["--bf16"]))
    printed = capsys.readouterr().out
    for reason in (
        "higher 0.2.1 (higher is not installed)",
        "ours: auto, bf16 (50 steps are measured in float32 alone)",
        "torch.func vmap, stock layers (the same wrong gradient as with 5 steps)",
    ):
        assert reason in printed
    assert printed.count("\n") == 2
    for name, reason in (("first_order", "a first-order loop keeps nothing"), ("anil", "the head has little to keep")):
        assert any(system.why_not(WORKS[name]) == reason for system in SYSTEMS)


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        ("model name\t: A chip\nflags\t\t: fpu avx2 avx512f amx_bf16\n", "avx2, avx512f, amx_bf16; torch uses "),
        ("Features\t: fp asimd bf16\n", "asimd, bf16; torch uses "),
        ("", "no features told; torch uses "),
        (None, "no features told; torch uses "),
    ],
)
def test_features_are_what_the_machine_says(
    info: str | None, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cpuinfo"
    if info is not None:
        path.write_text(info)
    monkeypatch.setattr(machine, "CPU_INFO", path)
    assert machine.features() == expected + torch.backends.cpu.get_cpu_capability()
    assert machine.processor()
    assert (machine.processor() == "A chip") is bool(info and "chip" in info)


@pytest.mark.parametrize(
    ("has", "asked", "measured"), [(True, False, True), (None, False, True), (False, False, False), (False, True, True)]
)
def test_the_head_has_the_speed_of_products_in_bf16(
    has: bool | None, asked: bool, measured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "multiplies_bf16", lambda: has)
    monkeypatch.setattr(machine, "gemm_peak", lambda dtype=torch.float32: 7.0 if dtype == torch.float32 else 14.0)
    head = machine.describe(asked)
    assert head.endswith("GEMM peak 7 GFLOP/s, in bf16 14" if measured else "GEMM peak 7 GFLOP/s, no bf16 arithmetic")
    assert f"torch uses {torch.backends.cpu.get_cpu_capability()}" in head


def test_products_are_timed() -> None:
    assert machine.gemm_peak(64, 2) > 0
    assert machine.gemm_peak(64, 2, torch.bfloat16) > 0


@pytest.mark.usefixtures("toys")
def test_a_memory_profile_names_all_that_is_held(capsys: pytest.CaptureFixture[str]) -> None:
    inner_loop.main(["--memory-profile", "--works", "second_order", *LIGHT])
    heading, *rows = [
        line for line in capsys.readouterr().out.splitlines() if "MiB at the peak" in line or "| " in line
    ]
    total = float(re.search(r": ([\d.]+) MiB at the peak of ours: auto", heading).group(1))  # type: ignore[union-attr]
    sizes = [float(row.split("|")[1]) for row in rows if re.match(r"\| +[\d.]+ \|", row)]
    assert len(sizes) > 5
    assert sum(sizes) == pytest.approx(total, abs=0.05 * len(sizes) + 0.05)
    assert any("metalearn" not in row and "kernels/" in row for row in rows)  # lines of ours, from the package on
    assert "all others" in rows[-1]
