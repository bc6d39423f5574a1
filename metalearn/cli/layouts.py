"""The help screens of parsers: of a class, its own arguments first; of a command, a section for each group."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from lightning import LightningDataModule, LightningModule

from metalearn.cli.help import describe_action, find_checks, summarize, takes_class, write_plain
from metalearn.cli.screen import Option, Screen, Section
from metalearn.cli.type_words import find_ours

__all__ = ["list_options", "show_class", "show_parser"]

GROUPS: dict[type, dict[str, tuple[str, ...]]] = {
    LightningModule: {
        "Network, loss and outer loop": ("backbone", "loss", "task", "outer_optimizer", "outer_scheduler", "metrics"),
        "Speed and memory": (
            "execution",
            "memory",
            "support_chunk",
            "tasks_at_once",
            "memory_limit",
            "compile",
            "kernels",
        ),
    },
    LightningDataModule: {
        "Tasks": ("ways", "shots", "queries", "options"),
        "Batches": ("tasks_per_batch", "train_tasks", "val_tasks", "test_tasks", "seed", "train_seed", "num_workers"),
        "Files": ("image_size", "download", "cache_dir"),
    },
}
"""Arguments that many classes share, which stand behind those of a class's own."""
TITLES = {"positional arguments": "Arguments", "options": "Options"}
"""What argparse calls its groups."""


def show_class(kind: type, actions: Sequence[argparse.Action], key: str) -> Screen:
    """The help of a class: what it is, and its arguments; of a class to be derived from, which there are.

    Args:
        kind: the class.
        actions: its arguments.
        key: the option that takes the class, such as ``"model"``.
    """
    if kind in GROUPS:
        return _show_choice(kind, key)
    options = {action.dest.removeprefix(f"{key}."): action for action in list_options(actions)}
    checks = find_checks(kind)
    sections = [
        Section(title, [describe_action(options[name], f"--{key}.", checks.get(name)) for name in names])
        for title, names in _group(kind, list(options)).items()
        if names
    ]
    option = _find_option(key)
    notes = [f"Write {option}.NAME VALUE; in a configuration NAME stands below init_args."]
    classes = [name for name, action in options.items() if takes_class(action)]
    if classes:
        notes.append(f"{option}.{classes[0]}.help CLASS lists the arguments of a class.")
    return Screen("", summarize(kind), sections, notes)


def show_parser(parser: argparse.ArgumentParser, groups: Iterable[Any]) -> Screen:
    """The help of any other parser.

    Args:
        parser: the parser.
        groups: its groups of options.
    """
    sections, intro = [], write_plain(parser.description or "")
    for group in groups:
        actions = list_options(group._group_actions)
        title = TITLES.get(str(group.title), "")
        if actions and not title:  # what a function's docstring begins with
            intro, title = write_plain(str(group.title)), "Options"
        sections += [Section(title, [describe_action(action) for action in actions])] if actions else []
    places = [action.dest.upper() for action in parser._actions if not action.option_strings]
    notes = [parser.epilog] if parser.epilog else []
    return Screen(" ".join([parser.prog, *places, "[options]"]), intro, _join(sections), notes)


def list_options(actions: Iterable[argparse.Action]) -> list[argparse.Action]:
    """The options that a user may give, without those that show help."""
    return [
        action
        for action in actions
        if action.help != argparse.SUPPRESS
        and action.dest != "help"
        and not action.dest.endswith(".help")
        and type(action).__name__ != "_ActionConfigLoad"
    ]


def _join(sections: Sequence[Section]) -> list[Section]:
    """Sections of one title as one, in which the longest stands first."""
    joined: dict[str, list[Any]] = {}
    for section in sorted(sections, key=lambda section: len(section.options), reverse=True):
        joined.setdefault(section.title, []).extend(section.options)
    titles = dict.fromkeys(section.title for section in sections)
    return [Section(title, joined[title]) for title in titles]


def _own_names(kind: type) -> list[str]:
    """The arguments that a class has for itself, before those that it shares."""
    options_class = getattr(kind, "options_class", None)
    if options_class is None or not is_dataclass(options_class):
        return []
    own = vars(options_class).get("__annotations__", {})
    return [field.name for field in fields(options_class) if field.name in own]


def _group(kind: type, names: Sequence[str]) -> dict[str, list[str]]:
    """The arguments of a class by the sections that show them, its own ones first."""
    shared: dict[str, tuple[str, ...]] = next((groups for base, groups in GROUPS.items() if issubclass(kind, base)), {})
    own = _own_names(kind)
    rest = [name for name in names if not any(name in group for group in shared.values())]
    first = [name for name in own if name in rest] + [name for name in rest if name not in own]
    return {
        kind.__name__: first,
        **{title: [name for name in group if name in names] for title, group in shared.items()},
    }


def _show_choice(kind: type, key: str) -> Screen:
    """The classes of a kind, with what each is."""
    texts = {other.__name__: summarize(other) for other in find_ours([kind])}
    notes = [
        f"{_find_option(key)}.help CLASS lists the arguments of one of them, or of a class of yours by its full name."
    ]
    return Screen("", "", [Section("Classes", [Option(name, text) for name, text in sorted(texts.items())])], notes)


def _find_option(key: str) -> str:
    """The option of a class as it was typed: a parser within a class knows its last name alone."""
    typed = (
        word.split("=")[0].removesuffix(".help") for word in sys.argv if word.split("=")[0].endswith(f"{key}.help")
    )
    return next(typed, f"--{key}")
