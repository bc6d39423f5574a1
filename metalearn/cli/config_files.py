"""Configuration files: read with care, so that whatever is wrong with one is told in a line before it is used."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from pathlib import Path
from typing import Any

import yaml

from metalearn.errors import ConfigError

__all__ = ["check_config", "check_value", "read_config"]

LARGEST = 1 << 20
DEEPEST = 40
MOST_NODES = 20_000
"""Far above any configuration: of bytes, of levels, and of values once its references are followed."""


def check_config(path: Path) -> None:
    """Raise unless the file is a plain YAML mapping of options."""
    read_config(path)


def read_config(path: Path) -> dict[str, Any]:
    """The options in a YAML file.

    Raises:
        ConfigError: it is no regular file, cannot be read, is no UTF-8, no YAML, no mapping, too large, too deep, or says a key
            twice; the line says where.
    """
    text = _read_text(path)
    try:
        node = _parse(text, f"config {path}")
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"config {path} is no YAML ({_reason(error)}); correct that line") from error
    if node is None:
        raise ConfigError(
            f"config {path} is empty, but it must hold options; a run's config.yaml or a shipped config shows how"
        )
    if not isinstance(node, yaml.MappingNode):
        kind = "a list" if isinstance(node, yaml.SequenceNode) else "a single value"
        raise ConfigError(
            f"config {path} holds {kind}, but it must be a mapping of options, such as 'model:' and 'data:'"
        )
    _check_keys(node, path)
    try:
        options = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise ConfigError(f"config {path} is no plain YAML ({_reason(error)}); correct that line") from error
    assert isinstance(options, dict)
    for section in (options, *(value for value in options.values() if isinstance(value, dict))):
        check_trainer_section(section.get("trainer"), f"config {path}")
    return options


def check_trainer_section(value: Any, where: str) -> None:
    """Raise where the Trainer's options are no mapping, which jsonargparse would take for none at all."""
    if value is not None and not isinstance(value, (dict, str)):
        shown = str(value) if len(str(value)) <= 60 else type(value).__name__
        raise ConfigError(
            f"{where} gives trainer as {shown}, but it must be a mapping of options, such as 'max_steps: 100'; correct it, or "
            "leave it out"
        )


def check_value(option: str, value: str) -> None:
    """Raise where a value of the command line, which is YAML too, is too large or too deep to be one."""
    what = f"the value of {option}"
    if len(value) > LARGEST // 8:
        raise ConfigError(f"{what} has {len(value):,} characters, so it is none; shorten it")
    if value.count("[") + value.count("{") > DEEPEST or ("&" in value and "*" in value):
        with contextlib.suppress(yaml.YAMLError):
            _parse(value, what)


def _read_text(path: Path) -> str:
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):
            kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or device"
            raise ConfigError(f"config {path} is {kind}, but it must be a file; give the path of a YAML file")
        with open(path, "rb") as file:
            content = file.read(LARGEST + 1)
    except ConfigError:
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"config {path} cannot be read ({reason}); give the path of a YAML file") from error
    if len(content) > LARGEST:
        raise ConfigError(f"config {path} has more than {LARGEST:,} bytes, so it is no configuration; give a YAML file")
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ConfigError(f"config {path} is UTF-16, but it must be UTF-8; save it as UTF-8")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ConfigError(
            f"config {path} is not UTF-8 ({error.reason} in line {line}); save it as UTF-8, or give a YAML file"
        ) from error
    strange = re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", text)
    if strange:
        line = text[: strange.start()].count("\n") + 1
        raise ConfigError(f"config {path} has a control character in line {line}, so it is binary; give a YAML file")
    return text


def _parse(text: str, what: str) -> yaml.Node | None:
    """The graph of nodes, once its depth and its size with all references followed are known to be small."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
            depth += 1
        elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
            depth -= 1
        if depth > DEEPEST:
            raise ConfigError(f"{what} is nested more than {DEEPEST} levels deep, but options are not; flatten it")
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    if node is not None:
        _count(node, what, {})
    return node


def _count(node: yaml.Node, what: str, known: dict[int, int]) -> int:
    """How many values there are if every reference is written out."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) in known:
        if known[id(node)] < 0:
            raise ConfigError(
                f"{what} refers to itself in line {node.start_mark.line + 1}; write the value out instead"
            )
        return known[id(node)]
    known[id(node)] = -1
    children = node.value if isinstance(node, yaml.SequenceNode) else [child for pair in node.value for child in pair]
    total = 1 + sum(_count(child, what, known) for child in children)
    if total > MOST_NODES:
        raise ConfigError(f"{what} holds more than {MOST_NODES:,} values, so it is no configuration; shorten it")
    known[id(node)] = total
    return total


def _check_keys(node: yaml.Node, path: Path) -> None:
    """Raise where a key stands twice, or is no text."""
    if isinstance(node, yaml.SequenceNode):
        for child in node.value:
            _check_keys(child, path)
    elif isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise ConfigError(f"config {path} has a key in line {line} that is no text; name the option")
            if key.value in lines and key.value != "<<":
                raise ConfigError(
                    f"config {path} says {key.value!r} in line {lines[key.value]} and again in line {line}; keep one of them"
                )
            lines[key.value] = line
            _check_keys(value, path)


def _reason(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error) or type(error).__name__
    if "'\\t'" in problem:
        problem = "a tab, where only spaces may indent"
    return f"line {mark.line + 1}: {problem}" if mark is not None else problem
