"""What an import loads: each package only what is asked of it, and some of it never needs torch or Lightning."""

from __future__ import annotations

import importlib
import inspect
import pickle
import subprocess
import sys

import pytest

import metalearn
from tests.house import source_files

LAZY = [
    "metalearn", "metalearn.backbones", "metalearn.bilevel", "metalearn.carried", "metalearn.compat",
    "metalearn.datamodules", "metalearn.inner", "metalearn.modules",
]  # fmt: skip
"""The packages that load a part when it is asked for."""
HEAVY = (
    "torch", "numpy", "scipy", "torchvision", "torchmetrics", "lightning", "lightning_utilities", "jsonargparse", "rich", "yaml",
    "PIL", "matplotlib", "learn2learn", "higher", "sklearn", "optuna",
)  # fmt: skip
"""What takes time or is optional; whatever a table below does not allow is refused."""
NOTHING: set[str] = set()
TORCH = {"torch", "numpy"}
ALLOWED = [
    (
        NOTHING,
        [
            *(f"import {package}" for package in LAZY),
            "from metalearn.errors import *",
            "from metalearn.checks import *",
            "from metalearn import ConfigError, cli, experiments, reports, studies",
            "import metalearn.cli.entry",
            "import metalearn.intervals, metalearn.reports.facts, metalearn.reports.outcome, metalearn.reports.tables",
            "import metalearn.carried.classes, metalearn.carried.shipped",
        ],
    ),
    (
        TORCH,
        [
            "from metalearn import Batch, Conv4, Episode",
            "from metalearn.inner import *",
            "from metalearn.backbones import *",
            "from metalearn.bilevel import *",
            "import metalearn.reports.pictures",
        ],
    ),
]
"""Statements that a fresh process runs in this order, and what they may load."""


def run_fresh(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(("allowed", "statements"), ALLOWED, ids=["nothing", "torch"])
def test_imports_load_no_more_than_they_name(allowed: set[str], statements: list[str]) -> None:
    """Whatever else they want is refused, as it would be where it is not installed."""
    refused = tuple(name for name in HEAVY if name not in allowed)
    lines = "\n".join(statements)
    run_fresh(
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] in {refused!r}:\n"
        "            raise ImportError(name + ' is refused')\n"
        f"sys.meta_path.insert(0, Refuse())\n{lines}"
    )


def test_ours_load_little_beyond_lightning() -> None:
    """Lightning and torchmetrics load torchvision and matplotlib themselves, so what counts is what we add."""
    added = run_fresh(
        "import sys, lightning.pytorch.cli, torchmetrics; before = set(sys.modules)\n"
        "from metalearn import *\nfrom metalearn.modules import *\nfrom metalearn.datamodules import *\n"
        "names = set(sys.modules) - before; tops = {name.split('.')[0] for name in names}\n"
        "print(*tops - set(sys.stdlib_module_names) - {'metalearn'}, *(name for name in names if 'datasets' in name))"
    )
    assert set(added.split()) <= {"PIL", "filelock", "platformdirs", "safetensors"}


@pytest.mark.parametrize("package", LAZY)
def test_a_lazy_package_offers_what_its_stub_says(package: str) -> None:
    module = importlib.import_module(package)
    for name in module.__all__:
        assert name in dir(module)
        assert getattr(module, name) is not None
        assert f"{package}.{name}" not in source_files(), "a file of that name would hide it once it is imported"
    assert len(set(module.__all__)) == len(module.__all__)


def test_a_package_is_an_attribute_after_importing_the_top() -> None:
    assert inspect.isclass(metalearn.datamodules.GlyphsDataModule)
    assert metalearn.modules.MAML is metalearn.MAML
    assert {"MAML", "datamodules", "__version__"} <= {*dir(metalearn)}
    assert "datamodules" not in metalearn.__all__


@pytest.mark.parametrize(
    ("name", "nearest"), [("MALM", "MAML"), ("maml", "MAML"), ("Conv5", "Conv4"), ("datamodule", "datamodules")]
)
def test_a_wrong_name_has_its_nearest(name: str, nearest: str) -> None:
    with pytest.raises(AttributeError, match=f"module 'metalearn' has no attribute '{name}'; did you mean '{nearest}'"):
        getattr(metalearn, name)


def test_a_name_like_nothing_has_none() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'sentencepiece'$"):
        getattr(metalearn, "sentencepiece")  # noqa: B009
    with pytest.raises(ImportError, match="cannot import name 'MALM'"):
        exec("from metalearn import MALM")
    assert not hasattr(metalearn, "__path_hooks__")


def test_a_lazy_package_is_a_package_like_any_other() -> None:
    """Reloaded, pickled by the names of its classes, read by help, and asked by many threads at once."""
    code = (
        "import metalearn, metalearn.bilevel as b, importlib, pydoc; from concurrent.futures import ThreadPoolExecutor\n"
        "with ThreadPoolExecutor(8) as pool: kinds = list(pool.map(lambda n: getattr(b, n), list(b.__all__) * 4))\n"
        "assert kinds == [getattr(b, n) for n in b.__all__] * 4\n"
        "kept = metalearn.ConfigError; assert importlib.reload(metalearn).ConfigError is kept\n"
        "print(pydoc.plain(pydoc.render_doc(metalearn.backbones)))"
    )
    assert "class Conv4" in run_fresh(code)
    assert pickle.loads(pickle.dumps(metalearn.MAML)) is metalearn.MAML
