"""``metalearn compare``: paired differences on the same tasks alone, curves, and differences of configurations."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest

from metalearn.cli import main
from metalearn.experiments.comparison import compare_pairs, list_changes
from metalearn.experiments.record import Record, Session, write_record

DIFFERENT = "the runs were tested on different tasks"
METRICS = "epoch,step,train/loss,val/acc\n" + "".join(f"0,{n},{2 - n / 50},\n0,{n},,{n / 100}\n" for n in range(50))


def make(name: str, scores: list[float] | None = None, sums: list[str] | None = None, config: str = "", measure: str = "acc",
         metrics: str = METRICS) -> Path:  # fmt: skip
    folder = Path("runs") / name / "version_0"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(config or "seed_everything: 0\ndata: {class_path: X, init_args: {ways: 5}}\n")
    (folder / "metrics.csv").write_text(metrics)
    if scores is not None:
        rows = "".join(f"{task},0.1,{value}\n" for task, value in enumerate(scores))
        (folder / "test_tasks.csv").write_text(f"task,{measure}_step_0,{measure}_step_3\n{rows}")
    write_record(folder, Record(name, Session(command="fit", configs=[name], test_tasks=sums or [])))
    return folder


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_interval_is_that_of_the_paired_t_test() -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    for count in (2, 3, 10, 600):
        first, other = rng.random(count), rng.random(count)
        difference = compare_pairs(list(first), list(other))
        low, high = stats.ttest_rel(other, first).confidence_interval(0.95)
        assert difference.spread.mean - difference.spread.ci95 == pytest.approx(low, rel=1e-9)
        assert difference.spread.mean + difference.spread.ci95 == pytest.approx(high, rel=1e-9)
        assert (difference.higher, difference.lower) == ((other > first).sum(), (other < first).sum())


def test_runs_are_compared_on_the_tasks_that_they_share(capsys: pytest.CaptureFixture[str]) -> None:
    make("a", [0.5, 0.6, 0.7, 0.9], ["x", "y"])
    make(
        "b",
        [0.6, 0.7, 0.9],
        ["x", "y", "z"],
        "seed_everything: 1\ndata: {class_path: X, init_args: {ways: 5, test_tasks: 3}}\n",
    )
    main(["compare", "a", "b", "--output", "out put"])
    printed = capsys.readouterr().out
    assert "paired over the 3 test tasks of all" in printed
    half = 4.302652729911275 * np.std([0.1, 0.1, 0.2], ddof=1) / math.sqrt(3)  # t of 2 degrees of freedom
    assert f"+{100 * 0.4 / 3:.2f} ± {100 * half:.2f}" in printed
    assert "3 of 3" in printed
    assert [line.split() for line in printed.splitlines() if "seed_everything" in line or "test_tasks " in line] == [
        ["seed_everything", "0", "1"], ["data.test_tasks", "-", "3"]
    ]  # fmt: skip
    with Path("out put/tasks.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["task"], row["a/version_0"], row["b/version_0"]) for row in rows][2] == ("2", "0.7", "0.9")
    assert Path("out put/curves.png").read_bytes().startswith(b"\x89PNG")


def test_many_runs_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    make("a", [1.0, 2.0], measure="loss")
    make("b", [0.5, 1.0], measure="loss")
    make("c", [1.0, 2.0], measure="loss", metrics="step\n")
    main(["compare", "a", "b", "c", "--json"])
    content = json.loads(capsys.readouterr().out)
    assert (content["measure"], content["tasks"]) == ("loss", 2)
    assert [row.get("difference", {}).get("mean") for row in content["runs"]] == [None, -0.75, 0.0]
    assert content["runs"][1]["difference"]["lower"] == 2
    assert content["runs"][2]["difference"]["ci95"] == 0


def test_runs_without_tasks_have_curves_and_no_interval(capsys: pytest.CaptureFixture[str]) -> None:
    make("a")
    make("b", metrics="step,train/loss\n0,1.0\n1,nan\n2,x\n3,0.5\nhalf")
    main(["compare", "a", "b"])
    assert "no test tasks, so no difference with an interval" in capsys.readouterr().out
    assert Path("comparison/curves.png").is_file()
    assert not Path("comparison/tasks.csv").exists()


def test_what_cannot_be_compared_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    make("a", [0.5, 0.6], ["x", "y"])
    make("other tasks", [0.5, 0.6], ["x", "z"])
    make("ways", [0.5, 0.6], ["q"], "data: {class_path: X, init_args: {ways: 3, train_tasks: 5}}\n")
    make("unknown", [0.5, 0.6], None, "data: {class_path: Y, init_args: {ways: 5}}\n")
    make("untested")
    make("loss", [0.5, 0.6], ["x", "y"], measure="loss")
    make("empty", [], ["x", "y"])
    make("broken", ["half"], ["x"])  # type: ignore[list-item]
    make("config", [0.5, 0.6], ["x", "y"], "model: [")
    for words, line in (
        (["a"], "compare has one run, a/version_0, but it needs two or more; name another"),
        (["a", "runs/a/version_0/"], "run a/version_0 is there twice"),
        (["a", "other tasks"], f"{DIFFERENT}: a/version_0 and other tasks/version_0 have the same options of data, but"),
        (["a", "ways"], f"{DIFFERENT}: data.ways is 5 in a/version_0 and 3 in ways/version_0"),
        (["a", "unknown"], f"{DIFFERENT}: data.class_path is X in a/version_0 and Y in unknown/version_0"),
        (["a", "untested"], "run untested/version_0 has no test_tasks.csv to compare by; test it with: metalearn test "),
        (["a", "loss"], "run a/version_0 was tested by accuracy, and loss/version_0 by loss; compare runs of one measure"),
        (["a", "empty"], "the test_tasks.csv of run empty/version_0 cannot be read (it has no rows); test it again"),
        (["a", "broken"], "the test_tasks.csv of run broken/version_0 cannot be read"),
        (["a", "config"], "config runs/config/version_0/config.yaml is no YAML"),
        (["a", "b"], "run 'b' is neither the folder of a run nor the name of one below runs"),
        (["a", "a", "--output", ""], "run a/version_0 is there twice"),
        (["a", "config", "--outptu", "x"], "--outptu is no option of metalearn compare; did you mean --output?"),
        ([], "metalearn compare: it needs RUN; see metalearn compare --help"),
    ):  # fmt: skip
        with pytest.raises(SystemExit) as stopped:
            main(["compare", *words])
        said = capsys.readouterr().err
        assert said.startswith(f"metalearn: error: {line}"), said
        assert (stopped.value.code, said.count("\n")) == (2, 1)
    assert not Path("comparison").exists()


def test_changes_of_configurations_are_flat() -> None:
    first = {"model": {"class_path": "MAML", "init_args": {"lr": 0.1, "net": {"class_path": "A"}}}, "run_name": "a"}
    other = {"model": {"class_path": "MAML", "init_args": {"lr": [0.1, 0.2], "net": None}}, "run_name": "b"}
    assert list_changes([first, other]) == [
        ("model.lr", ["0.1", "[0.1, 0.2]"]), ("model.net.class_path", ["A", "-"]), ("model.net", ["-", "null"])
    ]  # fmt: skip
