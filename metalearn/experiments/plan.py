"""The folder of an experiment: what it was begun with, so that the same command goes on and another is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from metalearn.errors import ConfigError, DataError
from metalearn.experiments.options import flatten_options
from metalearn.reports.tables import write_atomically

__all__ = ["claim"]

PLAN = "plan.json"
MISSING = object()


@contextmanager
def claim(folder: Path, kind: str, options: Mapping[str, Any]) -> Iterator[None]:
    """Take a folder for an experiment while the block runs.

    Args:
        folder: a new one, or that of the same experiment, which then goes on.
        kind: of the experiment, such as ``"seeds"``.
        options: all that its results depend on, of JSON types.

    Raises:
        ConfigError: the folder holds something else, or another process works in it.
    """
    _check(folder, kind, options)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock", timeout=0)
        lock.acquire()
    except Timeout as error:
        raise ConfigError(
            f"{folder} is in use by another metalearn {kind}; wait until that has ended, or add --output with another folder"
        ) from error
    except OSError as error:
        raise DataError(
            f"{folder} cannot be written ({error.strerror}); add --output with a folder that can"
        ) from error
    try:
        write_atomically(folder / PLAN, json.dumps({"kind": kind, "options": options}, indent=1, default=str).encode())
        yield
    finally:
        lock.release()


def _check(folder: Path, kind: str, options: Mapping[str, Any]) -> None:
    path = folder / PLAN
    if not folder.exists() or (folder.is_dir() and all(entry.name == ".lock" for entry in folder.iterdir())):
        return
    try:
        plan = json.loads(path.read_text())
        before, was = dict(plan["options"]), str(plan["kind"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{folder} exists, but it is no folder of metalearn {kind}; add --output with another folder"
        ) from error
    if was != kind:
        raise ConfigError(f"{folder} is a folder of metalearn {was}, not of {kind}; add --output with another folder")
    now = json.loads(json.dumps(options, default=str))
    there, here = flatten_options(before), flatten_options(now)
    for name in [*here, *there]:
        if there.get(name, MISSING) != here.get(name, MISSING):
            raise ConfigError(
                f"{folder} was begun with {_assign(name, there)}, but now it is {_assign(name, here)}; say the same to go on, or "
                "add --output with another folder"
            )


def _assign(name: str, options: Mapping[str, Any]) -> str:
    return f"{name.removesuffix('.class_path')} {options[name]!r}" if name in options else f"no {name}"
