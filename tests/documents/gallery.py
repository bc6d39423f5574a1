"""The scripts of the galleries, and the same with the small numbers that they name for the tests."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from tests.house import ROOT

sys.path.append(str(ROOT / "docs" / "extensions"))  # where the site's own extensions are

SCRIPTS = sorted((ROOT / "examples").glob("*/*.py"))
BUDGET = re.compile(r"^([A-Z_]+) = (.+?)  # the tests run (.+)$", re.MULTILINE)


def shorten(code: str) -> str:
    """Replace every ``STEPS = 500  # the tests run 2`` by ``STEPS = 2``."""
    return BUDGET.sub(r"\1 = \3", code)


def names(scripts: list[Path]) -> list[str]:
    return [script.stem for script in scripts]
