"""The arguments that a checkpoint carries, held against the signature of the class that gets them."""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin

from torch import nn

from metalearn.carried.classes import (
    ADAPTERS,
    DATA_MODULES,
    LAYERS,
    LOSSES,
    NETWORKS,
    RULES,
    Homes,
    find_class,
    is_torch_optimizer,
    short,
)
from metalearn.carried.names import ADD_CONFIG, USE_ANOTHER, class_path
from metalearn.errors import CheckpointError
from metalearn.inner import RULES as RULE_NAMES
from metalearn.inner import Adapter

__all__ = [
    "check_arguments", "check_class", "check_value", "leave_to_user", "signature",
]  # fmt: skip

STEPS = 10_000
MOST = {
    **dict.fromkeys(("inner_steps", "eval_inner_steps", "cg_steps", "linear_steps"), STEPS),
    **dict.fromkeys(("ways", "shots", "queries", "unlabeled", "distractors", "tasks_per_batch", "hidden"), 10_000),
    **dict.fromkeys(("val_tasks", "test_tasks"), 1_000_000),
    "channels": 1_000, "image_size": 1024, "num_workers": 128, "size": 1024, "variants": 100,
}  # fmt: skip
"""The largest whole numbers by the name of the argument."""
MOST_OTHERS = 1_000_000_000
MOST_SEED = (1 << 63) - 1
LONGEST = STEPS
TEXT = 1024
OBJECTS = {nn.Module: NETWORKS, Adapter: ADAPTERS}
"""The closed list for each kind of object that an argument may be."""
DATA = "metalearn.datamodules."
"""Where data modules are from; they are known by that, since Lightning's classes are not imported here."""
EVALUATION_IGNORES = ("outer_optimizer", "outer_scheduler")
"""Evaluating needs no optimiser: those of a newer torch may have arguments that are unknown here."""


class _Unlike(Exception):
    """A value is not of the type that an argument has."""


def check_class(node: object, homes: Mapping[str, tuple[str, ...]], where: str) -> tuple[type[Any], dict[str, Any]]:
    """The class and the unchecked arguments of ``{"class_path": NAME, "init_args": {...}}``, or of the name alone.

    Raises:
        CheckpointError: it is not on the list.
    """
    if isinstance(node, str):
        node = {"class_path": node}
    if not isinstance(node, Mapping):
        raise CheckpointError(f"{where} is {short(node)}, but it must say a class_path; {USE_ANOTHER}")
    spelled = node.get("class_path")
    kind = find_class(spelled, homes) if isinstance(spelled, str) else None
    if kind is None or not isinstance(kind, type):
        raise CheckpointError(
            f"{where} names the class {_plain_text(spelled)}, which is not built from a file unasked; {ADD_CONFIG}"
        )
    arguments = {} if node.get("init_args") is None else node["init_args"]
    extra = [key for key in node if key not in ("class_path", "init_args")]
    if extra or not isinstance(arguments, Mapping):
        what = f"has {short(extra[0])}" if extra else f"has init_args {short(arguments)}"
        raise CheckpointError(f"{where} {what}, but takes a class_path and init_args alone; {USE_ANOTHER}")
    return kind, dict(arguments)


def check_arguments(kind: type[Any], arguments: Mapping[str, Any], where: str, strict: bool = True) -> dict[str, Any]:
    """The arguments as plain values that the class can be given; classes among them are still names.

    Args:
        kind: a class of ours, or of torchvision.
        arguments: of its constructor, by name.
        where: how messages call it.
        strict: refuse what is not in the signature; otherwise leave it alone.

    Raises:
        CheckpointError: one is unknown, of another type, out of bounds, or names what is not on a closed list.
    """
    hints = signature(kind)
    taken: dict[str, Any] = {}
    for name, value in arguments.items():
        inside = f"{where}.{_plain_text(name)}"
        if name not in hints:
            if strict:
                raise CheckpointError(
                    f"{inside} is given, but {kind.__name__} here has no such argument; {USE_ANOTHER}"
                )
            taken[name] = value
        elif name in EVALUATION_IGNORES:
            _check_ignored(value, inside)
        else:
            taken[name] = check_value(value, hints[name], name, inside)
    return taken


def leave_to_user(kind: type[Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments without what writes where a file says, or downloads."""
    left = {name: value for name, value in arguments.items() if name != "cache_dir"}
    return {**left, "download": False} if "download" in signature(kind) else left


def signature(kind: type[Any]) -> dict[str, Any]:
    """The arguments of a constructor with their types; of a user's subclass those that our class has, too."""
    hints: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        if "__init__" in vars(base) and base.__module__.split(".")[0] in ("metalearn", "torchvision", "torch"):
            init = vars(base)["__init__"]
            known = typing.get_type_hints(init)
            named = inspect.signature(init).parameters.values()
            plain = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
            hints = {
                parameter.name: known.get(parameter.name, Any)
                for parameter in named
                if parameter.kind in plain and parameter.name != "self"
            }
    return hints


Parameter = inspect.Parameter


def check_value(value: Any, hint: Any, name: str, where: str) -> Any:
    """A value as plain types, if it is of the type of an argument and within bounds.

    Raises:
        CheckpointError: it is not.
    """
    try:
        if name == "inner_optimizer":
            return _rule(value, where)
        if name == "loss" and isinstance(value, Mapping):
            return _object(value, LOSSES, where)
        return _take(value, hint, name, where)
    except _Unlike as error:
        raise CheckpointError(f"{where} is {short(value)}, which is no value that it takes; {USE_ANOTHER}") from error


def _take(value: Any, hint: Any, name: str, where: str) -> Any:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        for part in inner:
            try:
                return _take(value, part, name, where)
            except _Unlike:
                continue
        raise _Unlike
    if hint is Any:
        return _scalar(value, name, where)
    if hint in (None, type(None), bool, int, float, str):
        return _scalar(value, name, where, hint)
    if origin is Literal:
        if not any(type(value) is type(choice) and value == choice for choice in inner):
            raise _Unlike
        return value
    if origin in (list, tuple, Sequence):
        return _sequence(value, origin, inner, name, where)
    if origin in (dict, Mapping):
        return _mapping(value, inner, name, where)
    if origin is type or (origin is Callable and inner[-1:] == (nn.Module,)):
        return _layer(value, where)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _options(value, hint, where)
    homes = _find_list(hint) if isinstance(hint, type) else None
    if homes is None or not isinstance(value, (Mapping, str)):
        raise _Unlike
    return _object(value, homes, where)


def _find_list(hint: type[Any]) -> Homes | None:
    """The closed list of the objects of a type."""
    if hint.__module__.startswith(DATA):
        return DATA_MODULES
    return next((homes for base, homes in OBJECTS.items() if issubclass(hint, base)), None)


def _scalar(value: Any, name: str, where: str, hint: Any = None) -> Any:
    if value is None and hint in (None, type(None)):
        return None
    if isinstance(value, bool) and hint in (None, bool):
        return value
    if isinstance(value, int) and not isinstance(value, bool) and hint in (None, int, float):
        most = MOST_SEED if "seed" in name else MOST.get(name, MOST_OTHERS)
        if not -most <= value <= most:
            raise CheckpointError(f"{where} is {_number(value)}, more than {most:,}, which no run needs; {USE_ANOTHER}")
        return value
    if isinstance(value, float) and hint in (None, float):
        if not math.isfinite(value):
            raise CheckpointError(f"{where} is {value}, but it must be finite; {USE_ANOTHER}")
        return value
    if isinstance(value, str) and hint in (None, str):
        odd = hint is None and re.search(r"[{}\[\]!&*|>]|: |^@", value)  # what the parser would take for more than text
        if len(value) > TEXT or not value.isprintable() or odd:
            raise CheckpointError(f"{where} is {short(value)}, which is no plain text; {USE_ANOTHER}")
        return value
    raise _Unlike


def _sequence(value: Any, origin: Any, inner: tuple[Any, ...], name: str, where: str) -> list[Any]:
    if not isinstance(value, (list, tuple)):
        raise _Unlike
    _check_length(value, where)
    if origin is tuple and inner[-1:] != (Ellipsis,):
        if len(value) != len(inner):
            raise _Unlike
        return [_take(entry, hint, name, where) for entry, hint in zip(value, inner, strict=True)]
    return [_take(entry, inner[0], name, f"{where}[{number}]") for number, entry in enumerate(value)]


def _mapping(value: Any, inner: tuple[Any, ...], name: str, where: str) -> dict[Any, Any]:
    if not isinstance(value, Mapping):
        raise _Unlike
    _check_length(value, where)
    keys = [_take(key, inner[0], name, where) for key in value]
    entries = [_take(entry, inner[1], name, f"{where}.{_plain_text(key)}") for key, entry in value.items()]
    return dict(zip(keys, entries, strict=True))


def _check_length(value: Any, where: str) -> None:
    if len(value) > LONGEST:
        raise CheckpointError(
            f"{where} has {len(value):,} entries, more than {LONGEST:,}, which no run needs; {USE_ANOTHER}"
        )


def _layer(value: Any, where: str) -> Any:
    """A class that a network takes as an argument, by its full name, with arguments of its own or without; never a function."""
    if not isinstance(value, (str, Mapping)):
        raise _Unlike
    kind, arguments = check_class(value, LAYERS, where)
    if isinstance(value, str):
        return class_path(kind)
    # a newer torch has written all arguments that it knows
    known = {name: argument for name, argument in arguments.items() if name in signature(kind)}
    return {"class_path": class_path(kind), "init_args": check_arguments(kind, known, where)}


def _object(value: Any, homes: Mapping[str, tuple[str, ...]], where: str) -> dict[str, Any]:
    kind, arguments = check_class(value, homes, where)
    taken = check_arguments(kind, arguments, where)
    return {"class_path": class_path(kind), "init_args": leave_to_user(kind, taken)}


def _options(value: Any, kind: type[Any], where: str) -> dict[str, Any]:
    """The fields of a dataclass; transforms of training images are left out, since evaluation does not augment."""
    if not isinstance(value, Mapping):
        raise _Unlike
    return check_arguments(kind, {name: argument for name, argument in value.items() if name != "augment"}, where)


def _rule(value: Any, where: str) -> Any:
    if isinstance(value, str) and (value in RULE_NAMES or is_torch_optimizer(value)):
        return value
    if isinstance(value, Mapping) and value.get("class_path") == "HigherRule":
        inside = value.get("init_args")
        if isinstance(inside, Mapping) and is_torch_optimizer(inside.get("optimizer")):
            return inside["optimizer"]
    return _object(value, RULES, where)


def _check_ignored(value: Any, where: str) -> None:
    """What makes an optimiser is left out, but must be torch's."""
    named = value.get("class_path") if isinstance(value, Mapping) else value
    if value is not None and named != "cosine" and not is_torch_optimizer(named):
        raise CheckpointError(
            f"{where} names the class {_plain_text(named)}, which is not built from a file unasked; {ADD_CONFIG}"
        )


def _number(value: int) -> str:
    return f"{value:,}" if abs(value) < 1 << 64 else f"a number of {value.bit_length()} bits"


def _plain_text(value: object) -> str:
    text = str(value)
    return text if isinstance(value, str) and text.isprintable() and 0 < len(text) <= 80 else short(value)
