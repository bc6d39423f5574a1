"""Packages that load a part when it is first asked for. What a package offers stands in its ``__init__.pyi``.

Type checkers and editors read that stub as it is, so each name is written once.
"""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["offer"]


def offer(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Make the ``__getattr__``, ``__dir__`` and ``__all__`` of a package out of its stub.

    Args:
        package: the ``__name__`` of the package. Lines of its stub such as ``from package.file import Name as Name`` say where
            each name stands.

    Returns:
        the three, in this order. Subpackages are attributes, and no part of ``__all__``.
    """
    homes = _read_stub(package)

    def __getattr__(name: str) -> Any:
        if name not in homes:
            raise AttributeError(_describe_miss(package, name, list(homes)))
        home = homes[name]
        value = importlib.import_module(f"{home}.{name}") if home == package else _take(home, name)
        setattr(sys.modules[package], name, value)
        return value

    def __dir__() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes})

    return __getattr__, __dir__, [name for name, home in homes.items() if home != package]


def _read_stub(package: str) -> dict[str, str]:
    """The names that a stub offers, each with the package or file that it is imported from."""
    spec = sys.modules[package].__spec__
    assert spec is not None
    assert spec.origin is not None
    path = Path(spec.origin).with_suffix(".pyi")
    text = spec.loader.get_data(str(path)).decode()  # type: ignore[union-attr]
    return {
        alias.name: str(line.module)
        for line in ast.parse(text, str(path)).body
        if isinstance(line, ast.ImportFrom)
        for alias in line.names
        if alias.asname
    }


def _take(home: str, name: str) -> Any:
    return getattr(importlib.import_module(home), name)


def _describe_miss(package: str, name: str, known: list[str]) -> str:
    line = f"module {package!r} has no attribute {name!r}"
    if name.startswith("__"):
        return line  # Python and its tools ask every module for some of these
    from metalearn.checks import find_nearest

    near = find_nearest(name, known, 1)
    return f"{line}; did you mean {near[0]!r}?" if near else line
