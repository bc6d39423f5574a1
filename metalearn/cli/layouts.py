"""The help screens of parsers: of a class, its own arguments first; of a command, a section for each group."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from metalearn.cli.help import describe_action, find_checks, write_plain
from metalearn.cli.screen import Screen, Section

__all__ = ["list_options", "show_class", "show_parser"]

GROUPS = {
    "Network, loss and outer loop": ("backbone", "loss", "outer_optimizer", "outer_scheduler", "metrics"),
    "Speed and memory": ("execution", "memory", "support_chunk", "tasks_at_once", "compile", "kernels"),
    "Tasks": ("ways", "shots", "queries", "options"),
    "Batches": ("tasks_per_batch", "train_tasks", "val_tasks", "test_tasks", "seed", "train_seed", "num_workers"),
    "Files": ("image_size", "download", "cache_dir"),
}
"""Arguments that many classes share, which stand behind those of a class's own."""


def show_class(kind: type, actions: Sequence[argparse.Action], key: str) -> Screen:
    """The help of a class: what it is, and its arguments.

    Args:
        kind: the class.
        actions: its arguments.
        key: the option that takes the class, such as ``"model"``.
    """
    options = {action.dest.removeprefix(f"{key}."): action for action in list_options(actions)}
    own = _own_names(kind)
    first = [name for name in options if not any(name in names for names in GROUPS.values())]
    first = [name for name in own if name in first] + [name for name in first if name not in own]
    groups = {
        kind.__name__: first,
        **{title: [name for name in names if name in options] for title, names in GROUPS.items()},
    }
    checks = find_checks(kind)
    sections = [
        Section(title, [describe_action(options[name], f"--{key}.", checks.get(name)) for name in names])
        for title, names in groups.items()
        if names
    ]
    summary = write_plain(" ".join((kind.__doc__ or "").strip().split("\n\n")[0].split()))
    classes = [name for name, action in options.items() if _takes_class(action)]
    notes = [f"Each is an option: --{key}.NAME VALUE. In a configuration it stands below init_args."]
    if classes:
        notes.append(f"The arguments of a class: --{key}.{classes[0]}.help CLASS.")
    return Screen("", summary, sections, notes)


def show_parser(parser: argparse.ArgumentParser, usage: str, groups: Iterable[Any]) -> Screen:
    """The help of any other parser.

    Args:
        parser: the parser.
        usage: how the command is called.
        groups: its groups of options.
    """
    sections = []
    for group in groups:
        options = [describe_action(action) for action in list_options(group._group_actions)]
        if options:
            sections.append(Section(write_plain(str(group.title)).rstrip(".:").capitalize(), options))
    return Screen(usage, write_plain(parser.description or ""), sections, [parser.epilog] if parser.epilog else [])


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


def _own_names(kind: type) -> list[str]:
    """The arguments that a class has for itself, before those that it shares."""
    options_class = getattr(kind, "options_class", None)
    if options_class is None or not is_dataclass(options_class):
        return []
    own = vars(options_class).get("__annotations__", {})
    return [field.name for field in fields(options_class) if field.name in own]


def _takes_class(action: argparse.Action) -> bool:
    return "such as" in describe_action(action).text
