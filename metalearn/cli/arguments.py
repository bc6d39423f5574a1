"""From what a user types to what LightningCLI parses: configs by name, the default run, a checkpoint's own config."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

import yaml

from metalearn.carried import carried_config, count_elements, read_checkpoint, read_entry
from metalearn.checks import find_nearest
from metalearn.cli.commands import LIGHTNING_COMMANDS
from metalearn.cli.config_files import check_config, check_value, read_config
from metalearn.cli.repeats import warn_of_repeats
from metalearn.cli.run_files import NAMES, name_run
from metalearn.cli.shipped import DEFAULT_CONFIG, config_path
from metalearn.cli.starting import naming_start
from metalearn.errors import ConfigError

__all__ = ["option", "prepare_arguments"]

MAY_BE_FILES = ("--model", "--data", "--trainer")
"""Options besides ``--config`` whose value may be the path of a YAML file."""


def option(args: Sequence[str], name: str) -> str | None:
    """The value of ``--name VALUE`` or ``--name=VALUE``; the last one counts."""
    value = None
    for index, arg in enumerate(args):
        if arg == name and index + 1 < len(args):
            value = args[index + 1]
        elif arg.startswith(name + "="):
            value = arg.split("=", 1)[1]
    return value


def prepare_arguments(args: Sequence[str], scratch: Path) -> tuple[list[str], str]:
    """Resolve config names, and supply the config that is left unsaid.

    ``fit`` without a config or a model runs :data:`DEFAULT_CONFIG`; the other subcommands take the config that the
    checkpoint carries. So do all where a checkpoint is started from; a model or data of the command line change it.

    Args:
        args: what follows ``python -m metalearn``.
        scratch: a folder for a config that is read out of a checkpoint.

    Returns:
        the arguments for LightningCLI, and the name of the run.

    Raises:
        ConfigError: a config cannot be used, or nothing says what is to be evaluated.
    """
    if args[0] not in LIGHTNING_COMMANDS:
        _check_config_before_command(args)
    resolved, name = _resolve_configs(args)
    command = next((arg for arg in resolved if arg in LIGHTNING_COMMANDS), None)
    asks_help = any(arg.split("=")[0].endswith((".help", "--print_config")) for arg in resolved)
    start = option(resolved, "--start_from")
    whole = ("--config", "-c") if start is not None else ("--config", "-c", "--model", "--data")
    says_what = any(arg.split("=")[0] in whole for arg in resolved)
    if command is None or says_what or (asks_help and command != "fit"):
        return resolved, name
    where = resolved.index(command) + 1
    if command == "fit" and start is None:
        return [*resolved[:where], "--config", str(config_path(DEFAULT_CONFIG)), *resolved[where:]], DEFAULT_CONFIG
    checkpoint = option(resolved, "--ckpt_path") if start is None else start
    if checkpoint is None:
        for word in (arg.split("=")[0] for arg in resolved if arg.startswith("--")):
            if near := find_nearest(word, ("--ckpt_path", "--config"), 1):
                raise ConfigError(f"option {word} does not exist; did you mean {near[0]}?")
        raise ConfigError(
            f"{command} has neither --ckpt_path nor --config, but it needs a model; "
            f"use: python -m metalearn {command} --ckpt_path RUN/checkpoints/best.ckpt"
        )
    if checkpoint in NAMES and not os.path.exists(checkpoint):
        raise ConfigError(
            f"ckpt_path is {checkpoint!r}, but without --config nothing says of which run; name the file, or add --config with "
            "the run's configuration"
        )
    with contextlib.nullcontext() if start is None else naming_start():
        contents = read_checkpoint(checkpoint)
        entry = read_entry(contents, checkpoint)
        config = carried_config(entry, count_elements(contents), checkpoint)
    path = scratch / "carried.yaml"
    path.write_text(yaml.safe_dump(config))
    name = entry.run if start is None else f"from_{entry.run}"
    return [*resolved[:where], "--config", str(path), *resolved[where:]], name


def _check_config_before_command(args: Sequence[str]) -> None:
    """Raise unless a config that stands before the command holds a section for a command."""
    name = option(args, "--config") or option(args, "-c")
    if name and not set(read_config(config_path(name))) & set(LIGHTNING_COMMANDS):
        command = next(arg for arg in args if arg in LIGHTNING_COMMANDS)
        raise ConfigError(
            f"config {name} stands before the command, but holds no section {command!r}; write: metalearn {command} --config "
            f"{name}"
        )


def _resolve_configs(args: Sequence[str]) -> tuple[list[str], str]:
    """The arguments with every config's name replaced by its path, and what the run is called by the last of them.

    Configs go to the front, so that an option of the command line counts wherever it stands.
    """
    resolved: list[str] = []
    configs: list[str] = []
    name = "custom"
    waiting = [part for arg in args for part in _split(arg)]
    warn_of_repeats(waiting)
    while waiting:
        arg = waiting.pop(0)
        flag, equals, value = arg.partition("=")
        if not flag.startswith("-") or (not equals and (not waiting or waiting[0].startswith("--"))):
            if flag in ("--config", "-c"):
                raise ConfigError(f"{flag} has no value; write {flag} FILE, or the name of a shipped config")
            resolved.append(arg)
            continue
        if not equals:
            value = waiting[0]
        check_value(flag, value)
        if flag in ("--config", "-c"):
            path = config_path(value)
            name, value = name_run(path), str(path)
        elif flag in MAY_BE_FILES and os.path.exists(value):
            check_config(Path(value))
        if not equals:
            waiting.pop(0)
        kept = configs if flag in ("--config", "-c") and resolved else resolved
        kept += [f"{flag}={value}"] if equals else [flag, value]
    return [*resolved[:1], *configs, *resolved[1:]], name


def _split(arg: str) -> list[str]:
    """``-cFILE`` as two arguments, and any other as it is."""
    return [arg[:2], arg[2:].removeprefix("=")] if arg.startswith("-c") and len(arg) > 2 else [arg]
