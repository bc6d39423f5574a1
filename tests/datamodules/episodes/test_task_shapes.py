"""Tasks of any shape: ranges, imbalance, groups, turned classes, distractors. All are pure functions of their number."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metalearn import ConfigError, Episode
from metalearn.datamodules import ArrayEpisodes, EpisodeOptions, ImageFolderEpisodes, OmniglotDataModule
from metalearn.datamodules.episodes.groups import find_groups
from metalearn.episode import SemiSupervisedEpisode
from tests.made import make_folder

COUNTS = np.asarray([14 + label % 5 for label in range(30)])
LABELS = np.repeat(np.arange(30), COUNTS)
VALUES = np.arange(len(LABELS), dtype=np.float32)[:, None]
"""Every row is its own number, so that an episode says which rows it took."""


def numbered(seed: int = 0, **arguments: Any) -> ArrayEpisodes:
    options = {name: arguments.pop(name) for name in tuple(arguments) if name in EpisodeOptions.__dataclass_fields__}
    sizes = {"ways": 3, "shots": 2, "queries": 3, **arguments}
    return ArrayEpisodes(
        VALUES, LABELS, seed=seed, splits=(0.5, 0.25, 0.25), options=EpisodeOptions(**options), **sizes
    )


KINDS: list[dict[str, Any]] = [
    {},
    {"ways": [2, 5], "shots": [1, 4], "queries": [1, 3]},
    {"ways": [2, 5], "shots": [1, 4], "balanced": False},
    {"unlabeled": 4, "distractors": 2},
    {"aligned": True},
    {"aligned": True, "ways": [2, 4], "shots": [1, 3], "unlabeled": 2, "distractors": 1},
    {"ways": [2, 4], "unlabeled": 2, "distractors": 3, "balanced": False, "shots": [1, 3]},
]


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**40), first=st.integers(0, 2**40), kind=st.sampled_from(KINDS))
def test_no_test_class_is_trained_on_and_no_example_is_used_twice(seed: int, first: int, kind: dict[str, Any]) -> None:
    """100 times 100 episodes."""
    data = numbered(seed, **kind)
    data.setup()
    row_of = np.asarray(
        [int(name) for number in range(len(data.pool.names)) for name in data.example_names(number) or ()]
    )
    owners = {split: set(classes.tolist()) for split, classes in data.splits.items()}
    assert not owners["train"] & (owners["val"] | owners["test"])
    for index in range(first, first + 100):
        split = ("train", "train", "test", "val")[index % 4]
        rows = data.task_rows(seed, split, index)
        every = np.concatenate(rows[::2])
        assert len(set(every.tolist())) == len(every)
        assert set(LABELS[row_of[every]].tolist()) <= owners[split]
        known = {int(label): int(LABELS[row_of[row]]) for row, label in zip(rows.support, rows.support_y, strict=True)}
        assert len(set(known.values())) == len(known)
        assert sorted(known) == list(range(len(known)))
        for numbers, labels in ((rows.query, rows.query_y), (rows.unlabeled, rows.unlabeled_y)):
            for row, label in zip(numbers, labels, strict=True):
                owner = int(LABELS[row_of[row]])
                assert known[int(label)] == owner if label >= 0 else owner not in known.values()


def test_ranges_are_drawn_uniformly() -> None:
    """Chi-square of 4 x 4 x 3 shapes over 9,600 tasks; bound at p = 1e-6."""
    data = numbered(ways=[2, 5], shots=[1, 4], queries=[1, 3])
    data.setup()
    found: Counter[tuple[int, int, int]] = Counter()
    for index in range(9600):
        rows = data.task_rows(0, "train", index)
        ways = len(set(rows.support_y.tolist()))
        found[ways, len(rows.support) // ways, len(rows.query) // ways] += 1
    counts = np.asarray(
        [found[ways, shots, queries] for ways in range(2, 6) for shots in range(1, 5) for queries in range(1, 4)]
    )
    assert counts.sum() == 9600
    assert float(((counts - 200) ** 2 / 200).sum()) < 104.0  # 47 degrees of freedom


def test_label_permutations_are_uniform() -> None:
    """Of the tasks with the same three of four classes, all six labellings are as likely; bound at p = 1e-6."""
    data = ArrayEpisodes(
        np.arange(48.0)[:, None], np.repeat(np.arange(12), 4), ways=3, shots=1, queries=1, splits=(1 / 3, 1 / 3, 1 / 3)
    )
    data.setup()
    found: Counter[tuple[int, ...]] = Counter()
    rows, _ = data.gather_rows(5, "test", np.arange(24_000))
    for task in rows[:, :, 0] // 4:
        found[tuple(task.tolist())] += 1
    assert len(found) == 24
    counts = np.asarray(list(found.values()))
    assert float(((counts - 1000) ** 2 / 1000).sum()) < 70.0  # 23 degrees of freedom


def test_imbalance_draws_the_shots_of_each_class() -> None:
    data = numbered(shots=[1, 4], balanced=False)
    shots = {tuple(np.bincount(data.episode(0, "train", index).support.y).tolist()) for index in range(60)}
    assert all(1 <= count <= 4 for task in shots for count in task)
    assert len(shots) > 20


@pytest.mark.parametrize("options", [{}, {"ways": [2, 5]}, {"unlabeled": 3, "distractors": 2}])
def test_aligned_classes_give_the_same_examples(options: dict[str, Any]) -> None:
    """Their numbers within the class; over many tasks each is drawn, and those of all classes are as likely."""
    data = numbered(aligned=True, shots=2, queries=3, **options)
    data.setup()
    seen = Counter[int]()
    for index in range(300):
        rows = data.task_rows(0, "train", index)
        owner = np.searchsorted(data.pool.offsets, np.concatenate(rows[::2]), "right") - 1
        within = np.concatenate(rows[::2]) - data.pool.offsets[owner]
        by_class = [frozenset(within[owner == number].tolist()) for number in np.unique(owner[: len(rows.support)])]
        assert len(set(by_class)) == 1
        seen.update(by_class[0])
    assert set(range(14)) <= seen.keys()  # the smallest class has 14


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_of_shapes_is_a_list_of_single_tasks(workers: int) -> None:
    data = numbered(ways=[2, 5], shots=[1, 3], tasks_per_batch=4, train_tasks=8, num_workers=workers)
    batch = next(iter(data.train_dataloader()))
    assert len(batch) == 4
    for index, task in enumerate(batch):
        alone = data.episode(0, "train", index)
        for role, expected in zip(task, alone, strict=True):
            assert torch.equal(role.x[0], expected.x)
            assert torch.equal(role.y[0], expected.y)
    assert len({task.support.x.shape for task in batch}) > 1


def test_unlabeled_examples_come_mixed() -> None:
    data = numbered(unlabeled=4, distractors=2, tasks_per_batch=2, train_tasks=4)
    batch = next(iter(data.train_dataloader()))
    assert isinstance(batch, SemiSupervisedEpisode)
    assert batch.unlabeled.x.shape == (2, 20, 1)
    assert sorted(batch.unlabeled.y[0].tolist()) == sorted([0, 1, 2] * 4 + [-1] * 8)
    assert batch.unlabeled.y[0].tolist() != sorted(batch.unlabeled.y[0].tolist())


def test_hierarchical_tasks_stay_within_an_alphabet(omniglot: Path) -> None:
    data = OmniglotDataModule(str(omniglot), ways=5, shots=1, queries=2, options=EpisodeOptions(within_groups=True))
    data.setup()
    seen = Counter[str]()
    groups = np.asarray(data.pool.groups)
    owners = np.repeat(np.arange(len(data.pool.counts)), data.pool.counts)
    for index in range(600):
        found = set(groups[owners[data.task_rows(0, "train", index).support]])
        assert len(found) == 1
        seen[found.pop()] += 1
    assert min(seen.values()) > 50  # six alphabets, each as likely


@pytest.mark.parametrize("ways", [5, 20])
def test_the_characters_of_a_task_are_turned_alike(omniglot: Path, ways: int) -> None:
    """As they are in test."""
    options = EpisodeOptions(within_groups=True, class_labels=True)
    data = OmniglotDataModule(str(omniglot), split="alphabets", ways=ways, shots=1, queries=1, options=options)
    data.setup()
    alphabets = np.asarray(data.pool.groups)[data.splits["train"]]
    turns = set()
    for index in range(40):
        labels = np.asarray(data.episode(0, "train", index).support.y)
        assert len(set(alphabets[labels // 4])) == 1
        assert len(set(labels % 4)) == 1
        turns.update(labels % 4)
    assert turns == {0, 1, 2, 3}


def test_turned_classes_of_a_folder_are_turned_alike(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "mine", classes=18)
    groups = {f"class{label:02d}": "ab"[label % 2] for label in range(18)}
    table = tmp_path / "labels.csv"
    lines = [f"{name}/{index}.png,{name},{groups[name]}" for name in groups for index in range(6)]
    table.write_text("\n".join(["filename,label,group", *lines]) + "\n")
    options = EpisodeOptions(within_groups=True, rotations=True, class_labels=True)
    data = ImageFolderEpisodes(str(root), labels=str(table), ways=2, shots=1, queries=1, image_size=16, options=options)
    data.setup()
    for index in range(40):
        labels = np.asarray(data.episode(0, "train", index).support.y)
        assert len(set(labels % 4)) == 1


def test_an_alphabet_that_is_too_small_for_one_turn_has_all_of_them_together() -> None:
    names, turns = np.repeat(["b", "a", "b", "b", "c"], 2), np.tile([0, 1], 5)
    found = [group.tolist() for group in find_groups(list(names), turns, needed=2)]
    assert found == [[2, 3], [0, 4, 6], [1, 5, 7], [8, 9]]
    assert [group.tolist() for group in find_groups(["b", "a", "b"], np.zeros(3), needed=2)] == [[0, 2]]
    assert find_groups(["b", "a"], np.zeros(2), needed=2) == []


def test_turned_classes_are_the_turned_images(tmp_path: Path) -> None:
    root = str(make_folder(tmp_path / "mine", classes=18))
    plain = ImageFolderEpisodes(root, ways=2, shots=2, queries=2, image_size=16)
    turned = ImageFolderEpisodes(
        root, ways=2, shots=2, queries=2, image_size=16, options=EpisodeOptions(rotations=True)
    )
    assert turned.num_classes("train") == 4 * plain.num_classes("train")
    assert turned.num_classes("test") == plain.num_classes("test")
    known = {
        image.tobytes(): (number, turn)
        for number, name in enumerate(plain.class_names("train"))
        for turn in range(4)
        for image in np.rot90(plain.take_pixels(_rows_of(plain, name)), turn, (2, 3))
    }
    seen = set()
    for index in range(120):
        episode = turned.episode(0, "train", index)
        owners: dict[int, set[tuple[int, int]]] = {}
        for role in episode:
            for x, y in zip(role.x, role.y.tolist(), strict=True):
                owners.setdefault(y, set()).add(known[(x * 255).round().to(torch.uint8).numpy().tobytes()])
        assert all(len(found) == 1 for found in owners.values())
        seen |= set.union(*owners.values())
    assert len(seen) > 30  # of 44: classes and all four turns
    assert {turn for _, turn in seen} == {0, 1, 2, 3}


def _rows_of(data: ImageFolderEpisodes, name: str) -> np.ndarray:
    number = data.pool.names.index(name)
    return int(data.pool.offsets[number]) + np.arange(int(data.pool.counts[number]))


def test_statistics_are_those_of_the_training_images(tmp_path: Path) -> None:
    root = str(make_folder(tmp_path / "mine"))
    data = ImageFolderEpisodes(root, ways=2, shots=1, queries=2, image_size=16, options=EpisodeOptions(normalize=True))
    data.setup()
    pixels = np.concatenate([data.take_pixels(_rows_of(data, name)) for name in data.class_names("train")]) / 255.0
    assert data.image_spec is not None
    np.testing.assert_allclose(data.image_spec.mean, pixels.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(data.image_spec.std, pixels.std((0, 2, 3)), rtol=1e-9)
    x = torch.cat([role.x for index in range(50) for role in data.episode(0, "train", index)])
    assert float(x.mean().abs()) < 0.1
    assert float((x.std() - 1).abs()) < 0.1
    assert data.packed_spec.mean == (0.0,)  # the store holds what was read


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ways": [5]}, r"ways is \[5\], but a range must be two whole numbers"),
        ({"shots": [3, 1]}, r"shots is \[3, 1\], .*the least"),
        ({"ways": [1, 5]}, r"ways is \[1, 5\], .*at least 2"),
        ({"ways": [2, 40]}, r"ways is \[2, 40\], but the train split of ArrayEpisodes has 1. classes"),
        ({"ways": 6, "unlabeled": 1, "distractors": 3}, "ways is 6 and distractors 3, but the val split"),
        ({"distractors": 3}, "distractors is 3, but unlabeled is 0"),
        ({"unlabeled": 20}, r"shots \+ queries \+ unlabeled is 2 \+ 3 \+ 20 = 25, but class"),
        ({"within_groups": True}, "within_groups is true, but ArrayEpisodes has no groups"),
        ({"rotations": True}, "options.rotations is given, but it is for images"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        numbered(**arguments).setup()


def test_an_ordinary_episode_is_still_one() -> None:
    assert isinstance(numbered().episode(0, "test", 3), Episode)
