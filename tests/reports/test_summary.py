"""The summary as text and as data."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from metalearn.metrics import Interval
from metalearn.reports.facts import as_result
from metalearn.reports.outcome import Fact
from metalearn.reports.own_facts import collect_facts
from metalearn.reports.summary import Summary, as_plain

TESTED = Fact("test accuracy", "91.74 % ± 0.68", as_result("test", "accuracy", Interval(0.9174, 0.0068, 600)))


def test_facts_are_joined_into_one_document() -> None:
    facts = [
        Fact("training", "5 steps", {"training": {"steps": 5}}),
        TESTED,
        Fact("speed", "fast", {"training": {"tasks_per_second": math.inf}}),
        Fact("pictures", "a.png", {"pictures": ["a.png"]}),
        Fact("", "b.png", {"pictures": ["b.png"]}),
    ]
    summary = Summary("a run", facts, [Fact("Test it", "test", {"next": {"test": "test"}})], {"command": "fit"})
    accuracy = {"mean": 0.9174, "ci95": 0.0068, "tasks": 600}
    assert summary.as_dict() == {
        "command": "fit",
        "training": {"steps": 5, "tasks_per_second": None},
        "test": {"accuracy": accuracy},
        "result": {"stage": "test", "measure": "accuracy", "better": "higher", **accuracy},
        "pictures": ["a.png", "b.png"],
        "next": {"test": "test"},
    }
    assert summary.result == "test accuracy: 91.74 % ± 0.68"


def test_a_summary_without_a_result_is_known_by_its_first_line() -> None:
    assert Summary("files", [Fact("files", "a.csv"), Fact("", "b.csv")]).result == "files: a.csv"
    assert Summary("nothing", []).result == ""


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (math.nan, None),
        (-math.inf, None),
        (Path("a/b"), "a/b"),
        ({1: (2, {"three": math.nan})}, {"1": [2, {"three": None}]}),
        (True, True),
        ("\udcff", "\udcff"),
    ],
)
def test_every_value_has_a_form_in_json(value: object, plain: object) -> None:
    assert as_plain(value) == plain
    assert json.loads(json.dumps(as_plain(value), allow_nan=False)) == plain


class Offers:
    def summary_facts(self, stage: str) -> list[object]:
        return [("cost", 3.5), TESTED, ["label", None]]

    def pictures(self, run: object) -> list[object]:
        return []


def test_pairs_of_a_users_own_are_data_by_their_names() -> None:
    facts = collect_facts(Offers(), "test")
    assert [(fact.name, fact.text) for fact in facts] == [
        ("cost", "3.5"),
        ("test accuracy", "91.74 % ± 0.68"),
        ("label", "None"),
    ]
    assert Summary("", facts).as_dict()["facts"] == {"cost": 3.5, "label": "None"}
    assert collect_facts(object(), "test") == []
