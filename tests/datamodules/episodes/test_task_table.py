"""Tables of tasks: what was written is read back as the very same episodes, and a wrong table is one line."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from metalearn import ConfigError, DataError
from metalearn.datamodules import ArrayEpisodes, EpisodeOptions, ImageFolderEpisodes
from metalearn.datamodules.episodes.task_table import HEADER, list_task_lines
from metalearn.reports.tables import write_csv
from tests.datamodules.episodes.test_task_shapes import LABELS, VALUES
from tests.made import make_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_folder(tmp_path_factory.mktemp("mine")))


def made(root: str, seed: int = 0, **options: object) -> ImageFolderEpisodes:
    return ImageFolderEpisodes(
        root,
        ways=2,
        shots=2,
        queries=2,
        image_size=16,
        seed=seed,
        test_tasks=5,
        options=EpisodeOptions(**options),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("options", [{}, {"unlabeled": 1}])
def test_a_table_holds_the_very_same_tasks(folder: str, options: dict[str, int], tmp_path: Path) -> None:
    """Whatever the seed of the run that reads it, and for a loader too."""
    first = made(folder, **options)
    path = write_csv(tmp_path / "tasks.csv", HEADER, list_task_lines(first, "test", 5))
    again = made(folder, seed=9, test_tasks_file=str(path), **options)
    loaded = list(again.test_dataloader())
    assert sum(len(batch.support.x) for batch in loaded) == 5
    for index in range(5):
        for role, expected in zip(again.episode(1, "test", index), first.episode(0, "test", index), strict=True):
            assert torch.equal(role.x, expected.x)
            assert torch.equal(role.y, expected.y)
    assert not torch.equal(again.episode(9, "train", 0).support.x, first.episode(0, "train", 0).support.x)


def test_a_task_beyond_the_table_is_one_line(folder: str, tmp_path: Path) -> None:
    path = write_csv(tmp_path / "tasks.csv", HEADER, list_task_lines(made(folder), "test", 2))
    data = made(folder, test_tasks_file=str(path))
    with pytest.raises(ConfigError, match=r"test task 2 is asked for, but .*tasks\.csv lists 2 tasks"):
        data.episode(0, "test", 2)
    with pytest.raises(ConfigError, match="test task 2 is asked for"):
        list(list_task_lines(data, "test", 3))


def test_another_system_can_read_the_images(folder: str, tmp_path: Path) -> None:
    """The table names class folders and files."""
    path = write_csv(tmp_path / "tasks.csv", HEADER, list_task_lines(made(folder), "test", 2))
    with path.open() as file:
        for line in csv.DictReader(file):
            assert (Path(folder) / line["class"] / line["image"]).is_file()


def test_rows_of_arrays_are_numbered_as_in_the_array(tmp_path: Path) -> None:
    data = ArrayEpisodes(VALUES, LABELS, ways=[2, 4], shots=[1, 2], queries=2, test_tasks=6)  # type: ignore[arg-type]
    path = write_csv(tmp_path / "tasks.csv", HEADER, list_task_lines(data, "test", 6))
    with path.open() as file:
        for line in csv.DictReader(file):
            assert LABELS[int(line["image"])] == int(line["class"])
    again = ArrayEpisodes(VALUES, LABELS, queries=2, options=EpisodeOptions(test_tasks_file=str(path)))
    for index in range(6):
        assert torch.equal(again.episode(0, "test", index).query.x, data.episode(0, "test", index).query.x)


def first_line(**changes: str) -> Callable[[list[dict[str, str]]], None]:
    def change(lines: list[dict[str, str]]) -> None:
        lines[0].update(changes)

    return change


FAULTS: list[tuple[Callable[[list[dict[str, str]]], object], str]] = [
    (first_line(role="suport"), "line 2 of .* has the role 'suport', but it must be one of support, query, unlabeled"),
    (first_line(label="two"), "line 2 of .* has the label 'two', .*whole number"),
    (first_line(label="7"), r"task 0 of .* has the support labels \[0, .*7\], but they must be 0, 1"),
    (first_line(image="nowhere.png"), "line 2 of .* names image nowhere.png, which class class"),
    (first_line(**{"class": "class99"}), "line 2 of .* names class class99, which this data set lacks"),
    (lambda lines: lines[1].update(lines[0]), "task 0 of .* names an image twice"),
    (lambda lines: [line.update(role="query") for line in lines], "task 0 of .* has no support image"),
    (lambda lines: lines.clear(), "lists no task"),
]


@pytest.mark.parametrize(("change", "message"), FAULTS, ids=[message[:30] for _, message in FAULTS])
def test_a_wrong_table_is_one_line(
    folder: str, change: Callable[[list[dict[str, str]]], object], message: str, tmp_path: Path
) -> None:
    lines = [dict(zip(HEADER, map(str, line), strict=True)) for line in list_task_lines(made(folder), "test", 1)]
    change(lines)
    path = write_csv(tmp_path / "tasks.csv", HEADER, [[line[name] for name in HEADER] for line in lines])
    with pytest.raises(DataError, match=message) as caught:
        made(folder, test_tasks_file=str(path)).setup()
    assert "\n" not in str(caught.value)


def test_a_training_class_is_refused(folder: str, tmp_path: Path) -> None:
    path = write_csv(tmp_path / "tasks.csv", HEADER, list_task_lines(made(folder), "train", 1))
    with pytest.raises(DataError, match="names class class.., which is trained on"):
        made(folder, test_tasks_file=str(path)).setup()


@pytest.mark.parametrize(("content", "message"), [(None, "cannot be read"), (b"\xff\xfe", "cannot be read"),
                                                  (b"a,b\n1,2\n", "has the columns a,b, but they must be task")])  # fmt: skip
def test_an_unreadable_table_is_one_line(folder: str, content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "tasks.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=f"test_tasks_file .*{message}"):
        made(folder, test_tasks_file=str(path)).setup()
