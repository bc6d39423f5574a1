"""What the tests of the house read from the source: who imports whom, which names are bound, how long things are."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
OF_NAMED_TUPLES = {"_asdict", "_fields", "_make", "_replace"}
"""Public, whatever they look like."""


@cache
def source_files() -> dict[str, Path]:
    """Every file of the package by its dotted name, that of a folder for its ``__init__``."""
    files = {}
    for top, name in ((ROOT / "metalearn", "metalearn"), (ROOT / "datamodules", "metalearn.datamodules")):
        for path in sorted(top.rglob("*.py")):
            parts = [name, *path.relative_to(top).with_suffix("").parts]
            files[".".join(parts).removesuffix(".__init__")] = path
    return files


@cache
def parse(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text())


def find_imports(path: Path) -> set[str]:
    """Everything that a file imports by its dotted name: at its top, within functions, and later, as its stub says."""
    names = set()
    stub = path.with_suffix(".pyi")
    nodes = [*ast.walk(parse(path)), *(ast.walk(parse(stub)) if stub.is_file() else ())]
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            for alias in node.names:
                inside = f"{node.module}.{alias.name}"
                names.add(inside if inside in source_files() else str(node.module))
    return names


@cache
def imports_of_ours() -> dict[str, set[str]]:
    """For every file the files of ours that it imports."""
    known = source_files()
    return {name: (find_imports(path) & known.keys()) - {name} for name, path in known.items()}


def find_circle(graph: dict[str, set[str]]) -> list[str]:
    """A circle of the graph, or nothing."""
    state: dict[str, int] = {}

    def visit(name: str, trail: list[str]) -> list[str]:
        state[name] = 1
        for other in sorted(graph.get(name, ())):
            if state.get(other) == 1:
                return [*trail[trail.index(other) :], other]
            if other not in state and (circle := visit(other, [*trail, other])):
                return circle
        state[name] = 2
        return []

    for name in sorted(graph):
        if name not in state and (circle := visit(name, [name])):
            return circle
    return []


def find_bindings(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Every name that a file binds outside comprehensions, with its line: variables, parameters, attributes, functions."""
    local = {
        id(node) for part in ast.walk(tree) if isinstance(part, ast.comprehension) for node in ast.walk(part.target)
    }
    for node in ast.walk(tree):
        if id(node) in local:
            continue
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)) or (
            isinstance(node, (ast.MatchAs, ast.MatchStar)) and node.name
        ):
            yield node.name, node.lineno


def find_private_access(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Every private name of another object that a file reaches into, with its line; those of ``self`` and ``cls`` aside."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and _is_private(node.attr):
            own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            of_super = isinstance(node.value, ast.Call) and getattr(node.value.func, "id", "") == "super"
            if not own and not of_super:
                yield node.attr, node.lineno
        elif isinstance(node, ast.ImportFrom) and str(node.module).startswith("metalearn"):
            for alias in node.names:
                if _is_private(alias.name):
                    yield alias.name, node.lineno
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("setattr", "delattr"):
            for text in node.args[:2]:
                if isinstance(text, ast.Constant) and isinstance(text.value, str):
                    last = text.value.rpartition(".")[2]
                    if _is_private(last):
                        yield last, node.lineno


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in OF_NAMED_TUPLES
