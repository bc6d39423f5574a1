"""Memory that runs out is met by fewer tasks at once, as is a limit on it, with the results of a run that asked for so many."""

from __future__ import annotations

import copy
import itertools
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader

from metalearn import ANIL, IMAML, MAML, Batch, ConfigError, Episode, MemoryLimitError, MetaModule
from metalearn.inner.execution import free_memory
from metalearn.inner.execution.peak import measure_peak
from metalearn.modules.episodic import fitting
from tests.networks import Room, TinyConv, noise_episode


class Roomy(nn.Module):
    """Drops, counts its forward passes in a buffer, and takes as many tasks at once as there is room for."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Dropout(0.5), nn.Tanh())
        self.head = nn.Linear(8, 3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        # late, so that dropout has drawn by then
        return self.head(Room.apply(self.layers(x)))


@pytest.fixture(autouse=True)
def _empty_room() -> Any:
    Room.room, Room.most = 1 << 30, 0
    yield
    Room.room = 1 << 30


def make(kind: type[MetaModule], **options: Any) -> MetaModule:
    torch.manual_seed(0)
    if kind is IMAML:  # with inner problems that are convex whatever dropout leaves
        options |= {"lam": 20.0}
    return kind(Roomy(), inner_steps=2, inner_lr=0.02, execution="vectorized", **options)  # type: ignore[call-arg]


def train(module: MetaModule, room: int, tasks: int = 7) -> dict[str, Tensor]:
    """The state after three steps and a validation, from a seed of its own."""
    module.training_step(noise_episode(2, dtype=torch.float32), 0)  # chooses the way while there is room
    Room.room = room
    torch.manual_seed(1)
    loader = DataLoader([noise_episode(tasks, seed=n, dtype=torch.float32) for n in range(3)], batch_size=None)
    trainer = L.Trainer(
        accelerator="cpu", max_steps=3, logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(module, loader, loader)
    return {**module.state_dict(), "drawn": torch.rand(1), **trainer.callback_metrics}


@pytest.mark.parametrize("kind", [MAML, ANIL, IMAML])
def test_a_run_goes_on_as_one_that_asked_for_so_many(kind: type[MetaModule], caplog: pytest.LogCaptureFixture) -> None:
    """Weights, written buffers, dropout's masks and what is drawn later, bit by bit; each halving is said once."""
    with caplog.at_level("INFO"):
        state = train(make(kind), room=2)
    lines = [record.getMessage() for record in caplog.records if "memory has run out" in record.getMessage()]
    halvings = [re.findall(r"(\d) at once", line) for line in lines]
    assert halvings == [["7", "3"], ["3", "1"]] * 2  # of training, and of evaluation
    assert all("\n" not in line and "tasks_at_once=" in line for line in lines)
    expected = train(make(kind, tasks_at_once=1), room=2)
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(state[name], value), name


def test_adaptation_to_many_tasks_goes_on_too() -> None:
    module, many = make(MAML), noise_episode(6, dtype=torch.float32)
    expected = [adapted(many.query.x[0]) for adapted in module.adapt_many(many.support)]
    Room.room, Room.most = 3, 0
    adapted = [adapted(many.query.x[0]) for adapted in module.adapt_many(many.support)]
    assert Room.most == 3
    torch.testing.assert_close(adapted, expected)


def test_the_gradient_is_handed_over_once() -> None:
    """Hooks of parameters see what they see where there is room."""
    seen: list[Tensor] = []
    module, episode = make(MAML).eval(), noise_episode(4, dtype=torch.float32)
    module.training_step(episode, 0)
    module.backbone.head.weight.register_hook(seen.append)  # type: ignore[union-attr]
    module.training_step(episode, 0)  # chooses again, since the layer is another one
    seen.clear()
    for room in (4, 1):
        Room.room = room
        module.training_step(episode, 0).backward()
    assert len(seen) == 2
    torch.testing.assert_close(seen[1], seen[0])


def test_oracle_calls_are_those_of_the_step_that_came_through() -> None:
    counts = []
    for room in (4, 1):
        module, episode = make(IMAML), noise_episode(4, dtype=torch.float32)
        module.training_step(noise_episode(2, dtype=torch.float32), 0)
        Room.room = room
        module.training_step(episode, 0)
        assert module.counts is not None
        counts.append(module.counts.as_dict())
        Room.room = 4
    assert counts[0] == counts[1]


@pytest.mark.parametrize(("memory", "remedy"), [("store", "memory='remat'"), ("remat", "support_chunk")])
def test_a_single_task_that_does_not_fit_is_an_error(memory: str, remedy: str) -> None:
    module, episode = make(MAML, memory=memory), noise_episode(4, dtype=torch.float32)
    module.training_step(episode, 0)
    module.adapt_many(episode.support)
    Room.room = 0
    with pytest.raises(MemoryLimitError, match=r"4 tasks \(1 at once.*" + re.escape(remedy)) as caught:
        module.training_step(episode, 0)
    assert "\n" not in str(caught.value)
    with pytest.raises(MemoryLimitError, match="adaptation to 4 tasks"):
        module.adapt_many(episode.support)


def test_other_errors_pass() -> None:
    class Broken(Roomy):
        def forward(self, x: Tensor) -> Tensor:
            if Room.room == 0:
                raise RuntimeError("a shape is wrong")
            return super().forward(x)

    module, episode = MAML(Broken(), inner_steps=1), noise_episode(dtype=torch.float32)
    module.training_step(episode, 0)
    Room.room = 0
    with pytest.raises(RuntimeError, match="a shape is wrong"):
        module.training_step(episode, 0)


BOUNDED = """
import json, resource, sys, torch
from torch import nn
from metalearn import MAML, Batch, Episode
torch.set_num_threads(1)
limit, at_once = json.loads(sys.argv[1])
def role(n): return Batch(torch.randn(16, n, 256), torch.arange(n)[None].expand(16, n) % 4)
torch.manual_seed(0)
episode = Episode(role(8), role(512))
net = nn.Sequential(nn.Linear(256, 64), nn.Dropout(0.2), nn.Linear(64, 3000), nn.Tanh(), nn.Linear(3000, 4))
module = MAML(net, inner_steps=1, inner_lr=0.1, tasks_at_once=at_once)
few = Episode(*(Batch(r.x[:2], r.y[:2]) for r in episode))
module.training_step(few, 0).backward()  # whatever libraries take for themselves they have by now
if limit:
    pages = int(open("/proc/self/statm").read().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (limit << 20),) * 2)
optimizer = torch.optim.SGD(module.parameters(), 0.1)
for _ in range(2):
    optimizer.zero_grad()
    module.training_step(episode, 0).backward()
    optimizer.step()
print(json.dumps([value.double().sum().item() for value in module.parameters()] + [torch.rand(1).item()]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="bounds a process's memory as Linux does")
def test_a_process_whose_memory_is_bounded_goes_on() -> None:
    """All 16 query sets at once hold some 300 MiB of activations, of which there are 200: what torch raises here is real."""

    def run(limit: int, at_once: int | None) -> tuple[list[float], str]:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", BOUNDED, json.dumps([limit, at_once])], capture_output=True, text=True
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout.splitlines()[-1]), done.stderr

    numbers, said = run(200, None)
    left = re.findall(r"goes on with (\d+) at once", said)
    assert left, said
    assert numbers == run(0, int(left[-1]))[0]


def test_the_peak_is_that_of_the_profiler() -> None:
    module, episode = MAML(TinyConv(), inner_steps=3), noise_episode(4, dtype=torch.float32)

    def step() -> object:
        return module.meta_loss(episode)

    torch.set_num_threads(1)
    step()
    assert measure_peak(step, torch.device("cpu")) == pytest.approx(profiled_peak(step), rel=0.05)


def profiled_peak(step: Any) -> int:
    """Bytes by the allocator's own events."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = profiler.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = [event.nbytes() for event in events if event.name() == "[memory]"]
    return max(itertools.accumulate(changes))


@pytest.mark.parametrize("evaluating", [False, True])
def test_a_limit_is_kept(evaluating: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The largest number of 1, 2, 4, ... tasks whose peak is within it, by the allocator's own events."""
    torch.set_num_threads(1)
    episode, peaks = noise_episode(16, shots=40, queries=1, dtype=torch.float32), {}
    for count in (1, 2, 4, 8, 16):
        module = make(MAML, tasks_at_once=count).train(not evaluating)
        few = Episode(*(Batch(role.x[:count], role.y[:count]) for role in episode))

        def step(module: Any = module, few: Episode = few) -> object:
            return module.validation_step(few, 0) if evaluating else module.meta_loss(few)

        step()
        peaks[count] = profiled_peak(step)
    limit = (peaks[4] + peaks[8]) / 2
    monkeypatch.setattr(fitting, "read_free_memory", lambda device: int(4 * limit))
    module = make(MAML, memory_limit=0.25).train(not evaluating)
    before = torch.get_rng_state()
    with caplog.at_level("INFO"):
        torch.set_rng_state(before)
        step(module, episode)
        Room.most = 0
        step(module, episode)
    assert Room.most == 4
    lines = [record.getMessage() for record in caplog.records if "memory_limit" in record.getMessage()]
    assert len(lines) == 1
    assert "memory_limit=0.25 of" in lines[0]
    assert "4 at once" in lines[0]
    assert "16 at once suit the device" in lines[0]


def test_query_sets_are_taken_one_by_one_where_that_lets_in_more_tasks(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    episode, module = noise_episode(8, shots=1, queries=100, dtype=torch.float32), make(MAML)
    module.meta_loss(episode)
    peak = measure_peak(lambda: module.meta_loss(episode), torch.device("cpu"))
    monkeypatch.setattr(fitting, "read_free_memory", lambda device: peak // 2)
    limited = make(MAML, memory_limit=1.0)
    with caplog.at_level("INFO"):
        limited.meta_loss(episode)
    (line,) = (record.getMessage() for record in caplog.records if "memory_limit" in record.getMessage())
    assert "8 at once, query sets one by one" in line
    assert measure_peak(lambda: limited.meta_loss(episode), torch.device("cpu")) <= peak // 2


def test_a_limit_leaves_the_random_state_and_the_gradient_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "read_free_memory", lambda device: 100)
    episode, losses = noise_episode(8, dtype=torch.float32), []
    for options in ({"memory_limit": 0.5}, {"tasks_at_once": 1}):
        module = make(MAML, **options)
        torch.manual_seed(3)
        gradient = module.meta_gradient(episode)
        losses.append((gradient["backbone.head.weight"], module.meta_loss(episode).loss, torch.rand(1)))
    assert all(torch.equal(one, other) for one, other in zip(*losses, strict=True))


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"tasks_at_once": 2}, "tasks_at_once=2 says how many tasks are run at once, and memory_limit does not"),
        ({"execution": "sequential"}, "they are run one after another"),
    ],
)
def test_a_limit_with_nothing_to_choose_says_so_once(
    options: dict[str, Any], line: str, caplog: pytest.LogCaptureFixture
) -> None:
    module = MAML(Roomy(), inner_steps=1, memory_limit=0.5, **options)
    with caplog.at_level("INFO"):
        for _ in range(2):
            module.meta_loss(noise_episode(4, dtype=torch.float32))
    assert sum(line in record.getMessage() for record in caplog.records) == 1


def test_a_limit_below_a_single_task_says_what_takes_less(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fitting, "read_free_memory", lambda device: 100)
    with caplog.at_level("INFO"):
        make(MAML, memory_limit=1.0).meta_loss(noise_episode(4, dtype=torch.float32))
    (line,) = (record.getMessage() for record in caplog.records if "memory_limit" in record.getMessage())
    assert "1 at once" in line
    assert "which is more; memory='remat' or support_chunk takes less" in line


@pytest.mark.parametrize("value", [0, 0.0, -0.5, 1.5, float("nan"), "half", True, [0.5]])
def test_a_limit_is_a_share(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"memory_limit is .*(above 0|number).*; use 0\.5, or None") as caught:
        MAML(Roomy(), memory_limit=value)
    assert "\n" not in str(caught.value)


def write(folder: Path, **files: int | str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(f"{str(text).strip()}\n")


@pytest.mark.parametrize(
    ("groups", "free"),
    [
        ("0::/\n", 4096 * 1024),  # no bound of its own
        ("0::/job/part\n", 700 + 40),  # the group around it has less left; files that are cached are given up
        ("0::/job\n1:name=systemd:/job\n", 700 + 40),
        ("0::/gone/job\n", 4096 * 1024),  # a path of the host's, seen from inside a container
        ("5:memory:/old\n4:cpu:/old\n", 60),
    ],
)
def test_free_memory_is_what_the_control_group_has_left(
    groups: str, free: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, meminfo="MemTotal: 9000 kB\nMemFree: 100 kB\nMemAvailable: 4096 kB", groups=groups)
    write(tmp_path / "job", memory__max=1000, memory__current=300, memory__stat="anon 5\ninactive_file 40\nfile 9")
    write(tmp_path / "job/part", memory__max="max", memory__current=200)
    write(tmp_path / "memory/old", memory__limit_in_bytes=100, memory__usage_in_bytes=40)
    for name, path in (("MEMORY_INFO", "meminfo"), ("PROCESS_GROUPS", "groups"), ("GROUPS", "")):
        monkeypatch.setattr(free_memory, name, tmp_path / path)
    assert free_memory.read_free_memory(torch.device("cpu")) == free


def test_free_memory_that_is_not_known_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(free_memory, "MEMORY_INFO", tmp_path / "none")
    with pytest.raises(ConfigError, match="how much memory is free is not known on cpu here; use tasks_at_once"):
        make(MAML, memory_limit=0.5).meta_loss(noise_episode(4, dtype=torch.float32))


def test_checkpoints_keep_the_limit(tmp_path: Path) -> None:
    module = make(MAML, memory_limit=0.5)
    again = MAML(copy.deepcopy(module.backbone), **{k: v for k, v in module.hparams.items() if k == "memory_limit"})
    assert again.memory_limit == 0.5
    again.memory_limit = None
    assert again.options.memory_limit is None
