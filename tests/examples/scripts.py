"""The scripts of ``examples/bilevel`` as modules. Importing such a script runs nothing."""

from __future__ import annotations

import importlib.util
from types import ModuleType

from tests.house import ROOT


def load_example(name: str) -> ModuleType:
    """Import ``examples/bilevel/NAME.py``."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / "bilevel" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
