"""The package as it is installed: what is in it, and that it works from anywhere."""

from __future__ import annotations

import configparser
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.house import ROOT


def test_setup_cfg_lists_every_package() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    listed = set(config["options"]["packages"].split())
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "metalearn").rglob("__init__.py")}
    found |= {
        ".".join(["metalearn", *path.parent.relative_to(ROOT).parts])
        for path in (ROOT / "datamodules").rglob("__init__.py")
    }
    assert listed == found | {"metalearn.configs"}


CHECK = (
    "import metalearn, metalearn.cli.entry, metalearn.datamodules as d, metalearn.cli.shipped as c;"
    "assert len(c.shipped_configs()) > 10; assert c.config_path('maml_omniglot_5w1s').is_file();"
    "print(metalearn.__file__, d.__file__)"
)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_the_editable_install_works(elsewhere: bool, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHECK], cwd=tmp_path if elsewhere else ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_wheel_installs_and_works_elsewhere(tmp_path: Path) -> None:
    """Built from a copy, installed into an environment that sees this one's dependencies but not this checkout."""
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(
        ROOT, copy, ignore=shutil.ignore_patterns(".git", "build", "*.egg-info", "runs", ".venv", "checkpoints")
    )
    (copy / "checkpoints").mkdir(exist_ok=True)
    subprocess.run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(copy)], check=True,
                   capture_output=True)  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "metalearn/configs/maml_glyphs_5w1s.yaml" in names
    assert "metalearn/py.typed" in names
    assert {"metalearn/__init__.pyi", "metalearn/modules/__init__.pyi", "metalearn/datamodules/__init__.pyi"} <= {
        *names
    }
    assert "metalearn/reports/plain.mplstyle" in names
    assert not [
        name for name in names if name.split("/")[0] not in ("metalearn", wheel.name.split("-py3")[0] + ".dist-info")
    ]
    target = tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(target), str(wheel)], check=True
    )
    code = (
        f"import sys; sys.path.insert(0, {str(target)!r});"
        f"sys.meta_path = [f for f in sys.meta_path if '__editable__' not in str(f)]; {CHECK}"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(str(target)) == 2
