"""Runs on devices that work ahead of Python: no question within a step, and no update that is not finite.

A CPU stands for such a device here: its numbers are read a step later.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from metalearn import ALFA, ANIL, MAML, Baseline, DivergenceError, Episode, MeTAL, ProtoNet, Reptile, ShapeError
from metalearn.inner import ridge
from metalearn.inner.kernels import batch_norm, conv
from metalearn.modules.episodic import divergence
from metalearn.modules.episodic.late_answers import LateNumber
from tests.networks import TinyConv, noise_episode

Module = L.LightningModule


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(divergence, "answers_at_once", lambda device: False)


def tasks(count: int = 6) -> list[Episode]:
    return [noise_episode(2, seed=seed, dtype=torch.float32) for seed in range(count)]


def fit(module: Module, episodes: list[Any], folder: Path, **options: Any) -> None:
    loader: Any = DataLoader(episodes, batch_size=None)  # type: ignore[arg-type]
    L.Trainer(
        max_steps=len(episodes), accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, default_root_dir=folder, num_sanity_val_steps=0, limit_val_batches=1, **options,
    ).fit(module, loader, loader)  # fmt: skip


def weights(module: Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.named_parameters()}


class Kept(L.Callback):
    """The weights after each step, and the optimiser's state at the end."""

    def __init__(self) -> None:
        self.weights: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: L.Trainer, module: Module, *_: Any) -> None:
        self.weights.append(weights(module))
        self.state = copy.deepcopy(trainer.optimizers[0].state_dict())


def poisoned(kind: str) -> Episode:
    """Tasks that spoil a step."""
    support, query = noise_episode(2, dtype=torch.float32)
    if kind == "data":
        query.x[1, 2] = math.nan
    elif kind == "label":
        query.y[1, 2] = 3
    elif kind == "ignored":
        support.y[0] = -100
    return Episode(support, query)


@pytest.mark.parametrize("at", [0, 2, 5])
@pytest.mark.parametrize(("kind", "error", "said"), [
    ("data", DivergenceError, r"query\.x of task 1 of the batch has an entry that is not finite at step {at}"),
    ("label", ShapeError, r"query: label 3 is outside 0\.\.2"),
    ("ignored", ShapeError, "support: every label of task 0 is -100"),
])  # fmt: skip
@pytest.mark.usefixtures("late")
def test_a_spoiled_step_leaves_weights_as_they_were(
    kind: str, error: type[Exception], said: str, at: int, tmp_path: Path
) -> None:
    """In the first, a middle and the last step, with an optimiser that has a momentum of its own."""
    episodes: list[Episode] = tasks()
    episodes[at] = poisoned(kind)
    module, kept = MAML(TinyConv(), inner_steps=1, inner_lr=0.1, multi_step_loss=4), Kept()
    before = weights(module)
    with pytest.raises(error, match=said.format(at=at)):
        fit(module, episodes, tmp_path, callbacks=[kept])
    expected = kept.weights[at - 1] if at else before
    for name, value in weights(module).items():
        assert torch.equal(value, expected[name])
    moments = [value for state in kept.state["state"].values() for value in state.values()]
    assert all(bool(value.isfinite().all()) for value in moments)


@pytest.mark.usefixtures("late")
def test_an_explosion_is_seen_a_step_later_and_leaves_weights_as_they_were(tmp_path: Path) -> None:
    class Exploding(MAML):
        def meta_loss(self, episode: Any, ways: Any = None) -> Any:
            result = super().meta_loss(episode, ways)
            return result._replace(loss=result.loss * (5e4 if self.global_step == 3 else 1))

    module, kept = Exploding(TinyConv(), inner_steps=1, inner_lr=0.1), Kept()
    with pytest.raises(DivergenceError, match=r"the meta-loss is \S+ at step 3, so training has diverged"):
        fit(module, tasks(), tmp_path, callbacks=[kept])
    assert len(kept.weights) == 4
    assert all(torch.equal(value, kept.weights[2][name]) for name, value in weights(module).items())


class Rooted(nn.Module):
    """The square root has an infinite slope at 0: the loss is finite, its gradient is not."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(()))
        self.head = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1) + self.scale.abs().sqrt())  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "optimizer", [torch.optim.Adam, partial(torch.optim.SGD, momentum=0.9, weight_decay=0.1), torch.optim.LBFGS]
)
@pytest.mark.usefixtures("late")
def test_a_bad_gradient_does_not_reach_the_weights(optimizer: Any, tmp_path: Path) -> None:
    module = ANIL(Rooted(), inner_steps=1, inner_lr=0.1, outer_optimizer=partial(optimizer, lr=0.1))
    before = weights(module)
    with pytest.raises(DivergenceError, match="the meta-gradient is nan at step 0"):
        fit(module, tasks(), tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in weights(module).items())


@pytest.mark.parametrize("options", [{}, {"gradient_clip_val": 0.1}, {"accumulate_grad_batches": 2}])
def test_a_sound_run_is_the_same(options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = []
    for at_once in (True, False):
        monkeypatch.setattr(divergence, "answers_at_once", lambda device, answer=at_once: answer)
        torch.manual_seed(0)
        module = MAML(TinyConv(), inner_steps=1, inner_lr="learn")
        fit(module, tasks(), tmp_path, **options)
        ends.append(weights(module))
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


@pytest.mark.usefixtures("late")
def test_a_step_by_hand_is_answered_at_once() -> None:
    """Nothing guards the updates of a loop of one's own."""
    with pytest.raises(DivergenceError, match="not finite at step 0"):
        MAML(TinyConv(), inner_steps=1).training_step(poisoned("data"), 0)


class Questions(TorchDispatchMode):
    """Refuses what makes Python wait for a device."""

    allowed = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        asked = ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero", "aten::masked_select")
        assert self.allowed or func.name() not in asked, func
        return func(*args, **(kwargs or {}))


def watched(kind: type[Any]) -> type[Any]:
    """The same algorithm, which may ask nothing after its first two steps."""
    mode = Questions()

    @contextlib.contextmanager
    def refusing(step: int) -> Iterator[None]:
        with mode if step >= 2 else contextlib.nullcontext():
            yield

    class Watched(kind):  # type: ignore[misc]
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            with refusing(batch_idx):
                return super().training_step(batch, batch_idx)  # type: ignore[no-any-return]

        def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
            with refusing(self.global_step):
                super().backward(loss, *args, **kwargs)

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            with refusing(self.global_step):
                super().on_before_optimizer_step(optimizer)

    Watched.mode = mode  # type: ignore[attr-defined]
    return Watched


MAKERS: dict[str, Callable[..., Any]] = {
    "maml": lambda kind=MAML: watched(kind)(TinyConv(), inner_steps=2, tasks_at_once=2),
    "first order": lambda kind=MAML: watched(kind)(TinyConv(), inner_steps=2, tasks_at_once=2, first_order=True),
    "learned": lambda kind=MAML: watched(kind)(TinyConv(), inner_steps=2, tasks_at_once=2, inner_lr="learn"),
    "clipped": lambda kind=MAML: watched(kind)(TinyConv(), inner_steps=2, tasks_at_once=2, inner_clip_norm=1.0),
    "remat": lambda kind=MAML: watched(kind)(TinyConv(), inner_steps=2, tasks_at_once=2, memory="remat"),
    "anil": lambda kind=ANIL: watched(kind)(TinyConv(), inner_steps=2, tasks_at_once=2),
    "ridge": lambda kind=ANIL: watched(kind)(TinyConv(), tasks_at_once=2, head_solver="ridge"),
    "alfa": lambda kind=ALFA: watched(kind)(TinyConv(), inner_steps=2, tasks_at_once=2),
    "metal": lambda kind=MeTAL: watched(kind)(TinyConv(), inner_steps=2, tasks_at_once=2),
    "protonet": lambda kind=ProtoNet: watched(kind)(TinyConv(), tasks_at_once=2),
    "reptile": lambda kind=Reptile: watched(kind)(TinyConv(), inner_steps=2, tasks_at_once=2),
    "baseline": lambda kind=Baseline: watched(kind)(TinyConv()),
}


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.usefixtures("late")
def test_a_step_asks_nothing(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once the first steps have found out how to run; what was read is the step before's, which a GPU has sent by then."""
    module = MAKERS[name]()
    read = LateNumber.read

    def read_freely(self: LateNumber) -> float:
        module.mode.allowed = True
        try:
            return read(self)
        finally:
            module.mode.allowed = False

    monkeypatch.setattr(LateNumber, "read", read_freely)
    for room in (conv, batch_norm, ridge):
        monkeypatch.setattr(room, "on_cpu", lambda x: False)
    fit(module, tasks(4), tmp_path)
