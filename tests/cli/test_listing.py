"""``metalearn list``: what there is by name, read without importing what is heavy."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from metalearn.carried.classes import DATA_MODULES, MODULES
from metalearn.carried.shipped import shipped_checkpoints
from metalearn.cli import main
from metalearn.cli.listing import KINDS
from metalearn.cli.shipped import shipped_configs


def read_list(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, dict[str, Any]]:
    main(["list", *words, "--json"])
    document = json.loads(capsys.readouterr().out)
    assert document["command"] == "list"
    return {row["name"]: row for row in document[words[0]]}


def test_configs(capsys: pytest.CaptureFixture[str]) -> None:
    rows = read_list(capsys, "configs")
    assert list(rows) == list(shipped_configs())
    row = rows["fomaml_omniglot_20w5s"]
    assert (row["model"], row["data_class"], row["ways"], row["shots"], row["files"], row["steps"]) == (
        "MAML", "OmniglotDataModule", 20, 5, "fetch", 2100,
    )  # fmt: skip
    assert row["first_order"]
    assert rows["maml_glyphs_5w1s"]["files"] == "none"


def test_models(capsys: pytest.CaptureFixture[str]) -> None:
    rows = read_list(capsys, "models")
    assert set(MODULES) <= set(rows)
    assert rows["MAML"]["config"] == "maml_glyphs_5w1s"
    assert rows["IMAML"]["configs"] == ["imaml_omniglot_5w1s"]
    assert all(row["text"].endswith(".") and "`" not in row["text"] for row in rows.values())


def test_datasets(capsys: pytest.CaptureFixture[str]) -> None:
    rows = read_list(capsys, "datasets")
    assert set(DATA_MODULES) <= set(rows)
    wanted = {"CIFARFSDataModule": "fetch", "FC100DataModule": "fetch", "CUB200DataModule": "yours", "ArrayEpisodes": "python",
              "FunctionEpisodes": "python", "FeatureEpisodes": "python", "TokenEpisodes": "python",
              "ImageCompletionEpisodes": "images",
              "SinusoidDataModule": "none", "ImageFolderEpisodes": "yours"}  # fmt: skip
    assert {name: rows[name]["files"] for name in wanted} == wanted


def test_bounds(capsys: pytest.CaptureFixture[str]) -> None:
    rows = read_list(capsys, "bounds")
    row = rows["AID-BiO"]
    assert row["calls"] == "gc_f, jvp k^3/eps; gc_g k^4/eps; hvp k^3.5/eps"
    assert (row["bound"], row["status"], row["setting"]) == ("upper", "confirmed", "nonconvex")
    assert rows["lower bound, Ji"]["bound"] == "lower"
    assert rows["ANIL, nonconvex"]["calls"].startswith("more inner steps make it slower")


def test_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    run = Path("my runs/mine/version_0")
    (run / "checkpoints").mkdir(parents=True)
    for name in ("config.yaml", "checkpoints/best.ckpt", "checkpoints/last.ckpt"):
        (run / name).write_text("{}")
    (run / "metrics.csv").write_text("step,train/loss\n4,0.5\n")
    (run / "test_tasks.csv").write_text("task,acc_step_0,acc_step_1\n0,0.2,0.5\n1,0.2,1.0\n")
    rows = read_list(capsys, "checkpoints", "--runs", "my runs")
    shipped = rows["maml_glyphs_5w1s"]
    assert Path(shipped["path"]).is_file()
    assert (shipped["mean"], shipped["tasks"]) == (0.9152, 600)
    assert rows[f"{run}/checkpoints/best.ckpt"]["mean"] == 0.75
    assert rows[f"{run}/checkpoints/last.ckpt"]["mean"] is None


def test_without_runs_the_shipped_checkpoints_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    main(["list", "checkpoints", "--quiet"])
    assert capsys.readouterr().out.split() == list(shipped_checkpoints())


def test_the_kinds(capsys: pytest.CaptureFixture[str]) -> None:
    main(["list"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1 : len(KINDS) + 1]] == list(KINDS)
    assert all(line == line.rstrip() for line in lines)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["cofigs"], "kind is 'cofigs', .*; did you mean configs[?]"),
        (
            ["runs"],
            "kind is 'runs', but it must be one of configs, models, datasets, bounds, checkpoints; see metalearn list",
        ),
        (["checkpoints", "--runs", "nowhere"], "runs is 'nowhere', but there is no such folder; give"),
        (["checkpoints", "--run", "."], "--run is no option of metalearn list; did you mean --runs[?]"),
        (["configs", "models"], "models is no option of metalearn list"),
    ],
)
def test_wrong_words_are_one_line(words: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["list", *words])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert re.search(f"^metalearn: error: {line}", said), said
    assert len(said.splitlines()) == 1


def test_a_terminal_of_80_columns_holds_the_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process of its own, which has loaded no torch."""
    code = (
        "import sys\n"
        "from metalearn.cli import main\n"
        f"for kind in {list(KINDS)!r}:\n"
        "    main(['list', kind])\n"
        "heavy = {'torch', 'lightning', 'torchvision', 'matplotlib', 'jsonargparse'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes any output for a terminal then
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout).splitlines()
    assert max(map(len, lines)) == 80
