"""The loaders in a plain loop: new tasks each epoch, and a position to go on from."""

from __future__ import annotations

import pytest
import torch

from metalearn.datamodules import SinusoidDataModule


def made(workers: int = 0) -> SinusoidDataModule:
    return SinusoidDataModule(tasks_per_batch=3, train_tasks=10, val_tasks=4, test_tasks=7, num_workers=workers)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_plain_loop_sees_new_training_tasks_each_epoch(workers: int) -> None:
    """Epoch ``e`` begins with episode ``10 e``: the one task that makes no whole batch is left out, as under a Trainer."""
    data = made(workers)
    loader = data.train_dataloader()
    seen = [torch.cat([batch.query.x for batch in loader]) for _ in range(3)]
    for epoch, found in enumerate(seen):
        assert len(found) == 9
        for position in (0, 8):
            assert torch.equal(found[position], data.episode(0, "train", 10 * epoch + position).query.x)


@pytest.mark.parametrize("split", ["val", "test", "predict"])
def test_other_loaders_yield_the_same_tasks_every_time(split: str) -> None:
    loader = getattr(made(), f"{split}_dataloader")()
    first, second = (torch.cat([batch.query.x for batch in loader]) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_plain_loop_goes_on_from_any_position(workers: int) -> None:
    """Saved in the loop's body or between epochs, of three epochs of three batches."""
    loader = made(workers).train_dataloader()
    seen: list[torch.Tensor] = []
    states = [(0, loader.state_dict())]
    for _ in range(3):
        for batch in loader:
            seen.append(batch.query.x)
            states.append((len(seen), loader.state_dict()))
        states.append((len(seen), loader.state_dict()))
    again = made(workers).train_dataloader()
    for position, state in states:
        again.load_state_dict(state)
        resumed = [batch.query.x for _ in range(3) for batch in again]
        assert len(resumed) > 6
        assert all(torch.equal(a, b) for a, b in zip(resumed, seen[position:], strict=False))


def test_a_loaded_position_is_reported_at_once() -> None:
    loader = made().train_dataloader()
    assert loader.state_dict() == {"batches": 0, "epoch": 0}
    loader.load_state_dict({"batches": 2, "epoch": 5})
    assert loader.state_dict() == {"batches": 2, "epoch": 5}
    assert len(list(loader)) == 1
    assert loader.state_dict() == {"batches": 0, "epoch": 6}


def test_an_epoch_may_be_long() -> None:
    """The numbers of an epoch's episodes are not listed."""
    data = SinusoidDataModule(train_tasks=1 << 40)
    assert torch.equal(next(iter(data.train_dataloader())).query.x[0], data.episode(0, "train", 0).query.x)


def test_a_training_seed_changes_the_training_tasks_alone() -> None:
    plain, other = (SinusoidDataModule(train_tasks=50, train_seed=seed) for seed in (None, 7))
    for split in ("train", "val", "test"):
        batches = [next(iter(getattr(data, f"{split}_dataloader")())) for data in (plain, other)]
        assert torch.equal(batches[0].support.y, batches[1].support.y) == (split != "train"), split
    drawn = SinusoidDataModule(seed=7, train_tasks=50).train_dataloader()
    assert torch.equal(next(iter(drawn)).support.y, next(iter(other.train_dataloader())).support.y)
