"""Every code block of the README and of the pages runs, each page from top to bottom in a folder of its own."""

from __future__ import annotations

import doctest
import functools
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import matplotlib as mpl
import pytest
import torch
import yaml
from PIL import Image

from tests.documents.blocks import Block, pages, read_blocks
from tests.documents.commands import Shell
from tests.house import ROOT
from tests.made import make_folder
from tests.made_bilevel import make_mnist, make_newsgroups

pytestmark = pytest.mark.documents

SHIPPED = ROOT / "checkpoints" / "maml_glyphs_5w1s.ckpt"
MOST_STEPS = 3
MOST_BATCHES = 2


@pytest.fixture
def short_trainers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainers take few steps and look at few batches, those of the command line too."""
    make = L.Trainer.__init__

    @functools.wraps(make)
    def make_short(self: L.Trainer, **options: Any) -> None:
        asked = options.get("max_steps")
        steps = MOST_STEPS if asked is None or asked < 0 else min(asked, MOST_STEPS)
        few = dict.fromkeys(
            ("limit_train_batches", "limit_val_batches", "limit_test_batches", "limit_predict_batches"), MOST_BATCHES
        )
        quiet = {"enable_progress_bar": False, "accelerator": "cpu"}
        make(self, **{**options, **few, **quiet, "max_steps": steps})

    monkeypatch.setattr(L.Trainer, "__init__", make_short)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The reader's folder: images, a checkpoint, and what a clone holds."""
    make_folder(tmp_path / "FOLDER", classes=12, images=15)
    make_folder(tmp_path / "SUPPORT", classes=3, images=2)
    (tmp_path / "QUERIES").mkdir()
    for number in range(3):
        Image.new("L", (28, 28), 40 * number).save(tmp_path / "QUERIES" / f"{number}.png")
    for name in ("best.ckpt", "CKPT"):
        shutil.copy(SHIPPED, tmp_path / name)
    for name in ("checkpoints", "examples", "configs"):
        shutil.copytree(ROOT / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("COLUMNS", "100")
    return tmp_path


@pytest.fixture
def shell(folder: Path, omniglot: Path, miniimagenet: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    def once(name: str, make: Callable[[Path], Path]) -> Callable[[], Path]:
        return lambda: folder / name if (folder / name).exists() else make(folder / name)

    data = {
        "omniglot": lambda: omniglot,
        "miniimagenet": lambda: miniimagenet,
        "mnist": once(".mnist", make_mnist),
        "newsgroups": once(".newsgroups", make_newsgroups),
        "imagefolder": lambda: folder / "FOLDER",
    }
    return Shell(folder, data, monkeypatch)


@pytest.fixture
def _own_state(tmp_path: Path) -> Iterator[None]:
    """Pages may seed torch, set its threads, its default type and matplotlib's backend, and import what they saved."""
    threads, dtype, modules = torch.get_num_threads(), torch.get_default_dtype(), dict(sys.modules)
    mpl.use("agg")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
    for name in set(sys.modules) - set(modules):
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]
    sys.modules.update(modules)
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)


def run_block(block: Block, names: dict[str, Any], shell: Shell) -> None:
    """Run a block, or save it under the name that its first line says."""
    if block.reason is not None:
        return
    if block.file_name is not None:
        target = shell.folder / block.file_name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(block.text)
        sys.modules.pop(target.stem, None)  # benchmarks/ and examples/ may have a file of this name
    if block.language == "python":
        shell.place_data(block.text)
        exec(compile("\n" * (block.line - 1) + block.text, str(block.page), "exec"), names)
    elif block.language == "pycon":
        run_session(block, names)
    elif block.language == "yaml":
        yaml.safe_load(block.text)
    elif block.language == "shell":
        shell.run(block.text, block.exit_code)


def run_session(block: Block, names: dict[str, Any]) -> None:
    """Run a block with prompts, and compare what it prints."""
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    session = doctest.DocTestParser().get_doctest(block.text, {}, block.place, str(block.page), block.line)
    session.globs = names
    printed: list[str] = []
    failed = doctest.DocTestRunner(optionflags=options).run(session, out=printed.append, clear_globs=False).failed
    assert not failed, "".join(printed)


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
@pytest.mark.filterwarnings(
    "ignore::lightning.fabric.utilities.warnings.PossibleUserWarning",  # that a loader is left out
    "ignore:Starting from v1.9.0, `tensorboardX`:UserWarning",  # where the extra is not installed
)
@pytest.mark.usefixtures("short_trainers", "_own_state")
def test_the_code_of_a_page(page: Path, request: pytest.FixtureRequest) -> None:
    blocks = list(read_blocks(page))
    if not blocks:
        return
    shell = request.getfixturevalue("shell")
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks:
        try:
            run_block(block, names, shell)
        except Exception as error:
            error.add_note(f"in {block.place}") if hasattr(error, "add_note") else None
            raise


def test_what_is_not_run_says_why() -> None:
    """Run with ``-s``, it lists these blocks."""
    left = [block for page in pages() for block in read_blocks(page) if block.reason is not None]
    for block in left:
        print(f"{block.place}: {block.reason}")
    assert all(len(block.reason.split()) > 2 for block in left if block.reason)
