"""The compiled step: the same gradient in float64, one compilation a shape, and one line where there is no compiler."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from metalearn import ANIL, MAML
from tests.modules.episodic.test_meta_gradient import largest_error, plain_loop
from tests.networks import TinyConv, noise_episode

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


class Small(nn.Module):
    """A convolution, a normalisation and a head: every kind of thing that is traced, in few operators."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()
        )
        self.head = nn.Linear(36, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))  # type: ignore[no-any-return]


def compile_lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.getMessage().startswith("compile:")]


@pytest.mark.long
def test_compiled_equals_a_plain_loop(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    net, episode = Small().double(), noise_episode(tasks=2)
    expected = plain_loop(copy.deepcopy(net), episode, 2, 0.25, False)
    module = MAML(net, inner_steps=2, inner_lr="learn", initial_inner_lr=0.25, compile=True).double()
    eager = MAML(copy.deepcopy(net), inner_steps=2, inner_lr="learn", initial_inner_lr=0.25).double()
    with caplog.at_level("INFO"):
        grads = module.meta_gradient(episode)
        again = module.meta_gradient(noise_episode(tasks=2, seed=1))
    (line,) = compile_lines(caplog)
    assert "compiled in" in line
    assert largest_error({k: v for k, v in grads.items() if k in expected}, expected) < 1e-9
    assert largest_error(grads, eager.meta_gradient(episode)) < 1e-9  # with the step sizes' gradient
    assert largest_error(again, eager.meta_gradient(noise_episode(tasks=2, seed=1))) < 1e-9


@pytest.mark.long
def test_stacked_tasks_compile_too(caplog: pytest.LogCaptureFixture) -> None:
    """As on a GPU: all tasks in one graph."""
    torch.manual_seed(0)
    net, episode = Small().double(), noise_episode(tasks=2)
    expected = plain_loop(copy.deepcopy(net), episode, 1, 0.3, False, "head")
    module = ANIL(net, inner_steps=1, inner_lr=0.3, compile=True, tasks_at_once=2)
    with caplog.at_level("INFO"):
        assert largest_error(module.meta_gradient(episode), expected) < 1e-9
    (line,) = compile_lines(caplog)
    assert line.startswith("compile: 2 tasks of ")


def test_without_a_compiler_it_runs_uncompiled(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found\nmore lines")

    monkeypatch.setattr("torch.compile", fail)
    net, episode = nn.Linear(3, 3).double(), noise_episode(shape=(3,))
    expected = plain_loop(copy.deepcopy(net), episode, 2, 0.3, False)
    module = MAML(net, inner_steps=2, inner_lr=0.3, compile=True)
    with caplog.at_level("INFO"):
        for _ in range(2):
            assert largest_error(module.meta_gradient(episode), expected) < 1e-9
    (line,) = compile_lines(caplog)
    assert "because InvalidCxxCompiler: No working C++ compiler found; it runs uncompiled" in line


def test_what_depends_on_the_data_runs_uncompiled() -> None:
    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.linear(x)
            return y if float(y.detach().sum()) > 0 else 2 * y

    torch.manual_seed(0)
    net, episode = Gate().double(), noise_episode(shape=(3,))
    expected = plain_loop(copy.deepcopy(net), episode, 2, 0.3, False)
    assert largest_error(MAML(net, inner_steps=2, inner_lr=0.3, compile=True).meta_gradient(episode), expected) < 1e-9


def test_other_step_sizes_are_compiled_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is traced holds them as constants; the compiler itself is left out here."""
    monkeypatch.setattr("torch.compile", lambda graph, **_: graph)
    torch.manual_seed(0)
    net, episode = nn.Linear(3, 3).double(), noise_episode(shape=(3,))
    module = MAML(net, inner_steps=2, inner_lr=0.3, compile=True)
    for size in (0.3, 0.6, 0.3):
        module.rescale_steps(size / module.hparams["inner_lr"])
        expected = plain_loop(copy.deepcopy(net), episode, 2, size, False)
        assert largest_error(module.meta_gradient(episode), expected) < 1e-9


def test_another_attribute_of_a_layer_is_compiled_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """And another frozen tensor, of the same shape as the one before."""
    monkeypatch.setattr("torch.compile", lambda graph, **_: graph)
    torch.manual_seed(0)
    net, episode = nn.Sequential(nn.Linear(3, 3), nn.ELU(), nn.Linear(3, 3)).double(), noise_episode(shape=(3,))
    module = MAML(net, inner_steps=2, inner_lr=0.3, compile=True)

    def same() -> None:
        expected = MAML(copy.deepcopy(net), inner_steps=2, inner_lr=0.3).meta_gradient(episode)
        assert largest_error(module.meta_gradient(episode), expected) < 1e-9

    same()
    net[1].alpha = 3.0
    same()
    for frozen, trained in ((0, 2), (2, 0)):
        net[frozen].requires_grad_(False)
        net[trained].requires_grad_(True)
        same()


@pytest.mark.parametrize(("backend", "own"), [("inductor", False), ("eager", True)])
def test_a_module_that_went_through_torch_compile_runs_as_it_is(
    backend: str, own: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As Lightning's guide has it; also where a user's subclass calls our steps from its own."""
    weights = []
    for compiled in (False, True):
        L.seed_everything(0, verbose=False)
        module: Any = (Doubled if own else MAML)(TinyConv(), inner_steps=2)
        trainer = L.Trainer(
            max_steps=2, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
            enable_checkpointing=False, default_root_dir=tmp_path,
        )  # fmt: skip
        tasks = [noise_episode(2, seed=seed, dtype=torch.float32) for seed in range(2)]
        loader = DataLoader(tasks, batch_size=None)
        with caplog.at_level("INFO"):
            trainer.fit(torch.compile(module, backend=backend) if compiled else module, loader, loader)
            trainer.test(module, loader, verbose=False)
        weights.append(torch.cat([value.detach().flatten() for value in module.parameters()]))
        said = [line for line in caplog.messages if "torch.compile compiles nothing of it" in line]
        assert bool(said) is compiled
    assert torch.equal(*weights)


class Doubled(MAML):
    """A user's own step over ours."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return 2 * super().training_step(batch, batch_idx)
