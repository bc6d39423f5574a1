"""What a test writes of classes, of labels and of confidences: against a loop over the tasks."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metalearn import MAML, MLP
from metalearn.cli import main
from metalearn.datamodules import ArrayEpisodes, EpisodeOptions, FunctionEpisodes
from metalearn.modules.callbacks.tables import TaskTable
from metalearn.modules.episodic.class_report import draw_records
from metalearn.reports.outcome import RunRecord
from tests.modules.episodic.test_evaluation import NoiseTasks, trainer
from tests.modules.episodic.test_measures import SMALL, labels
from tests.networks import TinyConv


def read(path: Path | None) -> list[dict[str, str]]:
    assert path is not None
    with path.open() as file:
        return list(csv.DictReader(file))


def make_data(**arguments: Any) -> ArrayEpisodes:
    generator = np.random.default_rng(0)
    y = np.repeat([f"animal {number}" for number in range(12)], 8)
    x = np.repeat(generator.normal(size=(12, 4)), 8, 0) + 0.7 * generator.normal(size=(96, 4))
    splits = {"train": sorted(set(y))[:4], "val": sorted(set(y))[4:8], "test": sorted(set(y))[8:]}
    return ArrayEpisodes(x, y, splits=splits, **{"ways": 3, "queries": 3, "tasks_per_batch": 4, "train_tasks": 4,
                                                 "val_tasks": 2, "test_tasks": 9, **arguments})  # fmt: skip


@pytest.mark.parametrize(
    "arguments",
    [
        {"ways": 3},
        {"ways": [2, 3], "shots": [1, 2]},
        {"ways": 3, "options": EpisodeOptions(unlabeled=1, distractors=1)},
    ],
)
def test_the_table_of_classes_is_that_of_a_loop(arguments: dict[str, Any], tmp_path: Path) -> None:
    data, table = make_data(**arguments), TaskTable()
    torch.manual_seed(0)
    module = MAML(MLP(inputs=4, outputs=3), inner_steps=2, inner_lr=0.3)
    trainer(tmp_path, callbacks=[table]).test(module, datamodule=data, verbose=False)
    answers: list[tuple[str, str]] = []
    members = []
    for task in range(9):
        rows, (support, query) = data.task_rows(0, "test", task), data.episode(0, "test", task)[:2]
        owners = np.repeat(np.asarray(data.pool.names), data.pool.counts)
        names = {int(label): owners[row] for row, label in zip(rows.support, rows.support_y, strict=True)}
        predicted = module.adapt(support, ways=len(names))(query.x).argmax(1).tolist()
        answers += [(owners[row], names[taken]) for row, taken in zip(rows.query, predicted, strict=True)]
        members.append(set(names.values()))
    lines = read(table.classes)
    assert table.classes == tmp_path / "classes.csv"
    assert {line["class"] for line in lines} == {true for true, _ in answers}
    for line in lines:
        own = [taken for true, taken in answers if true == line["class"]]
        assert int(line["tasks"]) == sum(line["class"] in names for names in members)
        assert int(line["queries"]) == len(own)
        assert float(line["accuracy"]) == pytest.approx(own.count(line["class"]) / len(own))
        if line["precision"]:
            right = own.count(line["class"])
            assert float(line["precision"]) == pytest.approx(
                right / [taken for _, taken in answers].count(line["class"])
            )
        assert (line["taken_for"] == "") == (set(own) == {line["class"]})
    pictures = draw_records(module.test_records(), RunRecord("run", data, tested=True))
    assert [picture.name for picture in pictures] == ["calibration.png", "confusion_matrix.png"]
    assert all(picture.draw(tmp_path / picture.name) for picture in pictures)
    bins = module.test_records().bins
    assert bins is not None
    assert int(bins[0].sum()) == len(answers)


def test_labels_have_their_table(tmp_path: Path) -> None:
    module, table = MAML(MLP(inputs=3, outputs=4), inner_steps=1, loss="binary_cross_entropy"), TaskTable()
    data = FunctionEpisodes(labels, **SMALL)
    trainer(tmp_path, callbacks=[table]).test(module, datamodule=data, verbose=False)
    tasks = [data.episode(0, "test", task) for task in range(7)]
    chosen = torch.cat([module.adapt(task.support)(task.query.x) > 0 for task in tasks])
    wanted = torch.cat([task.query.y > 0.5 for task in tasks])
    lines = read(table.classes)
    assert table.classes == tmp_path / "labels.csv"
    for label, line in enumerate(lines):
        assert float(line["accuracy"]) == pytest.approx(float((chosen == wanted)[:, label].double().mean()))
        right = float((chosen & wanted)[:, label].sum())
        assert float(line["recall"]) == pytest.approx(right / float(wanted[:, label].sum()))


class OwnLoader(ArrayEpisodes):
    def test_dataloader(self) -> Any:
        return self._loader("test")


def test_classes_without_names_have_no_table(tmp_path: Path) -> None:
    """Ways are numbered anew in each task, so a matrix over them says nothing; the reliability diagram does."""
    data = OwnLoader(np.random.default_rng(0).normal(size=(96, 4)), np.repeat(np.arange(12), 8), ways=2, queries=2)
    for own, network in ((NoiseTasks(test_tasks=5), TinyConv()), (data, MLP(inputs=4, outputs=2))):
        module, table = MAML(network, inner_steps=1), TaskTable()
        run = trainer(tmp_path, callbacks=[table], limit_test_batches=2)
        run.test(module, datamodule=own, verbose=False)
        assert table.classes is None
        assert not (tmp_path / "classes.csv").exists()
        assert [picture.name for picture in draw_records(module.test_records(), RunRecord("run", own))] == [
            "calibration.png"
        ]


def test_a_run_lists_its_table_and_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    main(["test", "--ckpt_path", "maml_glyphs_5w1s", "--data.test_tasks", "12", "--trainer.accelerator", "cpu"])
    printed = capsys.readouterr().out
    for name in ("classes.csv", "calibration.png", "confusions.png"):
        assert name in printed
        assert len(list(tmp_path.rglob(name))) == 1
    assert "independent" in printed
