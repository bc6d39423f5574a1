"""``python -m metalearn data``: pack, show, check, and write tasks; in this process, but for one run as a user does it."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest
from PIL import Image

from metalearn.cli import main
from tests.cli.test_configs import TINY
from tests.made import make_folder, run_cli


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A made data set of its own cache, in a working folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("METALEARN_CACHE", str(tmp_path / "cache"))
    return str(make_folder(tmp_path / "mine"))


def arguments(folder: str) -> list[str]:
    sizes = ["--data.ways", "2", "--data.queries", "2", "--data.image_size", "24"]
    return ["--data", "ImageFolderEpisodes", "--data.root", folder, *sizes]


def test_info_shows_the_classes(folder: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    main(["data", "info", *arguments(folder), "--output", "sheet.png"])
    printed = capsys.readouterr().out
    assert "72 of 3 x 24 x 24" in printed
    assert re.search(r"train +8 +48 +6$", printed, re.MULTILINE)
    assert re.search(r"train pixels +mean 0\.\d{3}, 0\.\d{3}, 0\.\d{3}", printed)
    with Image.open(tmp_path / "sheet.png") as picture:
        assert picture.width > 400


def test_prepare_as_a_user(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "mine")
    done = run_cli("data", "prepare", *arguments(str(root)), cwd=tmp_path, cache=tmp_path / "cache")
    assert "time" in done.stdout
    assert list((tmp_path / "cache").glob("*.store"))


def test_verify_finds_and_mends_what_is_damaged(
    folder: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    main(["data", "prepare", *arguments(folder)])
    (store,) = (tmp_path / "cache").glob("*.store")
    good = store.read_bytes()
    store.write_bytes(good[:-7] + bytes([good[-7] ^ 1]) + good[-6:])
    main(["data", "verify", *arguments(folder)])
    assert "match their checksum" in capsys.readouterr().out
    assert store.read_bytes() == good


def test_tasks_are_written_and_tested_on(folder: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Two runs of other seeds are tested on the tasks of one table."""
    main(["data", "tasks", *arguments(folder), "--output", "tasks.csv", "--count", "4"])
    rows = list(csv.DictReader((tmp_path / "tasks.csv").read_text().splitlines()))
    assert [row["task"] for row in rows] == [str(task) for task in range(4) for _ in range(2 * 3)]
    network = "{class_path: metalearn.backbones.Conv4, init_args: {in_channels: 3, hidden: 4, image_size: 24}}"
    for seed in ("0", "5"):
        main(["fit", "--model", "MAML", "--model.backbone", network, *arguments(folder), "--data.seed", seed, *TINY,
              "--data.options.test_tasks_file", "tasks.csv"])  # fmt: skip
    printed = capsys.readouterr().out
    assert printed.count("4 tasks)") == 2


def test_a_config_names_the_data(omniglot: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path,
                                 monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    main(["data", "info", "--config", "maml_omniglot_20w1s", "--data.root", str(omniglot), "--data.queries", "3"])
    printed = capsys.readouterr().out
    assert "groups" in printed
    assert (tmp_path / "omniglot.png").is_file()


def test_data_without_images_is_described(capsys: pytest.CaptureFixture[str]) -> None:
    main(["data", "info", "--data", "SinusoidDataModule"])
    assert "support x [10, 1], y [10, 1]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["info"], "data"),
        (["show", "--data", "SinusoidDataModule"], "show"),
        (["info", "--data", "ImageFolderEpisodes", "--data.root", "nowhere"], "root nowhere is not a folder"),
        (["info", "--config", "maml_omniglot_5w1"], "did you mean maml_omniglot_5w1s"),
        (["tasks", "--data", "SinusoidDataModule"], "a table of tasks names examples of classes"),
        (["tasks", "--data", "GlyphsDataModule", "--split", "dev"], "split is 'dev', but it must be one of"),
        (["tasks", "--data", "GlyphsDataModule", "--count", "0"], "count is 0, but a table needs"),
        (["prepare", "--data", "GlyphsDataModule", "--data.ways", "[5]"], r"ways is \[5\], but a range"),
        (
            ["prepare", "--data", "GlyphsDataModule", "--data.options.distractors", "2"],
            "distractors is 2, but unlabeled is 0",
        ),
    ],
)
def test_bad_input_is_one_line(args: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["data", *args])
    assert caught.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("metalearn: error: ")
    assert re.search(message, line)


def test_every_option_can_be_said_in_a_config(folder: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Ranges, transforms of torchvision, and the network's outputs are those of the most ways."""
    (tmp_path / "run.yaml").write_text(
        """
model:
  class_path: ANIL
  init_args:
    backbone: {class_path: metalearn.backbones.Conv4, init_args: {in_channels: 3, hidden: 4, image_size: 24}}
    inner_steps: 1
data:
  class_path: ImageFolderEpisodes
  init_args:
    root: mine
    ways: [2, 3]
    shots: [1, 2]
    queries: 1
    image_size: 24
    splits: [0.4, 0.3, 0.3]
    options:
      balanced: false
      rotations: true
      normalize: true
      unlabeled: 1
      augment:
        - class_path: torchvision.transforms.v2.RandomHorizontalFlip
        - class_path: torchvision.transforms.v2.ColorJitter
          init_args: {brightness: 0.4}
"""
    )
    main(["fit", "--config", "run.yaml", *TINY])
    assert "3 tasks)" in capsys.readouterr().out
    main(["test", "--ckpt_path", "runs/run/version_0/checkpoints/best.ckpt"])
    assert "3 tasks)" in capsys.readouterr().out
