"""Whether another distribution installs into the folder ``metalearn`` as well, so that the files of both are mixed."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator

__all__ = ["report_other_owners"]

OURS = "metalearn-lightning"
AGAIN = f"pip install --force-reinstall --no-deps {OURS}"


def report_other_owners() -> None:
    """Name another distribution of this import name in one line; end with exit code 2 where its files hide ours."""
    package = sys.modules["metalearn"]
    works = hasattr(package, "ConfigError")
    folders = {os.path.dirname(path) for path in package.__path__} if works else sys.path
    others = sorted(set(_find_others(folders)))
    if others:
        names, plain = " and ".join(others), " ".join(name.split()[0] for name in others)
        line = f"{names} is installed into the folder metalearn as well; run: pip uninstall {plain}, then {AGAIN}"
    else:
        line = f"the file __init__.py of metalearn is missing or not of {OURS}; run: {AGAIN}"
    if not works:
        print(f"metalearn: error: {line}", file=sys.stderr)
        sys.exit(2)
    if others:
        print(f"metalearn: warning: {line}", file=sys.stderr)


def _find_others(folders: Iterable[str]) -> Iterator[str]:
    """Name and version of each distribution that has files in ``metalearn``, but for ours.

    ``importlib.metadata`` would read all files of all distributions.
    """
    for folder in folders:
        try:
            entries = [entry.path for entry in os.scandir(folder) if entry.name.endswith((".dist-info", ".egg-info"))]
        except OSError:
            continue
        for path in entries:
            name, _, version = os.path.basename(path).rpartition(".")[0].partition("-")
            if name.replace("_", "-").lower() != OURS and _owns_the_name(path):
                yield f"{name} {version}".strip()


def _owns_the_name(path: str) -> bool:
    """Whether a distribution says that it installs a package or module ``metalearn``."""
    packages = _read(os.path.join(path, "top_level.txt"))
    if packages:
        return b"metalearn" in packages.split()
    return any(
        line.startswith((b"metalearn/", b"metalearn.py,")) for line in _read(os.path.join(path, "RECORD")).splitlines()
    )


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""  # an optional file, or a distribution that is being removed
