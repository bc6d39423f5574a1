"""The rules that the source keeps: who imports whom, what names say, how long files are, what tests reach into."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.house import (
    ROOT,
    find_bindings,
    find_circle,
    find_imports,
    find_private_access,
    imports_of_ours,
    parse,
    source_files,
)

Layers = list[set[str]]
ORDER: dict[str, Layers] = {
    "metalearn": [
        {"errors", "early_signals", "intervals"}, {"episode"}, {"checks", "docstrings", "progress"}, {"lazy"},
        {"backbones", "metrics", "datamodules"}, {"inner"},
        {"compat.higher"}, {"bilevel"}, {"reports"}, {"carried"}, {"shipping"}, {"modules"}, {"image_classifier", "theory"},
        {"experiments"}, {"studies", "compat.learn2learn"}, {"cli"}, {"*"},
    ],
    "metalearn.datamodules": [{"sources", "store"}, {"episodes"}, {"levels"}, {"*"}],
    "metalearn.inner": [{"ambient"}, {"kernels"}, {"norm"}, {"network"}, {"*"}, {"solvers"}, {"execution"}],
    "metalearn.bilevel": [
        {"*"}, {"solvers"}, {"certificates", "adjoint"}, {"estimators"}, {"hypergradients", "task_problem"},
        {"algorithms", "implicit", "adaptation"}, {"problems"},
    ],
    "metalearn.modules": [{"training"}, {"episodic", "problem_based"}, {"*"}, {"callbacks"}],
}  # fmt: skip
"""For each room the order of what stands in it, left never imports right; ``*`` is every other file, which may import its like.

The room's own ``__init__`` comes last.
"""
ONLY: dict[str, set[str]] = {
    "backbones": {"errors", "checks", "lazy"},
    "metrics": {"intervals"},
    "datamodules": {"errors", "episode", "checks", "docstrings", "progress", "lazy"},
    "reports": {"errors", "checks", "intervals", "inner", "bilevel"},
}
"""Rooms that import nothing of ours but these."""
LIGHTNING = {"modules", "datamodules", "cli", "compat", "studies", "theory", "image_classifier"}
VAGUE = {"found", "told", "given", "each", "one"}
"""Names that say nothing of what they stand for."""
NOT_OURS = {
    "_console": "where rich keeps its console",
    "_forward_hooks": "where torch keeps a layer's hooks",
    "_run_subcommand": "what Lightning's command line runs last",
    "_update_count": "where torchmetrics counts updates",
    "_weight_norm": "torch's fused operator",
}
"""Private names of other libraries, for which there is no public one."""


def unit_of(room: str, name: str) -> str:
    """Where a file stands in a room: the name of a folder or file, ``*`` for one that the order does not name."""
    if name == room:
        return "__init__"
    inside = name.removeprefix(f"{room}.")
    for layer in ORDER[room]:
        for unit in layer:
            if inside == unit or inside.startswith(f"{unit}."):
                return unit
    return "*"


def rank_of(room: str, unit: str) -> int:
    return next((index for index, layer in enumerate(ORDER[room]) if unit in layer), len(ORDER[room]))


@pytest.mark.parametrize("room", ORDER)
def test_left_never_imports_right(room: str) -> None:
    wrong = []
    for name, imported in imports_of_ours().items():
        for other in imported:
            if not all(f"{part}.".startswith(f"{room}.") for part in (name, other)):
                continue
            here, there = unit_of(room, name), unit_of(room, other)
            if here != there and rank_of(room, there) >= rank_of(room, here):
                wrong.append(f"{name} imports {other}")
    assert not wrong


def test_rooms_that_stand_alone() -> None:
    for name, imported in imports_of_ours().items():
        room = unit_of("metalearn", name)
        if room in ONLY:
            assert {unit_of("metalearn", other) for other in imported} <= ONLY[room] | {room}, name


def test_no_circle_of_imports() -> None:
    assert not find_circle(imports_of_ours())


@pytest.mark.parametrize("folder", ["metalearn", "datamodules"])
def test_every_folder_says_what_it_holds(folder: str) -> None:
    folders = {path.parent for path in (ROOT / folder).rglob("*.py")}
    silent = [
        path for path in folders if not (path / "__init__.py").is_file() or not docstring_of(path / "__init__.py")
    ]
    assert not silent


def docstring_of(path: Path) -> str | None:
    return ast.get_docstring(parse(path))


def test_what_a_room_needs_from_outside() -> None:
    for name, path in source_files().items():
        room = unit_of("metalearn", name).split(".")[0] if name != "metalearn" else "*"
        foreign = {imported.split(".")[0] for imported in find_imports(path)}
        assert "lightning" not in foreign or room in LIGHTNING, name
        assert not foreign & {"learn2learn", "higher"} or room == "compat", name


def test_names_say_what_things_are() -> None:
    """Outside comprehensions, whose names stand beside what they go through."""
    vague = [
        f"{path.relative_to(ROOT)}:{line} {name}"
        for path in source_files().values()
        for name, line in find_bindings(parse(path))
        if name in VAGUE
    ]
    assert not vague


@pytest.mark.parametrize(("folder", "most"), [("metalearn", 300), ("datamodules", 300), ("tests", 400)])
def test_no_file_is_long(folder: str, most: int) -> None:
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in (ROOT / folder).rglob("*.py")
    }
    assert {name: length for name, length in lengths.items() if length > most} == {}


def test_tests_reach_into_nothing_private() -> None:
    reached = [
        f"{path.relative_to(ROOT)}:{line} {name}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for name, line in find_private_access(parse(path))
        if name not in NOT_OURS
    ]
    assert not reached
