"""Inner steps as recorded operators: the plain loop's gradients, what is recorded anew, and what stands against it."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metalearn import (
    MAML,
    ConfigError,
    Context,
    LoRA,
    MetaModule,
    Reptile,
    SharedHead,
)
from metalearn.inner.execution import step_recorder
from tests.modules.episodic.test_meta_gradient import largest_error, plain_loop
from tests.modules.episodic.test_recorded import MAKERS, Hooked, changes, drop, lines, plain, same, train
from tests.networks import Room, TinyConv, noise_episode


def shrink(module: MetaModule) -> None:
    """Other weights than those that were recorded with."""
    with torch.no_grad():
        for value in module.parameters():
            value.mul_(0.95)


def test_the_second_step_is_replayed(replayed: list[int], caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    module = MAML(TinyConv().double(), inner_steps=3, inner_lr=0.25, compile="steps")
    counts = []
    with caplog.at_level("INFO"):
        for seed in range(4):
            episode = noise_episode(2, seed=seed)
            exact = plain_loop(copy.deepcopy(module.backbone), episode, 3, 0.25, False)
            assert largest_error(module.meta_gradient(episode), exact) < 1e-9
            shrink(module)
            counts.append(len(replayed))
    assert counts == [1, 4, 7, 10]  # one of them is held against the step itself
    (line,) = lines(caplog)
    assert re.match(r"compile: an inner step on \[2, 6, 1, 8, 8\] recorded as \d+ operators in ", line)


def test_a_kind_of_step_that_is_met_seldom_is_not_recorded(
    replayed: list[int], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_recorder.StepRecorder, "meetings", 3)
    module = MAML(TinyConv().double(), inner_steps=1, inner_lr=0.25, compile="steps")
    with caplog.at_level("INFO"):
        for tasks in (2, 3, 2, 4, 2, 2, 3):
            episode = noise_episode(tasks, seed=0)
            exact = plain_loop(copy.deepcopy(module.backbone), episode, 1, 0.25, False)
            assert largest_error(module.meta_gradient(episode), exact) < 1e-9
    (line,) = lines(caplog)
    assert "an inner step on [2, 6, 1, 8, 8] recorded" in line
    assert len(replayed) == 2  # one of them is held against the step itself


MORE: dict[str, Callable[..., MetaModule]] = {
    **MAKERS,
    "body": lambda net, **more: MAML(net, inner_steps=2, adapts="body", inner_lr=0.1, **more),
    "momentum": lambda net, **more: MAML(net, inner_steps=3, inner_optimizer="momentum", inner_lr=0.05, **more),
    "clipped": lambda net, **more: MAML(
        net, inner_steps=2, inner_lr=0.1, inner_clip_norm=0.1, inner_weight_decay=0.1, **more
    ),
    "chunks": lambda net, **more: MAML(net, inner_steps=2, inner_lr=0.1, support_chunk=2, **more),
    "all steps": lambda net, **more: MAML(net, inner_steps=2, inner_lr=0.1, multi_step_loss=10, **more),
    "lora": lambda net, **more: MAML(net, inner_steps=2, inner_lr=0.1, adapter=LoRA(2), **more),
    "context": lambda net, **more: MAML(net, inner_steps=2, inner_lr=0.1, adapter=Context(2, "head"), **more),
    "shared head": lambda net, **more: MAML(net, inner_steps=2, inner_lr=0.1, adapter=SharedHead(), **more),
    "torch's kernels": lambda net, **more: MAML(net, inner_steps=2, inner_lr=0.1, kernels=False, **more),
    "one by one": lambda net, **more: MAML(net, inner_steps=2, inner_lr=0.1, tasks_at_once=1, **more),
}
QUICK = ("sizes of elements", "head", "first order", "remat", "support", "metal", "chunks", "lora")
"""What is tried in every run of the tests; the others with those that take long."""
WITHOUT = ("ridge", "protonet")
"""They take no inner gradient."""


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.long) for name in MORE
])  # fmt: skip
def test_replays_are_the_step_itself(name: str, replayed: list[int]) -> None:
    torch.manual_seed(0)
    module = MORE[name](TinyConv(), compile="steps").double()
    for seed in range(3):
        same(module, noise_episode(2, seed=seed))
        shrink(module)
    assert bool(replayed) != (name in WITHOUT)


@pytest.mark.parametrize("name", changes())
def test_what_changes_is_recorded_anew(name: str, replayed: list[int]) -> None:
    torch.manual_seed(0)
    module = MAML(TinyConv().double(), inner_steps=2, inner_lr=0.2, compile="steps")
    for _ in range(2):
        module.meta_gradient(noise_episode(2))
    assert len(replayed) == 3
    changes()[name](module)
    for seed in range(3):
        exact = plain(module, noise_episode(2, seed=seed))
        ours = module.meta_gradient(noise_episode(2, seed=seed))
        for key, value in exact.items():
            torch.testing.assert_close(ours[key], value, rtol=1e-9, atol=1e-12)


def test_buffers_are_read_where_they_lie(replayed: list[int]) -> None:
    """Also when they are written to, or replaced."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, 3)
            self.register_buffer("scale", torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x * self.scale)

    torch.manual_seed(0)
    module = MAML(Scaled(), inner_steps=2, inner_lr=0.1, compile="steps").double()
    for seed in range(4):
        same(module, noise_episode(2, shape=(3,), seed=seed))
        module.backbone.scale.mul_(1.5)  # type: ignore[operator, union-attr]
    before = len(replayed)
    module.backbone.scale = torch.full((3,), 0.3).double()
    for seed in range(3):
        same(module, noise_episode(2, shape=(3,), seed=seed))
    assert before > 4
    assert len(replayed) > before + 2


@pytest.mark.parametrize("memory", ["store", "remat"])
def test_dropout_draws_anew_in_every_replay(memory: str, replayed: list[int]) -> None:
    """And what the step itself would have drawn, in both passes."""

    recorded, exact = (drop(compile, memory) for compile in ("steps", False))
    assert recorded == pytest.approx(exact, rel=1e-6)
    assert len(set(recorded)) == 9
    assert len(replayed) == 17


def test_threads_share_what_was_recorded(replayed: list[int]) -> None:
    """Parts of two sizes; what a thread asks for is recorded by no thread but the caller's."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        module = MAML(TinyConv().double(), inner_steps=2, inner_lr=0.1, compile="steps", tasks_at_once=3)
        for seed in range(3):
            same(module, noise_episode(7, seed=seed))
            shrink(module)
    finally:
        torch.set_num_threads(threads)
    assert len(replayed) > 6


def test_lists_of_tasks_of_all_ways(replayed: list[int]) -> None:
    """Some shapes are recorded, and beyond that steps run as they are."""
    torch.manual_seed(0)
    options: Any = {"inner_steps": 2, "inner_lr": 0.1}
    net = TinyConv().double()
    modules = [MAML(copy.deepcopy(net), **options, compile=compile) for compile in (False, "steps")]
    for _ in range(2):
        tasks = [noise_episode(1, ways=2 + shots % 2, shots=shots, seed=shots) for shots in range(1, 12)]
        losses = [module.training_step(tasks, 0) for module in modules]
        torch.testing.assert_close(losses[1], losses[0], rtol=1e-9, atol=1e-12)
    assert replayed


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_a_run_is_the_same_and_survives_copies(precision: Any, replayed: list[int], tmp_path: Path) -> None:
    plain, module = (train(compile, tmp_path, precision) for compile in (False, "steps"))
    assert len(replayed) == 5
    torch.testing.assert_close(list(module.parameters()), list(plain.parameters()), rtol=1e-4, atol=1e-4)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        same(other.double(), noise_episode(2))


def test_a_first_order_run_of_reptile(replayed: list[int]) -> None:
    torch.manual_seed(0)
    net = TinyConv().double()
    modules = [
        Reptile(copy.deepcopy(net), inner_steps=2, inner_lr=0.1, compile=compile) for compile in (False, "steps")
    ]
    for seed in range(3):
        right, ours = (module.meta_gradient(noise_episode(2, seed=seed)) for module in modules)
        for key, value in right.items():
            torch.testing.assert_close(ours[key], value, rtol=1e-9, atol=1e-12)
    assert len(replayed) > 2


class Branching(TinyConv):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y * 2 if float(y.detach().sum()) > 0 else y


class Counting(nn.Module):
    """Writes to a buffer, of which each step has a copy of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.head(x.flatten(1)) * self.calls


@pytest.mark.parametrize(("make", "reason"), [
    (lambda: MAML(Hooked(), inner_steps=1, compile="steps"), "the network itself is called, whose Python may do more"),
    (lambda: MAML(TinyConv(), inner_steps=1, norm="per_step", compile="steps"), "norm 'per_step' keeps statistics"),
    (lambda: MAML(Branching(), inner_steps=1, compile="steps", execution="sequential"), "inner steps are not recorded, because"),
])  # fmt: skip
def test_what_cannot_be_recorded_runs_as_it_is(
    make: Callable[[], MAML], reason: str, replayed: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    module = make().double()
    with caplog.at_level("INFO"):
        for seed in range(3):
            same(module, noise_episode(2, seed=seed))
    (line,) = lines(caplog)
    assert reason in line
    assert "they run as they are" in line
    assert not replayed


def test_a_network_that_counts() -> None:
    module = MAML(Counting(), inner_steps=2, inner_lr=0.1, compile="steps").double()
    for seed in range(3):
        same(module, noise_episode(2, seed=seed))


@pytest.mark.parametrize("name", WITHOUT)
def test_that_there_is_nothing_to_record_is_said_once(name: str, caplog: pytest.LogCaptureFixture) -> None:
    module = MAKERS[name](TinyConv(), compile="steps")
    with caplog.at_level("INFO"):
        for _ in range(2):
            module.meta_gradient(noise_episode(2, dtype=torch.float32))
    assert lines(caplog) == [
        "compile: no inner step is recorded, because none takes a gradient with memory 'store' or 'remat'; all runs as it is"
    ]


def test_room_is_that_of_the_layers_at_hand(
    replayed: list[int], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That there is none is said once; layers that have changed have room of their own."""
    monkeypatch.setattr(step_recorder, "MOST_PROGRAMS", 1)
    module = MAML(TinyConv().double(), inner_steps=1, inner_lr=0.1, compile="steps")
    with caplog.at_level("INFO"):
        for _ in range(2):
            for tasks in (2, 3):
                same(module, noise_episode(tasks))
        module.backbone.body[1].eps = 0.5  # type: ignore[index, union-attr]
        for _ in range(2):
            same(module, noise_episode(3))
    recorded = [line for line in lines(caplog) if "recorded as" in line]
    assert [line.partition(" recorded")[0] for line in recorded] == [
        f"compile: an inner step on [{tasks}, 6, 1, 8, 8]" for tasks in (2, 3)
    ]
    assert sum("1 kinds of inner steps are recorded" in line for line in lines(caplog)) == 1


def test_what_memory_was_tried_with_is_not_recorded(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit tries 1, 2, ... tasks; memory that runs out halves them: the step that came through is recorded."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Tanh(), Rooms(), nn.Linear(8, 3)).double()
    module = MAML(net, inner_steps=1, inner_lr=0.1, execution="vectorized", compile="steps", memory_limit=0.5)
    with caplog.at_level("INFO"):
        same(module, noise_episode(4))
        monkeypatch.setattr(Room, "room", 2)
        module.memory_limit = None
        same(module, noise_episode(7))
    assert [line.partition(" recorded")[0] for line in lines(caplog)] == [
        "compile: an inner step on [4, 6, 1, 8, 8]",
        *(f"compile: an inner step on [{tasks}, 6, 1, 8, 8]" for tasks in (1,)),
    ]


class Rooms(nn.Module):
    """Takes as many tasks at once as there is room for."""

    def forward(self, x: Tensor) -> Tensor:
        return Room.apply(x)


def test_steps_that_are_not_finite_are_recorded_later(replayed: list[int], caplog: pytest.LogCaptureFixture) -> None:
    module = MAML(TinyConv().double(), inner_steps=1, inner_lr=0.1, compile="steps")
    module.meta_gradient(noise_episode(3))  # chooses how it is run
    caplog.clear()
    before, spoiled = copy.deepcopy(module.state_dict()), len(replayed)
    with caplog.at_level("INFO"):
        with torch.no_grad():
            module.backbone.head.weight.fill_(float("inf"))  # type: ignore[union-attr, operator]
        module.meta_loss(noise_episode(2))
        assert not lines(caplog)
        module.load_state_dict(before)
        for _ in range(2):
            same(module, noise_episode(2))
    assert len(lines(caplog)) == 1
    assert len(replayed) > spoiled + 2


def test_what_no_step_changes_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each part of a support set, in each inner loop."""
    real, calls = step_recorder.make_program, [0]

    def make(*args: Any) -> Any:
        program = real(*args)

        def constant(*inputs: Tensor) -> tuple[Tensor, ...]:
            calls[0] += 1
            return program.constant(*inputs)

        return program._replace(constant=constant)

    monkeypatch.setattr(step_recorder, "make_program", make)
    module = MAML(TinyConv().double(), inner_steps=5, inner_lr=0.01, compile="steps", support_chunk=2)
    module.meta_gradient(noise_episode(2))
    calls[0] = 0
    module.meta_gradient(noise_episode(2))
    assert calls[0] == 3  # of six examples


def test_steps_that_differ_are_not_used(
    replayed: list[int], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = step_recorder.make_program

    def make(*args: Any) -> Any:
        program = real(*args)

        def forward(*given: Tensor) -> tuple[Tensor, ...]:
            first, *others = program.forward(*given)
            return first * (1 + 1e-6), *others

        return program._replace(forward=forward)

    monkeypatch.setattr(step_recorder, "make_program", make)
    module = MAML(TinyConv().double(), inner_steps=1, inner_lr=0.1, compile="steps")
    with caplog.at_level("INFO"):
        for seed in range(3):
            same(module, noise_episode(2, seed=seed))
    (line,) = lines(caplog)
    assert line.startswith(
        "compile: recorded inner steps are not used, because they differ from the steps themselves by"
    )
    assert len(replayed) == 1


def test_an_unknown_word_is_refused() -> None:
    with pytest.raises(ConfigError, match="compile is 'step', but it must be True, False, 'graph' or 'steps'"):
        MAML(TinyConv(), compile="step")  # type: ignore[arg-type]
