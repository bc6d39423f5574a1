"""The recorded step: where it reads and writes, when it is recorded anew, and what stands against it.

A CPU has no CUDA graphs. What stands for them here computes into the same memory again, and never at the time of recording.
"""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from metalearn import ALFA, ANIL, MAML, ConfigError, Episode, MeTAL, MetaModule, ProtoNet
from tests.modules.episodic.test_meta_gradient import largest_error, plain_loop
from tests.networks import TinyConv, noise_episode


class FakeGraphs:
    """Replays on a CPU."""

    recorded = 0
    replayed = 0
    error = 0.0
    fails: BaseException | None = None

    def find_obstacle(self, device: torch.device) -> str | None:
        return None

    def read_generator(self, device: torch.device) -> Tensor:
        return torch.get_rng_state()

    def set_generator(self, device: torch.device, state: Tensor) -> None:
        torch.set_rng_state(state)

    def warm_up(self, device: torch.device, run: Callable[[], Sequence[Tensor]]) -> list[Tensor]:
        return list(run())

    def record(self, device: torch.device, run: Any) -> tuple[list[Tensor], Callable[[], None]]:
        if FakeGraphs.fails is not None:
            raise FakeGraphs.fails
        state = torch.get_rng_state()
        outputs = [torch.full_like(output, 77) for output in run()]  # nothing is computed as it is recorded
        torch.set_rng_state(state)
        FakeGraphs.recorded += 1

        def replay() -> None:
            FakeGraphs.replayed += 1
            for output, value in zip(outputs, run(), strict=True):
                output.copy_(value * (1 + FakeGraphs.error))

        return outputs, replay


@pytest.fixture(autouse=True)
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FakeGraphs]]:
    monkeypatch.setattr("metalearn.inner.execution.recorded.CudaGraphs", FakeGraphs)
    for name, value in {"recorded": 0, "replayed": 0, "error": 0.0, "fails": None}.items():
        monkeypatch.setattr(FakeGraphs, name, value)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # threads share the tasks of a CPU alone, where nothing is recorded
    yield FakeGraphs
    torch.set_num_threads(threads)


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.getMessage().startswith("compile:")]


def same(module: MetaModule, episode: Episode) -> None:
    """Its meta-gradient is that of its twin that records nothing."""
    expected = twin(module).meta_gradient(episode)
    found = module.meta_gradient(episode)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-9, atol=1e-12)


def twin(module: MetaModule) -> MetaModule:
    """The same module, whose steps run as they are."""
    taken = inspect.signature(type(module)).parameters.keys() - {"backbone", "loss"}
    options = {**{key: value for key, value in module.hparams.items() if key in taken}, "compile": False}
    other = type(module)(copy.deepcopy(module.backbone), **options).to(next(module.backbone.parameters()).dtype)
    other.load_state_dict(module.state_dict())
    return other


def test_the_third_step_is_replayed(graphs: type[FakeGraphs], caplog: pytest.LogCaptureFixture) -> None:
    """Other weights and other tasks are read where the recording reads them, and no output is overwritten by the next."""
    torch.manual_seed(0)
    module = MAML(TinyConv().double(), inner_steps=2, inner_lr=0.25, compile="graph")
    before, found, expected = [], [], []
    with caplog.at_level("INFO"):
        for seed in range(5):
            episode = noise_episode(2, seed=seed)
            expected.append(plain_loop(copy.deepcopy(module.backbone), episode, 2, 0.25, False))
            found.append(module.meta_gradient(episode))
            before.append((graphs.recorded, graphs.replayed))
            with torch.no_grad():
                for value in module.parameters():
                    value.mul_(0.9)
    for ours, theirs in zip(found, expected, strict=True):
        assert largest_error(ours, theirs) < 1e-9
    assert before == [(0, 0), (1, 1), (1, 2), (1, 3), (1, 4)]
    (line,) = lines(caplog)
    assert line.startswith("compile: 2 tasks of [6, 1, 8, 8] recorded as one CUDA graph in ")


MAKERS: dict[str, Callable[..., MetaModule]] = {
    "learned sizes": lambda net, **more: MAML(net, inner_steps=2, inner_lr="learn_per_step", **more),
    "sizes of elements": lambda net, **more: MAML(net, inner_steps=2, inner_lr="learn_per_element", **more),
    "head": lambda net, **more: ANIL(net, inner_steps=2, **more),
    "first order": lambda net, **more: MAML(net, inner_steps=2, first_order=True, **more),
    "remat": lambda net, **more: MAML(net, inner_steps=2, memory="remat", inner_lr=0.1, **more),
    "sequential": lambda net, **more: MAML(net, inner_steps=2, execution="sequential", inner_lr=0.1, **more),
    "adam": lambda net, **more: MAML(net, inner_steps=2, inner_optimizer="adam", inner_lr=0.01, **more),
    "support": lambda net, **more: MAML(net, inner_steps=2, norm="support", inner_lr=0.1, **more),
    "alfa": lambda net, **more: ALFA(net, inner_steps=2, inner_lr=0.1, **more),
    "metal": lambda net, **more: MeTAL(net, inner_steps=2, inner_lr=0.1, **more),
    "ridge": lambda net, **more: ANIL(net, head_solver="ridge", **more),
    "protonet": lambda net, **more: ProtoNet(net, **more),
}


@pytest.mark.parametrize("name", MAKERS)
def test_replays_are_the_step_itself(name: str, graphs: type[FakeGraphs]) -> None:
    torch.manual_seed(0)
    module = MAKERS[name](TinyConv(), compile="graph").double()
    for seed in range(4):
        same(module, noise_episode(2, seed=seed))
        with torch.no_grad():
            for value in module.parameters():
                value.mul_(0.95)
    assert graphs.recorded == 1
    assert graphs.replayed >= 3


def changes() -> dict[str, Callable[[Any], None]]:
    def freeze(module: Any) -> None:
        module.backbone.body[0].weight.requires_grad_(False)

    def freeze_another(module: Any) -> None:
        freeze(module)
        for _ in range(3):
            module.meta_gradient(noise_episode(2))
        module.backbone.body[0].weight.data = module.backbone.body[0].weight.data.clone() * 2

    def rescale(module: Any) -> None:
        module.rescale_steps(0.5)

    def steps(module: Any) -> None:
        module.inner_steps = 1

    def attribute(module: Any) -> None:
        module.backbone.body[1].eps = 0.5

    def layer(module: Any) -> None:
        module.backbone.body[2] = nn.Tanh()

    def dropout(module: Any) -> None:
        module.backbone.eval()

    return {change.__name__: change for change in (freeze, freeze_another, rescale, steps, attribute, layer, dropout)}


@pytest.mark.parametrize("name", changes())
def test_what_changes_is_recorded_anew(name: str, graphs: type[FakeGraphs]) -> None:
    """Or runs as it is, but is never replayed as it was; what is frozen is read where it lies."""
    torch.manual_seed(0)
    module = MAML(TinyConv().double(), inner_steps=2, inner_lr=0.2, compile="graph")
    for _ in range(3):
        module.meta_gradient(noise_episode(2))
    assert graphs.recorded == 1
    changes()[name](module)
    for seed in range(3):
        expected = plain(module, noise_episode(2, seed=seed))
        found = module.meta_gradient(noise_episode(2, seed=seed))
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=1e-9, atol=1e-12)
    assert graphs.recorded >= 2


def plain(module: Any, episode: Episode) -> dict[str, Tensor]:
    """The meta-gradient of a module of the same network and sizes that records nothing."""
    lr = module.hparams["inner_lr"]
    return MAML(copy.deepcopy(module.backbone), inner_steps=module.inner_steps, inner_lr=lr).meta_gradient(episode)


def test_each_shape_has_its_recording(graphs: type[FakeGraphs], caplog: pytest.LogCaptureFixture) -> None:
    """Tasks of a list too, of other ways; and beyond so many kinds steps run as they are."""
    module = MAML(TinyConv().double(), inner_steps=1, inner_lr=0.1, compile="graph")
    with caplog.at_level("INFO"):
        for _ in range(3):
            for tasks in range(1, 11):
                same(module, noise_episode(tasks))
    assert graphs.recorded == 8
    assert sum("8 kinds of steps are recorded" in line for line in lines(caplog)) == 1
    ways = MAML(TinyConv(), inner_steps=1, inner_lr=0.1, compile="graph")
    losses = [ways.training_step([noise_episode(1, dtype=torch.float32)], 0).item() for _ in range(4)]
    assert len(set(losses)) == 1


def test_a_recording_that_fails_leaves_the_step_as_it_is(
    graphs: type[FakeGraphs], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "fails", RuntimeError("operation not permitted when stream is capturing\nmore"))
    module = MAML(TinyConv().double(), inner_steps=1, inner_lr=0.1, compile="graph")
    with caplog.at_level("INFO"):
        for _ in range(4):
            same(module, noise_episode(2))
    (line,) = lines(caplog)
    assert line.endswith("because operation not permitted when stream is capturing; it runs as it is")
    assert graphs.replayed == 0


def test_a_replay_that_gives_something_else_is_not_used(
    graphs: type[FakeGraphs], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "error", 1e-6)
    module = MAML(TinyConv().double(), inner_steps=1, inner_lr=0.1, compile="graph")
    with caplog.at_level("INFO"):
        for _ in range(4):
            same(module, noise_episode(2))
    (line,) = lines(caplog)
    assert line == "compile: the recorded step is not used, because it differs from the step itself by 1e-06"


def drop(compile: Any, memory: Any = "store") -> list[float]:
    """Losses, gradients and a last number of a network with dropout, in which draws show."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 3))
    module = MAML(net, inner_steps=2, inner_lr=0.1, compile=compile, memory=memory)
    episode = noise_episode(2, shape=(3,), dtype=torch.float32)
    module.meta_gradient(episode)
    torch.manual_seed(1)
    losses = [module.meta_loss(episode).loss.item() for _ in range(4)]
    grads = [module.meta_gradient(episode)["backbone.0.weight"].sum().item() for _ in range(4)]
    return [*losses, *grads, torch.rand(1).item()]


def test_dropout_draws_anew_in_every_replay(graphs: type[FakeGraphs]) -> None:
    """And what the step itself would have drawn."""
    recorded = drop("graph")
    assert recorded == drop(False)
    assert len(set(recorded)) == 9
    assert graphs.replayed >= 7


class Hooked(TinyConv):
    def __init__(self) -> None:
        super().__init__()
        self.head.register_forward_hook(lambda *_: None)


@pytest.mark.parametrize(("make", "reason"), [
    (lambda: MAML(Hooked(), inner_steps=1, compile="graph"), "the network itself is called, whose Python may do more"),
    (lambda: MAML(TinyConv(), inner_steps=1, norm="per_step", compile="graph"), "norm 'per_step' keeps statistics"),
])  # fmt: skip
def test_what_python_must_see_is_not_recorded(
    make: Callable[[], MAML], reason: str, graphs: type[FakeGraphs], caplog: pytest.LogCaptureFixture
) -> None:
    module = make()
    with caplog.at_level("INFO"):
        for _ in range(3):
            module.meta_gradient(noise_episode(2, dtype=torch.float32))
    (line,) = lines(caplog)
    assert reason in line
    assert graphs.recorded == 0


def train(compile: Any, folder: Path, precision: Any = "32-true") -> MAML:
    """Five steps of a stock Trainer."""
    L.seed_everything(0, verbose=False)
    module = MAML(TinyConv(), inner_steps=1, inner_lr=0.1, compile=compile)
    tasks = [noise_episode(2, seed=seed, dtype=torch.float32) for seed in range(5)]
    L.Trainer(
        max_steps=5, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, default_root_dir=folder, limit_val_batches=1, precision=precision,
    ).fit(module, *[DataLoader(tasks, batch_size=None)] * 2)  # type: ignore[arg-type] # fmt: skip
    return module


def test_a_run_is_the_same_and_survives_copies(graphs: type[FakeGraphs], tmp_path: Path) -> None:
    plain, module = (train(compile, tmp_path) for compile in (False, "graph"))
    assert graphs.replayed == 4
    torch.testing.assert_close(list(module.parameters()), list(plain.parameters()))
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        same(other.double(), noise_episode(2))


def test_an_unknown_word_is_refused() -> None:
    with pytest.raises(ConfigError, match="compile is 'grap', but it must be True, False, 'graph' or 'steps'"):
        MAML(TinyConv(), compile="grap")  # type: ignore[arg-type]


def test_on_a_cpu_one_line_says_that_nothing_is_recorded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.undo()
    module = MAML(TinyConv().double(), inner_steps=1, inner_lr=0.1, compile="graph")
    with caplog.at_level("INFO"):
        for _ in range(3):
            same(module, noise_episode(2))
    (line,) = lines(caplog)
    assert line.endswith("because its tensors are on the cpu, which has no CUDA graphs; it runs as it is")
