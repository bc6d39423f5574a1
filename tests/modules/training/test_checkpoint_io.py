"""Checkpoints survive whatever ends the process that writes them."""

from __future__ import annotations

import os
import random
import resource
import signal
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lightning as L
import pytest
import torch

from metalearn import AtomicCheckpointIO, CheckpointError
from metalearn.modules.training.checkpoint_io import lock_file
from tests.networks import TinyConv, noise_episode


def state(number: int, size: int = 500_000) -> dict[str, object]:
    return {"number": number, "weights": torch.full((size,), float(number))}


@contextmanager
def full_disk(after: int) -> Iterator[None]:
    """No file can grow beyond so many bytes: writes fail as they do on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (after, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_killed_writer_leaves_the_one_before(tmp_path: Path) -> None:
    path, times = tmp_path / "last.ckpt", random.Random(0)
    states = [state(number) for number in range(3)]  # not in the fork, which would wait for threads that it has not got
    for _ in range(8):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forks where there are threads
            child = os.fork()
        if not child:
            for number in range(10_000):
                AtomicCheckpointIO().save_checkpoint(states[number % 3], path)
        while not path.exists():
            time.sleep(0.002)
        time.sleep(times.uniform(0, 0.05))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        found = torch.load(path, weights_only=True)
        assert bool((found["weights"] == found["number"]).all())
        assert len([each for each in tmp_path.iterdir() if each != path]) <= 1  # earlier leftovers are cleared
    AtomicCheckpointIO().save_checkpoint(state(0), path)
    assert list(tmp_path.iterdir()) == [path]
    assert torch.load(path, weights_only=True)["number"] == 0


@pytest.mark.parametrize("room", [0, 1, 100_000])
def test_a_full_disk_leaves_the_one_before_and_nothing_else(tmp_path: Path, room: int) -> None:
    path = tmp_path / "run" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(state(1), path)
    content = path.read_bytes()
    with (
        full_disk(room),
        pytest.raises(CheckpointError, match=r"last.ckpt cannot be written \(.+\); the one that was there"),
    ):
        AtomicCheckpointIO().save_checkpoint(state(2), path)
    assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]


def test_what_another_process_is_writing_stays(tmp_path: Path) -> None:
    busy, left = tmp_path / ".last.ckpt.1.part", tmp_path / ".last.ckpt.2.part"
    left.write_bytes(b"half")
    with busy.open("wb") as file:
        lock_file(file.fileno())
        AtomicCheckpointIO().save_checkpoint(state(1, 10), tmp_path / "last.ckpt")
        assert sorted(each.name for each in tmp_path.iterdir()) == [busy.name, "last.ckpt"]


def test_a_stock_trainer_takes_it(tmp_path: Path) -> None:
    from metalearn import MAML

    module = MAML(TinyConv(), inner_steps=1, inner_lr=0.1)
    loader = torch.utils.data.DataLoader([noise_episode(1, dtype=torch.float32)] * 2, batch_size=None)  # type: ignore[arg-type, list-item]
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=tmp_path, plugins=AtomicCheckpointIO(),
    )  # fmt: skip
    trainer.fit(module, loader, loader)
    (path,) = tmp_path.rglob("*.ckpt")
    weights = torch.load(path, weights_only=True)["state_dict"]
    for name, value in module.state_dict().items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=0)
