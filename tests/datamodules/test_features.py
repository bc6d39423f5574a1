"""Features of a frozen encoder: those of the same episodes, computed once, and anew where the encoder or the data change."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from metalearn import ANIL, MLP, ConfigError, Conv4, DataError
from metalearn.datamodules import (
    ArrayEpisodes,
    ClassEpisodes,
    EpisodeOptions,
    FeatureEpisodes,
    GlyphsDataModule,
    NewsgroupTopicsDataModule,
)
from metalearn.datamodules.topics import TOPICS
from tests.made_bilevel import make_topics

NUMBERS = np.random.default_rng(0)
Y = np.repeat(np.arange(12), 8)
X = NUMBERS.normal(size=(96, 6)) + Y[:, None]


def arrays(x: Any = X, **options: Any) -> ArrayEpisodes:
    return ArrayEpisodes(
        x, Y, **{"ways": 2, "shots": 2, "queries": 3, "tasks_per_batch": 2, "test_tasks": 4, **options}
    )


def features_of(data: ClassEpisodes, encoder: nn.Module, folder: Path, **options: Any) -> FeatureEpisodes:
    return FeatureEpisodes(data, encoder, cache_dir=str(folder), **options)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_they_are_the_features_of_the_same_episodes(split: str, tmp_path: Path) -> None:
    encoder = MLP(inputs=6, outputs=3, hidden=[7, 5])
    for batch_size in (1, 5, 256):
        data = features_of(arrays(), encoder, tmp_path / str(batch_size), batch_size=batch_size)
        for index in (0, 7):
            own, plain = data.episode(0, split, index), arrays().episode(0, split, index)
            assert data.width == 5
            for role, other in zip(own, plain, strict=True):
                assert torch.equal(role.y, other.y)
                torch.testing.assert_close(role.x, encoder.body(other.x))


def test_what_they_are_of_images_and_of_layers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = Conv4(ways=5, hidden=4)  # in training, with running statistics that are not those of a batch
    images = GlyphsDataModule(ways=5, shots=1, queries=1, test_tasks=2)
    before = copy.deepcopy(encoder.state_dict())
    task, plain = features_of(images, encoder, tmp_path).episode(0, "test", 0), images.episode(0, "test", 0)
    assert encoder.training
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    expected = copy.deepcopy(encoder).eval().body(plain.query.x)
    torch.testing.assert_close(task.query.x, expected)
    outputs = features_of(arrays(), nn.Linear(6, 4), tmp_path)
    assert outputs.width == 4
    assert features_of(arrays(), MLP(inputs=6, outputs=3, hidden=[7, 5]), tmp_path, layer="body.3").width == 7


def test_texts_have_features(tmp_path: Path) -> None:
    root = make_topics(tmp_path / "posts", [topics[number] for topics in TOPICS.values() for number in (0, 1)], each=6)
    posts = NewsgroupTopicsDataModule(str(root), ways=2, queries=2, length=5, vocabulary=40, cache_dir=str(tmp_path))
    encoder = nn.Sequential(nn.Embedding(40, 3), nn.Flatten())
    task = features_of(posts, encoder, tmp_path).episode(0, "val", 1)
    torch.testing.assert_close(task.support.x, encoder(posts.episode(0, "val", 1).support.x).detach())


def test_they_are_computed_once_and_anew_when_something_changes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[int] = []

    class Counted(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            calls.append(len(x))
            return super().forward(x)

    encoder = Counted(6, 4)

    def count(x: np.ndarray = X) -> int:
        calls.clear()
        caplog.clear()
        with caplog.at_level(logging.INFO, "lightning.pytorch.datamodules"):
            data = features_of(arrays(x), encoder, tmp_path)
            data.prepare_data()
            data.setup()
            list(data.test_dataloader())
        computed = sum(calls) - 2 * calls.count(2)  # two examples say how many features there are
        assert caplog.text.count("the features of 96 examples are computed") == (computed > 0)
        return computed

    assert [count(), count()] == [96, 0]
    with torch.no_grad():
        encoder.weight[0, 0] += 1
    assert [count(), count()] == [96, 0]
    changed = X.copy()
    changed[50, 2] += 1
    assert [count(changed), count(changed), count()] == [96, 0, 0]
    for store in tmp_path.glob("*.store"):
        store.write_bytes(store.read_bytes()[:-7])  # damaged: packed again
    assert count() == 96


@pytest.mark.parametrize("solver", ["gradient", "ridge"])
def test_heads_are_trained_on_them(solver: Any, tmp_path: Path) -> None:
    data = features_of(arrays(train_tasks=8, val_tasks=2), MLP(inputs=6, outputs=3, hidden=[7]), tmp_path)
    module = ANIL(MLP(inputs=7, outputs=2, hidden=[]), head_solver=solver)
    trainer = L.Trainer(
        max_steps=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    (result,) = trainer.test(module, datamodule=data, verbose=False)
    assert result["test/acc"] >= 0.5


class Odd(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.shared = kind, nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Any:
        return {"mean": x.mean(), "pair": (x, x), "nan": x * torch.nan, "twice": self.shared(self.shared(x))}[self.kind]


@pytest.mark.parametrize(
    ("encoder", "options", "words"),
    [
        (MLP(inputs=5), {}, "cannot take the examples, of shape"),
        (Odd("mean"), {}, "each needs its own row"),
        (Odd("pair"), {}, "each needs its own row"),
        (Odd("nan"), {}, "not finite"),
        (Odd("twice"), {"layer": "shared"}, "calls it 2 times"),
        (MLP(inputs=6), {"layer": "fc"}, "it has: body, head"),
        (MLP(inputs=6), {"device": "nowhere"}, "use device='cpu'"),
        (MLP(inputs=6), {"batch_size": 0}, "batch_size is 0"),
        (lambda x: x, {}, "encoder is the function"),
    ],
)
def test_what_is_refused(encoder: Any, options: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises((ConfigError, DataError)) as caught:
        features_of(arrays(), encoder, tmp_path, **options).setup()
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("*.store"))


def test_turned_classes_are_refused(tmp_path: Path) -> None:
    images = GlyphsDataModule(options=EpisodeOptions(rotations=True))
    with pytest.raises(ConfigError, match="options.rotations is given"):
        features_of(images, Conv4(), tmp_path)
