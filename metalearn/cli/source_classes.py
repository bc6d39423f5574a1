"""The classes that a room offers, read from their source: their first sentences and arguments, without importing them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

__all__ = ["SourceClass", "find_classes"]

ROLE = re.compile(r":[\w:]+:`(~?)(?:[^`<]*<)?([\w.]+)>?`")


@dataclass(frozen=True)
class SourceClass:
    """A class as its source says it.

    Attributes:
        name: of the class.
        text: the first sentence of its docstring, without markup.
        arguments: the names of its constructor's arguments; a base's where it has no constructor of its own.
    """

    name: str
    text: str
    arguments: tuple[str, ...]


def find_classes(room: str) -> list[SourceClass]:
    """The classes in the files of a room, of those that the room's ``__init__.pyi`` offers.

    Args:
        room: the dotted name of a package, such as ``"metalearn.modules"``.
    """
    stub = Path(str(resources.files(room))) / "__init__.pyi"
    offered = [
        (str(line.module), alias.name)
        for line in ast.parse(stub.read_text(encoding="utf-8")).body
        if isinstance(line, ast.ImportFrom)
        for alias in line.names
    ]
    direct = [(module, name) for module, name in offered if "." not in module.removeprefix(f"{room}.")]
    return [_describe(module, name) for module, name in direct]


def _describe(module: str, name: str) -> SourceClass:
    node = _find(module, name)
    assert node is not None
    first = (ast.get_docstring(node) or "").split("\n\n")[0].replace("\n", " ")
    return SourceClass(name, strip_markup(first), tuple(dict.fromkeys(_list_arguments(module, node))))


def strip_markup(text: str) -> str:
    """A docstring's sentence as it is read on a screen."""
    text = ROLE.sub(lambda match: match[2].rpartition(".")[2] if match[1] else match[2], text)
    return text.replace("``", "").replace("`", "").replace(r"\ ", "")


def _list_arguments(module: str, node: ast.ClassDef) -> Iterator[str]:
    for part in node.body:
        if isinstance(part, ast.FunctionDef) and part.name == "__init__":
            arguments = part.args
            yield from (argument.arg for argument in (*arguments.args, *arguments.kwonlyargs) if argument.arg != "self")
            return
    for base in node.bases:
        for home, name in _resolve(module, base):
            other = _find(home, name)
            if other is not None:
                yield from _list_arguments(home, other)


def _resolve(module: str, base: ast.expr) -> Iterator[tuple[str, str]]:
    """Where a base class stands: in the same file, or where that imports it from."""
    if not isinstance(base, ast.Name):
        return
    if _find(module, base.id) is not None:
        yield module, base.id
    for line in _parse(module).body:
        if isinstance(line, ast.ImportFrom) and str(line.module).startswith("metalearn"):
            yield from ((str(line.module), alias.name) for alias in line.names if alias.name == base.id)


def _find(module: str, name: str) -> ast.ClassDef | None:
    for node in _parse(module).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return node
    return None


@cache
def _parse(module: str) -> ast.Module:
    room, _, file = module.rpartition(".")
    path = Path(str(resources.files(room))) / f"{file}.py"
    return ast.parse(path.read_text(encoding="utf-8"), str(path))
