"""The examples of docstrings print what they say, with nothing but what they import, and every public class has one."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import inspect
import math
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.documents.test_site import documented_names
from tests.house import source_files

pytestmark = pytest.mark.documents

OPTIONAL = {
    "metalearn.backbones.huggingface_networks": "transformers",
    "metalearn.backbones.timm_networks": "timm",
    "metalearn.compat.higher": "higher",
    "metalearn.compat.learn2learn": "learn2learn",
    "metalearn.experiments.sweep": "optuna",
}
"""Packages that examples need and that need not be installed."""


def list_modules() -> list[str]:
    """The files of ours that have examples, by their dotted names."""
    return [name for name, path in source_files().items() if ">>> " in path.read_text()]


def is_left_out(name: str) -> bool:
    """Whether a file needs a package that is not installed."""
    return any(
        name.startswith(room) and importlib.util.find_spec(package) is None for room, package in OPTIONAL.items()
    )


@pytest.fixture
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Examples run in a folder with nothing in it, and leave no seed behind."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("metalearn.progress.EVERY", math.inf)  # on a busy machine, Glyphs say how far they are
    with torch.random.fork_rng():
        torch.manual_seed(int.from_bytes(os.urandom(4), "little"))  # what they print depends on no seed
        yield


@pytest.mark.parametrize("name", list_modules())
@pytest.mark.usefixtures("_empty_folder")
@pytest.mark.filterwarnings("ignore:::learn2learn", "ignore:::gym", "ignore:::higher")
def test_the_examples_of_a_file(name: str) -> None:
    if is_left_out(name):
        pytest.skip("it needs a package that is not installed")
    tests = [test for test in doctest.DocTestFinder().find(importlib.import_module(name), globs={}) if test.examples]
    printed: list[str] = []
    runner = doctest.DocTestRunner()
    for test in tests:
        runner.run(test, out=printed.append)
    assert tests
    assert not runner.failures, "".join(printed)


def test_every_public_class_has_an_example() -> None:
    experiments = [
        (module, name)
        for module in source_files()
        if module.startswith("metalearn.experiments.") and not is_left_out(module)
        for name in getattr(importlib.import_module(module), "__all__", ())
    ]
    named = [*documented_names(), *experiments]
    missing = [f"{module}.{name}" for module, name in named if lacks_example(module, name)]
    assert not missing


def lacks_example(module: str, name: str) -> bool:
    """Whether a name is that of a class of ours whose docstring shows no use of it."""
    value = getattr(importlib.import_module(module), name, None)
    is_ours = inspect.isclass(value) and value.__module__.startswith("metalearn")
    return is_ours and ">>> " not in (value.__doc__ or "")
