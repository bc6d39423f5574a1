"""bf16 on CPUs with and without its arithmetic, as the machine tells."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch import nn

from metalearn import MAML, Batch
from metalearn.modules.training import precision
from tests.modules.episodic.test_evaluation import NoiseTasks, trainer
from tests.networks import TinyConv

OLD = "processor : 0\nflags : fpu avx2 avx512f avx512_vnni\n"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A CPU that torch says nothing good of; the file that the system describes it in."""
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False, raising=False)
    path = tmp_path / "cpuinfo"
    monkeypatch.setattr(precision, "CPU_INFO", path)
    return path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (OLD, False),
        ("flags : fpu avx512f avx512_bf16\n", True),
        ("flags : fpu amx_tile amx_bf16\n", True),
        ("Features : fp asimd bf16 i8mm\n", True),
        ("Features : fp asimd ebf16_not sve\n", False),
        ("machine : unknown\n", None),
        (None, None),
    ],
)
def test_the_system_is_asked_where_torch_does_not_know(machine: Path, text: str | None, expected: bool | None) -> None:
    if text is not None:
        machine.write_text(text)
    assert precision.multiplies_bf16() is expected


@pytest.mark.parametrize("name", ["_is_avx512_bf16_supported", "_is_amx_tile_supported"])
def test_torch_is_believed(machine: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.write_text(OLD)
    monkeypatch.setattr(torch.cpu, name, lambda: True, raising=False)
    assert precision.multiplies_bf16() is True


@pytest.mark.parametrize(
    ("asked", "old", "lines"), [("bf16-mixed", True, 1), ("bf16-mixed", False, 0), ("32-true", True, 0)]
)
def test_one_line_says_that_bf16_is_slow_here(
    machine: Path, asked: str, old: bool, lines: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    machine.write_text(OLD if old else OLD.replace("avx2", "avx512_bf16"))
    run = trainer(tmp_path, limit_val_batches=0, max_steps=1, precision=asked)
    with caplog.at_level(logging.INFO):
        run.fit(MAML(TinyConv(), inner_steps=1), datamodule=NoiseTasks(train_tasks=4))
    said = [record.message for record in caplog.records if "bf16 arithmetic" in record.message]
    assert len(said) == lines
    assert all("use precision=32-true" in line and "\n" not in line for line in said)


def test_a_module_that_was_cast_after_it_has_adapted_takes_the_same_inputs() -> None:
    torch.manual_seed(0)
    module = MAML(nn.Linear(8, 3), inner_steps=1, inner_lr=0.1)
    support = Batch(torch.randn(6, 8), torch.arange(3).repeat(2))
    before = module.adapt(support)(support.x)
    module.double()
    logits = module.adapt(support)(support.x)
    assert logits.dtype == torch.float64
    torch.testing.assert_close(logits.float(), before, rtol=1e-5, atol=1e-6)
