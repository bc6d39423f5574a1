"""What a release says about itself: the oldest versions that it allows, its citation, its hooks, its forms for issues."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.house import ROOT

PROJECT = (ROOT / "pyproject.toml").read_text()


def list_bounds(root: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, root / ".ci" / "lower_bounds"], capture_output=True, text=True)


def test_each_dependency_has_a_lower_bound() -> None:
    done = list_bounds(ROOT)
    assert done.returncode == 0, done.stderr
    bounds = done.stdout.splitlines()
    assert all(re.fullmatch(r"[\w.-]+==[\d.]+", line) for line in bounds)
    names = {line.partition("==")[0] for line in bounds}
    assert {"torch", "jsonargparse", "rich", "optuna", "sphinx", "ruff"} <= names


@pytest.mark.parametrize(
    ("bound", "says"),
    [
        ("rich", "'rich' has no lower bound; write it as name>=version"),
        ("rich<14", "'rich<14' has no lower bound; write it as name>=version"),
        ("rich>=13,<14", "'rich>=13,<14' has no lower bound; write it as name>=version"),
        ("optuna>=3", "optuna has two lower bounds, 3 and 4.0; give it one"),
    ],
)
def test_a_missing_bound_is_named(bound: str, says: str, tmp_path: Path) -> None:
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "lower_bounds", tmp_path / ".ci")
    (tmp_path / "pyproject.toml").write_text(PROJECT.replace('"rich>=13"', f'"{bound}"'))
    done = list_bounds(tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"pyproject.toml: {says}\n")


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == re.search(r'^version = "(.*)"', PROJECT, re.MULTILINE)[1]
    assert citation["license"] == re.search(r'^license = "(.*)"', PROJECT, re.MULTILINE)[1]
    assert {"cff-version", "message", "title", "authors"} <= set(citation)


def test_the_declared_pythons_begin_with_the_required_one() -> None:
    declared = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', PROJECT)
    assert declared[0] == re.search(r'^requires-python = ">=(.*)"', PROJECT, re.MULTILINE)[1]


def test_hooks_run_what_ci_runs_and_fetch_nothing() -> None:
    run = (ROOT / ".ci" / "run").read_text()
    repos = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [repo["repo"] for repo in repos] == ["local"]
    hooks = repos[0]["hooks"]
    assert {hook["language"] for hook in hooks} == {"system"}
    for tool in ("ruff check", "ruff format --check", "mypy", "mypy datamodules"):
        assert any(tool in hook["entry"] for hook in hooks)
        assert re.search(rf"^{tool}\b", run, re.MULTILINE)


@pytest.mark.parametrize(
    "path", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")), ids=lambda path: path.stem
)
def test_a_form_for_issues_is_whole(path: Path) -> None:
    form = yaml.safe_load(path.read_text())
    assert form["name"]
    assert form["description"]
    ids = [field["id"] for field in form["body"]]
    assert len({*ids}) == len(ids)
    for field in form["body"]:
        assert field["type"] in {"textarea", "input", "dropdown"}
        assert field["attributes"]["label"]
