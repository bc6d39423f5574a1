"""Episodes: pure functions of their number, exact under every way of loading, and as random as they should be."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metalearn import ConfigError
from metalearn.datamodules import GlyphsDataModule, ImageFolderEpisodes, OmniglotDataModule, SinusoidDataModule
from metalearn.datamodules.episodes.base import EpisodicDataModule
from metalearn.datamodules.episodes.loader import EpisodeSampler
from metalearn.datamodules.episodes.sampling import draw_episodes
from metalearn.datamodules.sources.images import to_float
from tests.made import make_folder


def built(name: str, omniglot: Path, **more: object) -> EpisodicDataModule:
    sizes = {"tasks_per_batch": 3, "train_tasks": 12, "val_tasks": 4, "test_tasks": 7, **more}
    if name == "sinusoid":
        return SinusoidDataModule(**sizes)  # type: ignore[arg-type]
    if name == "glyphs":
        return GlyphsDataModule(ways=3, shots=2, queries=3, **sizes)  # type: ignore[arg-type]
    return OmniglotDataModule(str(omniglot), ways=3, shots=2, queries=3, **sizes)  # type: ignore[arg-type]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", ["sinusoid", "glyphs", "omniglot"])
def test_a_loader_yields_the_numbered_episodes(name: str, workers: int, omniglot: Path) -> None:
    data = built(name, omniglot, num_workers=workers)
    for split, loader in (("train", data.train_dataloader()), ("test", data.test_dataloader())):
        batches = list(loader)
        stacked = [torch.cat([getattr(batch[role], part) for batch in batches]) for role in (0, 1) for part in "xy"]
        count = 12 if split == "train" else 7
        assert len(stacked[0]) == count
        for index in (0, count - 1):
            episode = data.episode(0, split, index)
            for found, expected in zip(stacked, (*episode.support, *episode.query), strict=True):
                assert torch.equal(found[index], expected)
    first = data.train_dataloader()
    next_epoch = data.train_dataloader()
    next_epoch.sampler.set_epoch(1)  # type: ignore[attr-defined]
    assert not torch.equal(next(iter(first)).support.x, next(iter(next_epoch)).support.x)


def test_the_global_rng_is_left_alone(omniglot: Path) -> None:
    data = built("glyphs", omniglot)
    data.setup()
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    list(data.train_dataloader())
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()  # noqa: NPY002


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**40), index=st.integers(0, 2**40), ways=st.integers(2, 9), images=st.integers(2, 5),
    extra=st.lists(st.integers(0, 12), min_size=9, max_size=15),
)  # fmt: skip
def test_draws_are_valid_and_independent_of_the_batch(
    seed: int, index: int, ways: int, images: int, extra: list[int]
) -> None:
    counts = np.asarray(extra) + images
    indices = np.arange(index, index + 4)
    classes, rows = draw_episodes(seed, "train", indices, counts, ways, images)
    for task in range(4):
        assert len(set(classes[task])) == ways
        assert classes[task].min() >= 0
        assert classes[task].max() < len(counts)
        for way in range(ways):
            assert len(set(rows[task, way])) == images
            assert rows[task, way].max() < counts[classes[task, way]]
        alone = draw_episodes(seed, "train", indices[task : task + 1], counts, ways, images)
        assert (alone[0][0] == classes[task]).all()
        assert (alone[1][0] == rows[task]).all()


def test_draws_are_uniform() -> None:
    """Chi-square of classes in each label position, and of images, over 20,000 tasks; bounds at p = 1e-6."""
    classes, rows = draw_episodes(3, "test", np.arange(20_000), np.full(10, 6), 4, 3)
    for position in range(4):
        counts = np.bincount(classes[:, position], minlength=10)
        assert ((counts - 2000) ** 2 / 2000).sum() < 46.0  # 9 degrees of freedom
    pairs = np.bincount(classes[:, 0] * 10 + classes[:, 1], minlength=100)[~np.eye(10, dtype=bool).ravel()]
    assert ((pairs - 20_000 / 90) ** 2 / (20_000 / 90)).sum() < 165.0  # 89 degrees of freedom
    counts = np.bincount(rows[:, :, 0].ravel(), minlength=6)
    assert ((counts - 80_000 / 6) ** 2 / (80_000 / 6)).sum() < 36.0  # 5 degrees of freedom


@pytest.mark.parametrize(("tasks", "world"), [(600, 2), (7, 2), (13, 8), (5, 5)])
def test_ranks_share_test_tasks_exactly(tasks: int, world: int) -> None:
    seen = [index for rank in range(world) for index in EpisodeSampler(tasks, rank, world, advances=False)]
    assert sorted(seen) == list(range(tasks))


@pytest.mark.parametrize("world", [1, 2, 8])
def test_ranks_train_on_one_global_sequence(world: int) -> None:
    steps = []
    samplers = [EpisodeSampler(48, rank, world, advances=True) for rank in range(world)]
    for epoch in range(2):
        for sampler in samplers:
            sampler.set_epoch(epoch)
        steps += [index for group in zip(*samplers, strict=True) for index in group]
    assert steps == list(range(96))


@pytest.mark.parametrize(("mean", "std"), [((0.0,), (1.0,)), ((0.3, 0.4, 0.5), (0.2, 0.3, 0.4))])
def test_pixels_are_converted_as_one_whole(mean: tuple[float, ...], std: tuple[float, ...], tmp_path: Path) -> None:
    """Support and query are, bit for bit, the parts of ``(x / 255 - mean) / std`` of all images at once."""
    data = ImageFolderEpisodes(str(make_folder(tmp_path / "mine")), ways=2, shots=2, queries=3, image_size=16)
    assert data.image_spec is not None
    data.image_spec = replace(data.image_spec, mean=mean, std=std)
    data.setup()
    support, query = data.draw(5, "train", [0, 1, 7])
    whole = to_float(data.gather(5, "train", np.asarray([0, 1, 7])), data.image_spec)
    for x, part in ((support.x, whole[:, :, :2]), (query.x, whole[:, :, 2:])):
        assert x.is_contiguous()
        assert torch.equal(x, part.flatten(1, 2))


def test_support_and_query_never_share_an_image() -> None:
    """Glyphs has no two equal images, so equal pixels would be the same image."""
    data = GlyphsDataModule(ways=5, shots=5, queries=40)
    for index in range(20):
        support, query = (role.x.flatten(1) for role in data.episode(0, "train", index))
        assert float(torch.cdist(support, query).min()) > 0


def test_splits_do_not_depend_on_the_seed_and_are_disjoint(omniglot: Path) -> None:
    splits = []
    for seed in (0, 1):
        data = OmniglotDataModule(str(omniglot), seed=seed)
        splits.append({split: data.class_names(split) for split in ("train", "val", "test")})
    assert splits[0] == splits[1]
    characters = [{name.split("@")[0] for name in splits[0][split]} for split in ("train", "val", "test")]
    assert sum(map(len, characters)) == len(set.union(*characters)) == 120
    assert len(splits[0]["train"]) == 4 * len(characters[0])


def test_data_pickles_for_workers_that_are_spawned(omniglot: Path) -> None:
    data = built("omniglot", omniglot)
    dataset = data.train_dataloader().dataset
    again = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(again[3].support.x, dataset[3].support.x)


def test_a_folder_of_images(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "mine")
    data = ImageFolderEpisodes(str(root), ways=2, shots=1, queries=2, image_size=16)
    support, _ = data.episode(0, "train", 0)
    assert support.x.shape == (2, 3, 16, 16)
    assert sum(data.num_classes(split) for split in ("train", "val", "test")) == 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ways": 1}, "ways is 1, .*at least 2"),
        ({"shots": 0}, "shots is 0"),
        ({"queries": -1}, "queries is -1"),
        ({"tasks_per_batch": 0}, "tasks_per_batch is 0"),
        ({"train_tasks": 3}, "train_tasks is 3, .*one batch of 16"),
        ({"num_workers": -1}, "num_workers is -1"),
        ({"seed": -1}, "seed is -1"),
        ({"ways": 40}, "ways is 40, but the (val|test) split of OmniglotDataModule has"),
        ({"shots": 10, "queries": 11}, r"shots \+ queries is 10 \+ 11 = 21, but class .* has 20 images"),
    ],
)
def test_bad_arguments(arguments: dict[str, int], message: str, omniglot: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        OmniglotDataModule(str(omniglot), **arguments).setup()  # type: ignore[arg-type]


def test_an_unknown_split_is_one_line() -> None:
    with pytest.raises(ConfigError, match="split is 'dev', .*train, val, test"):
        SinusoidDataModule().episode(0, "dev", 0)


def test_episodes_are_numbered_from_0() -> None:
    data = SinusoidDataModule()
    with pytest.raises(IndexError, match="episode number is -1, .*use 0 or more"):
        data.train_dataloader().dataset[-1]
    with pytest.raises(ConfigError, match="index is -3, .*use 0 or more"):
        data.episode(0, "test", -3)


def test_the_package_has_one_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[3])
    with pytest.raises(ImportError, match=r"metalearn\.datamodules"):
        __import__("datamodules")
