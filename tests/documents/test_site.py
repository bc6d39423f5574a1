"""The site builds without a warning, and its reference has every public name."""

from __future__ import annotations

import functools
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.house import ROOT, source_files

pytestmark = pytest.mark.documents

DOCS = ROOT / "docs"
INTERNAL = {
    "metalearn.bilevel.algorithms": "its names are those of metalearn.bilevel",
    "metalearn.bilevel.estimators": "its names are those of metalearn.bilevel",
    "metalearn.carried": "what checkpoints may carry; nobody imports it",
    "metalearn.cli": "the command line",
    "metalearn.inner.adapters": "its names are those of metalearn.inner",
    "metalearn.inner.execution.probe": "a part of metalearn.inner",
    "metalearn.inner.kernels": "the operators behind metalearn.inner",
    "metalearn.inner.solvers": "its names are those of metalearn.inner",
}
"""Packages with a list of names that the reference need not have."""


def build(to: Path, builder: str = "html") -> subprocess.CompletedProcess[str]:
    options = ["-W", "--keep-going", "-n", "-q", "-D", "plot_gallery=0"]  # the scripts run in test_notebooks.py
    command = [sys.executable, "-m", "sphinx", *options, "-b", builder, str(DOCS), str(to)]
    return subprocess.run(command, capture_output=True, text=True, cwd=to.parent)


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    done = build(tmp_path / "html")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "html" / "index.html").is_file()
    assert not read_external_sources(tmp_path / "html")
    for gallery, pages in {"gallery": "gallery", "bilevel": "bilevel_examples"}.items():
        for script in (ROOT / "examples" / gallery).glob("*.py"):
            assert f"{script.stem}.ipynb" in (tmp_path / "html" / pages / f"{script.stem}.html").read_text()


def read_external_sources(site: Path) -> set[str]:
    """What a page would fetch from the network when it is opened."""
    fetched = r'<(?:script|img|iframe)[^>]+src="(https?:[^"]+)|<link[^>]+rel="stylesheet"[^>]+href="(https?:[^"]+)'
    return {"".join(match) for path in site.rglob("*.html") for match in re.findall(fetched, path.read_text())}


ROOM = re.compile(r"^\.\. room:: (\S+)\n\n((?: {3}\w+\n)+)", re.MULTILINE)
BY_HAND = re.compile(r"^\.\. py:(?:type|data):: (metalearn\S*)\.(\w+)$", re.MULTILINE)


@functools.cache
def reference() -> str:
    """All pages of the reference."""
    return "\n".join(page.read_text() for page in sorted((DOCS / "reference").glob("*.md")))


def documented_names() -> list[tuple[str, str]]:
    """Every module and name that the reference documents."""
    rooms = [(module, name) for module, names in ROOM.findall(reference()) for name in names.split()]
    return rooms + BY_HAND.findall(reference())


def test_the_reference_has_every_public_name() -> None:
    documented = documented_names()
    values = {id(getattr(importlib.import_module(module), name)) for module, name in documented}
    packages = {
        name for name, path in source_files().items() if path.name == "__init__.py" and "__all__" in path.read_text()
    }
    missing = [
        f"{room}.{name}"
        for room in sorted({module for module, _ in ROOM.findall(reference())} | packages - INTERNAL.keys())
        for name in importlib.import_module(room).__dict__.get("__all__", ())
        if (room, name) not in documented and id(getattr(importlib.import_module(room), name)) not in values
    ]
    assert not missing


def test_the_reference_names_nothing_twice() -> None:
    documented = documented_names()
    assert len(documented) == len(set(documented))
