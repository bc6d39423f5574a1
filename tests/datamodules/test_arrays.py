"""Arrays that are in memory or in files: what is drawn of them, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch

from metalearn import MAML, MLP, ConfigError, DataError
from metalearn.datamodules import ArrayEpisodes, EpisodeOptions


def test_arrays_train_under_a_stock_trainer(tmp_path: Path) -> None:
    """Twenty well separated clouds of points, named by strings: new ones are told apart."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat(np.arange(20), 12))
    x = rng.normal(size=(240, 6)) + 3 * rng.normal(size=(20, 6))[labels]
    np.savez(tmp_path / "all.npz", x=x, y=np.asarray([f"kind{label:02d}" for label in labels]))
    data = ArrayEpisodes(str(tmp_path / "all.npz"), ways=3, shots=2, queries=4, train_tasks=400, test_tasks=20,
                         options=EpisodeOptions(normalize=True))  # fmt: skip
    trainer = L.Trainer(max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    torch.manual_seed(0)
    module = MAML(MLP(inputs=6, outputs=3), inner_steps=5, inner_lr=0.3)
    trainer.fit(module, datamodule=data)
    assert trainer.test(module, datamodule=data, verbose=False)[0]["test/acc"] > 0.8
    support, _ = data.episode(0, "test", 0)
    assert support.x.dtype == torch.float32
    assert support.y.tolist() == [0, 0, 1, 1, 2, 2]


def test_arrays_of_all_kinds_are_the_same_and_normalised_by_the_training_classes(tmp_path: Path) -> None:
    x = np.random.default_rng(1).normal(2.0, 5.0, (120, 4)).astype(np.float32)
    y = np.repeat(np.arange(12), 10)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    forms = [(x, y), (torch.from_numpy(x), torch.from_numpy(y)), (str(tmp_path / "x.npy"), str(tmp_path / "y.npy"))]
    options = EpisodeOptions(normalize=True)
    made = [ArrayEpisodes(a, b, ways=2, shots=2, queries=2, options=options) for a, b in forms]
    expected = made[0].episode(0, "val", 4)
    assert all(torch.equal(data.episode(0, "val", 4).support.x, expected.support.x) for data in made[1:])
    rows = np.isin(y, [int(name) for name in made[0].class_names("train")])
    plain = ArrayEpisodes(x, y, ways=2, shots=2, queries=2).episode(0, "val", 4)
    scaled = (plain.support.x.numpy() - x[rows].mean(0)) / x[rows].std(0)
    np.testing.assert_allclose(expected.support.x, scaled, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (
            np.zeros((4, 2)),
            np.zeros(3, int),
            r"x has shape \[4, 2\] and y \[3\], .*one whole number or string for each row",
        ),
        (np.zeros((4, 2)), np.zeros(4), "float64, but y must hold"),
        (np.full((40, 2), np.nan), np.repeat(np.arange(10), 4), "x has values that are not finite"),
        (np.zeros((4, 2), object), np.zeros(4, int), "x has dtype object"),
        ("nowhere.npz", None, "x nowhere.npz cannot be read"),
        ("nowhere.npy", np.zeros(3, int), "x nowhere.npy cannot be read"),
    ],
)
def test_arrays_that_cannot_be_used_are_one_line(x: Any, y: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        ArrayEpisodes(x, y)


def test_an_array_without_classes_is_one_line() -> None:
    with pytest.raises(ConfigError, match="y is None, but each row of x needs a class"):
        ArrayEpisodes(np.zeros((4, 2)))


def test_pickled_arrays_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.asarray([{}], object), allow_pickle=True)
    with pytest.raises(DataError, match=r"x\.npy cannot be read"):
        ArrayEpisodes(str(tmp_path / "x.npy"), np.zeros(1, int))
