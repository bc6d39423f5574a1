"""Image completion: every pixel of one image once, a few of them known, whatever the images are from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsRegressor

from metalearn import ConfigError, DataError
from metalearn.datamodules import (
    EpisodeOptions,
    GlyphsDataModule,
    ImageCompletionEpisodes,
    ImageFolderEpisodes,
    MiniImageNetDataModule,
    SinusoidDataModule,
)
from tests.datamodules.made_miniimagenet import IMAGES, SIDE, labels_of, pixels_of, table

CASES: Any = pytest.mark.parametrize(("split", "index"), [("train", 0), ("train", 7), ("val", 3), ("test", 0)])


@pytest.fixture
def made(tmp_path: Path) -> MiniImageNetDataModule:
    """Images of noise, whose pixels are known."""
    for name, content in table().items():
        (tmp_path / "mini" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mini" / name).write_bytes(content)
    return MiniImageNetDataModule(str(tmp_path / "mini"), image_size=SIDE, cache_dir=str(tmp_path / "cache"))


def paint(places: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """The image ``[H, W, C]`` in 0..255 whose pixels these are, with -1 where there is none."""
    image = np.full((SIDE, SIDE, colours.shape[1]), -1.0)
    for (row, column), colour in zip(places, colours, strict=True):
        at = round((row + 1) / 2 * (SIDE - 1)), round((column + 1) / 2 * (SIDE - 1))
        assert (image[at] == -1).all()  # no pixel is there twice
        image[at] = 255 * colour
    return image


@CASES
def test_a_task_is_one_image_of_its_split(made: MiniImageNetDataModule, split: str, index: int) -> None:
    data = ImageCompletionEpisodes(made, shots=20)
    support, query = data.episode(seed=3, split=split, index=index)
    assert (tuple(support.x.shape), tuple(query.y.shape)) == ((20, 2), (SIDE**2 - 20, 3))
    whole = paint(torch.cat([support.x, query.x]).numpy(), torch.cat([support.y, query.y]).numpy())
    candidates = [pixels_of(label, number) for label in labels_of(split) for number in range(IMAGES)]
    assert sum(np.allclose(whole, candidate, atol=1e-3) for candidate in candidates) == 1


def test_every_image_of_a_split_is_drawn_and_pixels_are_drawn_alike(made: MiniImageNetDataModule) -> None:
    data = ImageCompletionEpisodes(made, shots=20)
    data.setup()
    support, query = data.draw(0, "test", list(range(400)))
    means = {round(float(value), 4) for value in torch.cat([support.y, query.y], 1).mean((1, 2))}
    assert len(means) == len(labels_of("test")) * IMAGES
    # known pixels are uniform over the image: the mean row and column of 8,000 is 0 within four deviations
    assert support.x.mean((0, 1)).abs().max() < 4 * 0.63 / 8000**0.5


def test_a_training_task_may_ask_for_fewer_pixels(made: MiniImageNetDataModule) -> None:
    data, whole = (ImageCompletionEpisodes(made, shots=9, train_queries=few) for few in (30, None))
    for split, asked in (("train", 30), ("val", SIDE**2 - 9), ("test", SIDE**2 - 9)):
        (support, query), (other, all_queries) = (each.episode(0, split, 4) for each in (data, whole))
        assert len(query.x) == asked
        assert torch.equal(support.y, other.y)
        assert torch.equal(query.y, all_queries.y[:asked])


def test_tasks_are_the_same_by_themselves_and_in_a_batch(made: MiniImageNetDataModule) -> None:
    data = ImageCompletionEpisodes(made, shots=5, tasks_per_batch=3, test_tasks=7)
    batches = list(data.test_dataloader())
    assert [len(batch.support.x) for batch in batches] == [3, 3, 1]
    for index in range(7):
        alone, within = data.episode(0, "test", index), batches[index // 3]
        for role, other in zip(alone, within, strict=True):
            assert torch.equal(role.x, other.x[index % 3])
            assert torch.equal(role.y, other.y[index % 3])


def test_neighbours_tell_letters_better_than_their_mean() -> None:
    """The task is one that can be learned: scikit-learn's nearest neighbours do, of grey images too."""
    data = ImageCompletionEpisodes(GlyphsDataModule(), shots=100)
    errors = []
    for index in range(20):
        support, query = (tuple(part.numpy() for part in role) for role in data.episode(0, "test", index))
        nearest = KNeighborsRegressor(1).fit(*support).predict(query[0]).reshape(query[1].shape)
        errors.append([np.square(guess - query[1]).mean() ** 0.5 for guess in (nearest, support[1].mean())])
    by_neighbour, by_mean = np.mean(errors, 0)
    assert by_neighbour < 0.9 * by_mean


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"shots": SIDE**2}, f"at most {SIDE**2 - 1}; use 100"),
        ({"shots": 40, "train_queries": SIDE**2 - 39}, "leave it out for all"),
        ({"images": SinusoidDataModule()}, "images is"),
        ({"images": GlyphsDataModule(options=EpisodeOptions(rotations=True))}, "images.options.rotations is given"),
        ({"images": GlyphsDataModule(options=EpisodeOptions(normalize=True))}, "images.options.normalize is given"),
        (
            {"images": GlyphsDataModule(options=EpisodeOptions(class_labels=True))},
            "images.options.class_labels is given",
        ),
    ],
)
def test_what_is_refused(made: MiniImageNetDataModule, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ImageCompletionEpisodes(**{"images": made, **options})
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_images_are_named_by_their_option() -> None:
    data = ImageCompletionEpisodes(MiniImageNetDataModule("nowhere"))
    with pytest.raises(DataError, match=r"; set data\.images\.root to"):
        data.prepare_data()


def test_a_split_without_images_has_no_tasks(tmp_path: Path, made: MiniImageNetDataModule) -> None:
    images = ImageFolderEpisodes(
        str(made.root / "images"), labels=str(tmp_path / "labels.csv"), image_size=SIDE, cache_dir=str(tmp_path),
        splits={"train": ["a"], "test": ["b"]},
    )  # fmt: skip
    rows = ["filename,label", *(f"n0_{number}.png,a" for number in range(3)), "n1_0.png,b"]
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    data = ImageCompletionEpisodes(images, shots=5)
    assert [data.has_classes(split) for split in ("train", "val", "test")] == [True, False, True]
    with pytest.raises(ConfigError, match="split is 'val'"):
        data.episode(0, "val", 0)
