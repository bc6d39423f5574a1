"""The package as it is installed: what is in it, and that it works from anywhere."""

from __future__ import annotations

import configparser
import json
import os
import shutil
import subprocess
import sys
import venv
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
    assert listed == found | {"metalearn.configs", "metalearn.checkpoints"}


CHECK = (
    "import metalearn, metalearn.datamodules as d; from metalearn.cli.shipped import config_path, shipped_configs;"
    "from metalearn.carried.shipped import shipped_checkpoints; assert 'maml_glyphs_5w1s' in shipped_checkpoints();"
    "assert len(shipped_configs()) > 10; assert config_path('maml_omniglot_5w1s').is_file();"
    "print(metalearn.__file__, d.__file__)"
)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_the_editable_install_works(elsewhere: bool, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHECK], cwd=tmp_path if elsewhere else ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, since a build leaves folders behind."""
    folder = tmp_path_factory.mktemp("wheel")
    left_out = shutil.ignore_patterns(".git", "build", "*.egg-info", "runs", ".venv", "tests", "docs")
    shutil.copytree(ROOT, folder / "copy", ignore=left_out)
    subprocess.run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(folder / "copy")],
                   check=True, capture_output=True)  # fmt: skip
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def bin_folder(wheel: Path) -> Path:
    """Where the commands of an environment are that has the wheel, and sees this one's dependencies, but not this checkout."""
    folder = wheel.parent / "venv"
    venv.create(folder)
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(folder), "install", "-q", "--no-deps", str(wheel)], check=True
    )
    (site,) = folder.glob("**/site-packages")
    (site / "dependencies.pth").write_text("\n".join(path for path in sys.path if path.endswith("-packages")))
    return folder / ("Scripts" if os.name == "nt" else "bin")


def run(command: Path, *args: str, at: Path) -> str:
    done = subprocess.run([command, *args], cwd=at, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_what_is_needed_and_nothing_else(wheel: Path) -> None:
    names = {*zipfile.ZipFile(wheel).namelist()}
    manifest = json.loads((ROOT / "checkpoints" / "manifest.json").read_text())
    assert {f"metalearn/checkpoints/{name}" for name in ("manifest.json", *manifest)} <= names
    assert {f"metalearn/configs/{path.name}" for path in (ROOT / "configs").glob("*.yaml")} <= names
    stubs = {path.relative_to(ROOT).as_posix() for path in (ROOT / "metalearn").rglob("*.pyi")}
    assert {"metalearn/py.typed", "metalearn/datamodules/__init__.pyi", *stubs} <= names
    assert {name.split("/")[0] for name in names} == {"metalearn", wheel.name.split("-py3")[0] + ".dist-info"}


def test_the_wheel_works_elsewhere(bin_folder: Path, tmp_path: Path) -> None:
    assert run(bin_folder / "python", "-c", CHECK, at=tmp_path).count(str(bin_folder.parent)) == 2
    assert "0.1.0" in run(bin_folder / "metalearn", "--version", at=tmp_path)


def test_a_checkout_that_hides_the_installed_package_says_so(bin_folder: Path) -> None:
    """Python looks into the current folder first; what lies beside the package there is no part of it."""
    for args in (["-m", "metalearn", "--version"], ["-c", "import metalearn"]):
        done = subprocess.run([bin_folder / "python", *args], cwd=ROOT, capture_output=True, text=True, check=False)
        line = f"a checkout that is not installed in place, {ROOT}; run `pip install -e .` in that folder"
        assert (done.returncode, line in done.stderr) == (1, True), done.stderr
    assert "0.1.0" in run(bin_folder / "metalearn", "--version", at=ROOT)


@pytest.mark.parametrize("says", ["top_level.txt", "RECORD"])
def test_another_distribution_of_the_name_is_noticed(says: str, bin_folder: Path, tmp_path: Path) -> None:
    """It shares our folder; its files may hide ours, and when it is removed it takes them along."""
    (site,) = bin_folder.parent.glob("**/site-packages")
    other, first = site / "meta_other-0.6.2.dist-info", site / "metalearn" / "__init__.py"
    other.mkdir()
    (other / says).write_text("metalearn\n" if says == "top_level.txt" else "metalearn/__init__.py,sha256=,122\n")
    kept = first.read_bytes()

    def start() -> tuple[int, str]:
        done = subprocess.run([bin_folder / "metalearn", "--version"], cwd=tmp_path, capture_output=True, text=True)
        return done.returncode, done.stderr

    again = "pip install --force-reinstall --no-deps metalearn-lightning\n"
    mixed = (
        f"meta_other 0.6.2 is installed into the folder metalearn as well; run: pip uninstall meta_other, then {again}"
    )
    try:
        assert start() == (0, f"metalearn: warning: {mixed}")
        first.write_text("from os import path")
        assert start() == (2, f"metalearn: error: {mixed}")
        shutil.rmtree(other)
        first.unlink()
        line = f"the file __init__.py of metalearn is missing or not of metalearn-lightning; run: {again}"
        assert start() == (2, f"metalearn: error: {line}")
    finally:
        first.write_bytes(kept)
        shutil.rmtree(other, ignore_errors=True)
    assert start() == (0, "")


@pytest.mark.documents
def test_the_wheel_does_the_main_job_from_any_folder(bin_folder: Path, tmp_path: Path) -> None:
    """Train, test and evaluate what is shipped; nothing but a run's own folder is written."""
    here = tmp_path / "a folder of mine"
    here.mkdir()
    few = [
        "--data.test_tasks",
        "8",
        "--data.train_tasks",
        "16",
        "--data.val_tasks",
        "8",
        "--trainer.accelerator",
        "cpu",
    ]
    trained = run(bin_folder / "metalearn", "fit", *few, "--trainer.max_steps", "2", at=here)
    assert "test accuracy" in trained
    assert "8 tasks" in trained
    shipped = run(bin_folder / "metalearn", "test", "--ckpt_path", "maml_glyphs_5w1s", *few, at=here)
    assert float(shipped.split("test accuracy")[1].split("%")[0]) > 80
    assert [path.name for path in here.iterdir()] == ["runs"]
