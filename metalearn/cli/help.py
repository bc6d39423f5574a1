"""Help of an option: what it does in plain text, what it takes in plain words, and its default."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn

from metalearn.cli.screen import Option
from metalearn.cli.type_words import describe_parts, find_classes, list_names

__all__ = ["describe_action", "find_checks", "read_bounds", "summarize", "takes_class", "write_plain"]

NETWORKS = ("Conv4", "MLP", "ResNet12")
"""Networks of ours that stand for all."""
MOST_NAMES = 3
"""Names of foreign classes that stand for all."""
FAMILIAR = ("Adam", "SGD", "AdamW", "CosineAnnealingLR", "StepLR", "CSVLogger", "TensorBoardLogger", "EarlyStopping")
"""Foreign classes that come first."""
MODULE = re.compile(r":mod:`~?([\w.]+)`")
ROLE = re.compile(r":\w+:`~?(?:[\w.]+\.)?(\w+)(?:<[^>`]*>)?`")
"""A reference in a docstring, such as to a class; of a module the whole name is needed."""
CUT = re.compile(r"(?<=\.) [A-Z][^.]* (?:a|and|is|of|the|to|your)$")
"""A last sentence that a sentence cannot end like."""
DEFAULT = re.compile(r" Default: (?:os\.getcwd\(\)|\S+$)\.?| \(default: (?:[^()]|\([^()]*\))*\)")
"""What torch and Lightning say of a default, which is shown anyhow."""
CLASS = re.compile(r"<class '(?:[\w.]+\.)?(\w+)'>")
SIGNS = {"least": ">=", "above": ">", "most": "<=", "below": "<"}
SELF_EVIDENT = ("text", "true or false", "a mapping", "a Path", "a function by its full name")
"""Kinds that an option's text or default shows."""
LARGE = 10_000
"""A bound from here on only keeps slips out, and is not shown."""


def describe_action(action: argparse.Action, prefix: str = "", check: Any = None) -> Option:
    """An option of a parser as a line of a help screen.

    Args:
        action: the option.
        prefix: is left out of its name.
        check: of its value, from which its bounds are read.
    """
    hint = getattr(action, "_typehint", action.type)
    name = next((name for name in action.option_strings if not name.endswith("+")), action.dest)
    text = " ".join(str(action.help or "").split())
    text = write_plain(text[:1].upper() + text[1:])  # which leaves a formula at the beginning as it is
    names = _choose_classes(hint)
    facts = [_describe_kind(action, hint, text, read_bounds(check), bool(names)), _describe_default(action)]
    facts += [f"such as {', '.join(names)}"] if names else []
    shown = "; ".join(fact for fact in facts if fact)
    name = name.removeprefix(prefix) + _find_metavar(action)
    return Option(name, f"{text} [{shown}]".strip() if shown else text)


def takes_class(action: argparse.Action) -> bool:
    """Whether an option's value is a class that has a help of its own."""
    return bool(_choose_classes(getattr(action, "_typehint", action.type)))


def read_bounds(check: Any) -> str:
    """The bounds that a check of a number holds, such as ``"> 0"``; ``""`` for none that are known."""
    bounds: dict[str, Any] = {}
    while isinstance(check, partial):
        bounds = {**check.keywords, **bounds}
        inner = [value for value in check.args if isinstance(value, partial)]
        check = inner[0] if inner else check.func
    shown = [f"{sign} {bounds[name]:g}" for name, sign in SIGNS.items() if _is_shown(bounds.get(name))]
    return " and ".join(shown)


def find_checks(kind: type) -> Mapping[str, Callable[..., Any]]:
    """The checks of a class's arguments by their names, where the class declares them."""
    declared = getattr(kind.__init__, "checks", {})  # type: ignore[misc]
    fields = getattr(getattr(kind, "options_class", None), "__dataclass_fields__", {})
    return {**declared, **{name: field.metadata.get("check") for name, field in fields.items()}}


def write_plain(text: str) -> str:
    """A text without the marks of docstrings, and without a sentence whose end stands on the docstring's next line."""
    text = CLASS.sub(r"\1", ROLE.sub(r"\1", MODULE.sub(r"\1", text))).replace("``", "").replace("`", "")
    return DEFAULT.sub("", CUT.sub("", text))


def summarize(kind: type) -> str:
    """The first paragraph of a class's docstring, in plain text; its name where there is none."""
    paragraph = (vars(kind).get("__doc__") or "").strip().split("\n\n")[0]
    return write_plain(" ".join(paragraph.split())) or kind.__name__


def _is_shown(bound: Any) -> bool:
    return isinstance(bound, (int, float)) and bound < LARGE


def _describe_kind(action: argparse.Action, hint: Any, text: str, bounds: str, has_names: bool) -> str:
    """What an option takes, in words; ``""`` where its text or the names of classes say so already."""
    if action.choices is not None and not isinstance(action.choices, dict):
        parts = [repr(str(choice)) for choice in action.choices]
        parts = [f"one of {', '.join(parts)}"]
    else:
        parts = describe_parts(hint)
    kept = []
    for part in parts:
        choices = re.findall("'([^']*)'", part)
        is_class = re.match(r"(?:a list of )?an? (?:class of )?[A-Z]", part)
        is_said = bool(choices) and all(choice in text for choice in choices)
        if not is_said and not (is_class and has_names) and part not in SELF_EVIDENT:
            kept.append(re.sub(r"^(?:an?|one of) ", "", part).replace("'", ""))
    words = " or ".join(kept)
    return re.sub(r"(?:whole )?number\b", rf"\g<0> {bounds}", words, count=1) if bounds else words


def _describe_default(action: argparse.Action) -> str:
    if getattr(action, "required", False):
        return "required"
    if action.default == argparse.SUPPRESS or action.default is None:
        return ""
    return f"default {_write_value(action.default)}"


def _write_value(value: Any) -> str:
    """A value as a command line takes it; of a class its name and arguments."""
    if isinstance(value, bool):
        return str(value).lower()
    value = vars(value) if hasattr(value, "__dict__") and "class_path" in vars(value) else value
    if isinstance(value, dict) and "class_path" in value:
        arguments = value.get("init_args") or {}
        inside = ", ".join(f"{name}={_write_value(argument)}" for name, argument in dict(arguments).items())
        return f"{value['class_path'].rpartition('.')[2]}({inside})"
    return str(value) or "''"


def _find_metavar(action: argparse.Action) -> str:
    """The name of a value that a parser of argparse's own has for it; those that jsonargparse makes up say nothing."""
    return f" {action.metavar}" if type(action).__name__ == "_StoreAction" and action.metavar else ""


def _choose_classes(hint: Any) -> list[str]:
    """Our classes of a type; where there are none, some of torch's and Lightning's."""
    classes = find_classes(hint)
    if nn.Module in classes and hint is not nn.Module:  # such as a loss, which no backbone can be
        return []
    ours, others = list_names(classes)
    if nn.Module in classes:  # a few stand for all networks, which the help of fit lists
        ours = [name for name in NETWORKS if name in ours]
    return ours or sorted(others, key=lambda name: FAMILIAR.index(name) if name in FAMILIAR else 99)[:MOST_NAMES]
