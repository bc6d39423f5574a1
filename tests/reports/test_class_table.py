"""The table of classes and its pictures: against scikit-learn, and against loops over queries."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn import metrics as sk

from metalearn.reports.calibration_picture import draw_calibration
from metalearn.reports.class_pictures import draw_confusions, draw_matrix
from metalearn.reports.class_table import ClassTable, bound_share, write_labels
from metalearn.reports.fonts import fit_name
from metalearn.reports.pictures import draw_predictions

Answers = list[tuple[int, str, str]]
"""The task, the class and the predicted class of each query."""


def make(names: list[str], tasks: int, ways: int, queries: int = 4, seed: int = 0) -> tuple[ClassTable, Answers]:
    """A table of random answers, and the answers one by one."""
    generator = np.random.default_rng(seed)
    rows, classes, answers = [], {}, []
    for task in range(3, 3 + tasks):
        chosen = [names[number] for number in generator.permutation(len(names))[:ways]]
        classes[task] = chosen
        for label in range(ways):
            predicted = np.where(generator.random(queries) < 0.6, label, generator.integers(0, ways, queries))
            answers += [(task, chosen[label], chosen[other]) for other in predicted.tolist()]
            rows += [[task, label, other, int((predicted == other).sum())] for other in sorted(set(predicted.tolist()))]
    return ClassTable.of(np.asarray(rows), classes), answers


def test_it_is_the_table_of_scikit_learn_where_all_tasks_have_all_classes() -> None:
    names = ["a", "b", "c", "d"]
    table, answers = make(names, 30, 4)
    truth, predicted = [true for _, true, _ in answers], [taken for _, _, taken in answers]
    precision, recall, f1, support = sk.precision_recall_fscore_support(truth, predicted, labels=names)
    lines = {line[0]: line for line in table.lines()}
    for row, name in enumerate(names):
        assert lines[name][1:6] == [30, support[row], *map(pytest.approx, (recall[row], precision[row], f1[row]))]
    np.testing.assert_allclose(table.shares(), sk.confusion_matrix(truth, predicted, labels=names, normalize="true"))


def test_shares_are_of_the_tasks_that_have_both_classes() -> None:
    names = [f"class {number}" for number in range(9)]
    table, answers = make(names, 20, 3)
    members = {task: {true for other, true, _ in answers if other == task} for task, _, _ in answers}
    shares, pairs = table.shares(), {(pair.true, pair.taken): pair for pair in table.confusions}
    for row, true in enumerate(table.names):
        for column, taken in enumerate(table.names):
            asked = [answer for task, name, answer in answers if name == true and {true, taken} <= members[task]]
            if not asked:
                assert np.isnan(shares[row, column])
                continue
            assert shares[row, column] == pytest.approx(asked.count(taken) / len(asked))
            if row != column and taken in asked:
                assert pairs[row, column][2:] == (asked.count(taken), len(asked))
    assert [line[3] for line in table.lines()] == sorted(line[3] for line in table.lines())
    both = {(pair.true, pair.taken): pair for pair in table.pair_up()}
    for (first, second), pair in both.items():
        parts = [pairs[key].confused for key in ((first, second), (second, first)) if key in pairs]
        assert pair.confused == sum(parts)
    assert sum(pair.confused for pair in both.values()) == sum(true != taken for _, true, taken in answers)


def test_what_is_surest_comes_first() -> None:
    """6 of 10 before 1 of 1, and 60 of 100 before both; the interval is that of Wilson (1927), as in R's prop.test."""
    low = [bound_share(*pair)[0] for pair in ((60, 100), (6, 10), (1, 1))]
    assert low == sorted(low, reverse=True)
    assert bound_share(6, 10) == pytest.approx((0.3126738, 0.8318197), abs=1e-5)


def test_labels_are_those_of_scikit_learn(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    truth, predicted = generator.random((2, 40, 3)) > 0.5
    truth[:, 2] = False  # a label that no query has
    rows = [
        [label, int((y & z).sum()), int((y & ~z).sum()), int((~y & z).sum()), int((~y & ~z).sum())]
        for half in (slice(15), slice(15, 40))
        for label, (y, z) in enumerate(zip(truth[half].T, predicted[half].T, strict=True))
    ]
    with write_labels(tmp_path / "labels.csv", np.asarray(rows)).open() as file:
        lines = list(csv.DictReader(file))
    precision, recall, f1, support = sk.precision_recall_fscore_support(truth[:, :2], predicted[:, :2])
    for row in range(2):
        values = [float(lines[row][name]) for name in ("with_label", "recall", "precision", "f1")]
        assert values == pytest.approx([support[row], recall[row], precision[row], f1[row]])
        assert float(lines[row]["accuracy"]) == pytest.approx((truth[:, row] == predicted[:, row]).mean())
    assert lines[2]["recall"] == ""


ODD = ["日本語の犬", "한국어", "Русский кот", "عربي", "$x^2$", "a" * 90, "lion\nbreak", "emoji 🦁", "\udce9", " "]


def test_any_names_are_drawn_without_a_warning(tmp_path: Path) -> None:
    table, _ = make(ODD, 30, 5)
    for draw in (draw_matrix, draw_confusions):
        with Image.open(draw(tmp_path / "picture.png", table, "$日本 run") or tmp_path) as picture:
            assert max(picture.size) < 2000
    assert draw_predictions(tmp_path / "own.png", np.zeros((2, 1, 8, 8)), ODD[:2], [0.5, 0.9], "run").is_file()
    assert table.write(tmp_path / "classes.csv").stat().st_size


def test_names_keep_their_ends() -> None:
    assert fit_name("n02119789_kit_fox_of_the_desert_1", 15) == "n021197…esert_1"
    assert fit_name("short", 15) == "short"
    assert fit_name("Ελληνικά", 15) == "Ελληνικά"


def test_many_classes_and_nothing_to_draw(tmp_path: Path) -> None:
    table, _ = make([f"n{number:08d}" for number in range(323)], 60, 5)
    with Image.open(draw_confusions(tmp_path / "pairs.png", table, "run") or tmp_path) as picture:
        assert max(picture.size) < 1400
    perfect = ClassTable.of(np.asarray([[0, 0, 0, 5], [0, 1, 1, 5]]), {0: ["a", "b"]})
    assert draw_confusions(tmp_path / "none.png", perfect, "run") is None
    assert draw_matrix(tmp_path / "matrix.png", perfect, "run") is not None
    assert draw_calibration(tmp_path / "none.png", np.zeros((3, 15)), "run") is None
