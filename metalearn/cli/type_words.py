"""Types in words: what an option takes, and the classes that it may be."""

from __future__ import annotations

import collections.abc
import inspect
import sys
import types
import typing
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from typing import Any, Union, get_args, get_origin

from torch import Tensor, nn

__all__ = ["describe_parts", "describe_type", "find_classes", "find_ours", "import_classes", "list_names"]

PLAIN: dict[Any, str] = {
    int: "a whole number", float: "a number", bool: "true or false", str: "text", list: "a list", tuple: "a list",
    dict: "a mapping", type(None): "", Any: "",
}  # fmt: skip
LISTS = (list, tuple, set, collections.abc.Sequence, collections.abc.Iterable)
MAPPINGS = (dict, collections.abc.Mapping)
ROOMS = ("metalearn", "metalearn.backbones", "metalearn.datamodules", "metalearn.inner")
"""Whose public classes a command line knows by their bare names."""
OTHERS = ("lightning", "torch", "torchvision")
BASES = ("MetaModule",)
"""Public classes to be derived from, whose constructors take what no command line can make."""


def describe_type(hint: Any) -> str:
    """A type hint in words, such as ``"a whole number or a list of whole numbers"``; ``""`` for what says nothing."""
    return " or ".join(describe_parts(hint))


def describe_parts(hint: Any) -> list[str]:
    """Each kind of value that a type takes, in words."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        parts = list(dict.fromkeys(part for each in args for part in describe_parts(each)))
        return [part for part in parts if not (part == "a whole number" and "a number" in parts)]
    if origin is typing.Literal:
        return [
            f"{'one of ' if len(args) > 2 else ''}{(', ' if len(args) > 2 else ' or ').join(repr(each) for each in args)}"
        ]
    if origin in LISTS or hint in LISTS:
        inner = describe_parts(args[0]) if args else []
        return [f"a list of {_plural(' or '.join(inner))}" if inner else "a list"]
    if origin in MAPPINGS or hint in MAPPINGS:
        return ["a mapping"]
    if origin is not None and origin in (Callable, collections.abc.Callable):
        return [f"a class of {each.__name__}" for each in find_classes(hint)] or ["a function by its full name"]
    if hint in PLAIN:
        return [PLAIN[hint]] if PLAIN[hint] else []
    if inspect.isclass(hint) and hint is not Tensor:
        name = hint.__name__
        return [f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"]
    return []


@cache
def import_classes() -> None:
    """Import every class that a command line knows by its bare name: a parser finds those that exist."""
    for room in map(import_module, ROOMS):
        for name in room.__all__:
            getattr(room, name)


def find_classes(hint: Any) -> list[type]:
    """The classes that a value of a type may be made of: those named in it, and what callables return."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is not None and origin in (Callable, collections.abc.Callable):
        return find_classes(args[1]) if len(args) == 2 else []
    if origin is typing.Literal:
        return []
    if args:
        return [made for arg in args for made in find_classes(arg)]
    is_own = inspect.isclass(hint) and hint.__module__ not in ("builtins", "datetime", "typing", "pathlib")
    return [hint] if is_own and hint is not Tensor else []


def list_names(bases: Sequence[type]) -> tuple[list[str], list[str]]:
    """The names under which a command line knows the classes below these: ours, and torch's and Lightning's, both sorted."""
    ours = {kind.__name__ for kind in find_ours(bases)}
    others = {kind.__name__ for kind in _find_below(bases) if str(kind.__module__).split(".")[0] in OTHERS}
    return sorted(ours), sorted(others - ours)


def find_ours(bases: Sequence[type]) -> list[type]:
    """Our public classes below these."""
    names = ("metalearn.backbones",) if nn.Module in bases else ROOMS
    rooms = [sys.modules.get(room) for room in names]
    below = [kind for kind in _find_below(bases) if _is_ours(kind)]
    return [kind for kind in below if any(getattr(room, kind.__name__, None) is kind for room in rooms)]


def _find_below(bases: Sequence[type]) -> list[type]:
    """The public classes that derive from these, without those that are there to be derived from."""
    below: list[type] = []
    waiting, seen = list(bases), set(bases)
    while waiting:
        derived: list[type] = type.__subclasses__(waiting.pop())
        kinds = [kind for kind in derived if kind not in seen]
        seen.update(kinds)
        waiting += kinds
        below += [kind for kind in kinds if not kind.__name__.startswith("_") and not _is_base(kind)]
    return below


def _is_ours(kind: type) -> bool:
    """Whether a class is of this package; one that C code makes may have no module."""
    return str(kind.__module__).startswith("metalearn.")


def _is_base(kind: type) -> bool:
    """Whether a class of ours is there to be derived from: it says of a method that subclasses must have it."""
    methods = [each for owner in kind.__mro__ if _is_ours(owner) for each in vars(owner)]
    codes = (getattr(getattr(kind, name), "__code__", None) for name in methods)
    return (
        kind.__name__ in BASES
        or inspect.isabstract(kind)
        or any(code and "NotImplementedError" in code.co_names for code in codes)
    )


def _plural(words: str) -> str:
    return {"a whole number": "whole numbers", "a number": "numbers", "text": "texts"}.get(words, words)
