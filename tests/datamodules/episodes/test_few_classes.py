"""Folders with few classes and odd files: what is told of them, remedies that work, and runs that train on all classes."""

from __future__ import annotations

import csv
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metalearn.cli import main
from metalearn.datamodules import ArrayEpisodes, EpisodeOptions, ImageFolderEpisodes
from metalearn.datamodules.episodes.splits import split_by_hash
from metalearn.errors import ConfigError, DataError
from tests.cli.test_configs import TINY
from tests.made import make_folder

SMALL = {"queries": 2, "image_size": 16}


def data_of(root: Path, cache: Path, **given: object) -> ImageFolderEpisodes:
    return ImageFolderEpisodes(str(root), cache_dir=str(cache / "own"), **{**SMALL, **given})  # type: ignore[arg-type]


@pytest.mark.parametrize("classes", range(1, 13))
def test_the_remedy_for_few_classes_works(classes: int, tmp_path: Path) -> None:
    """Whoever follows the advice gets tasks of as many ways as it says."""
    root = make_folder(tmp_path / "root", classes=classes, images=3, size=16)
    with pytest.raises(ConfigError) as caught:
        data_of(root, tmp_path, ways=11).setup()
    told = str(caught.value)
    if classes == 1:
        assert "add classes, at least 2 for each split" in told
        return
    advice = [
        (splits, int(ways)) for splits, ways in re.findall(r"(?:splits=(\[[^]]+\]) and )?at most (\d+) ways", told)
    ]
    assert advice
    for splits, ways in advice:
        assert ways >= 2
        given = {"splits": tuple(map(float, re.findall(r"[\d.]+", splits)))} if splits else {}
        data = data_of(root, tmp_path, ways=ways, **given)
        data.setup("fit")
        for split in ("train", "val", "test"):
            if data.has_classes(split):
                assert len(set(data.episode(0, split, 0).support.y.tolist())) == ways
        assert data.has_classes("val") == (splits != "[1, 0, 0]")
    whole = data_of(root, tmp_path, ways=classes, splits=(1.0, 0.0, 0.0))
    assert sorted(whole.class_names("train")) == [f"class{number:02d}" for number in range(classes)]


def test_fractions_of_0_leave_a_split_out() -> None:
    names = [f"c{number}" for number in range(5)]
    sizes = {kept: [len(split_by_hash(names, kept)[split]) for split in ("train", "val", "test")] for kept in (
        (1.0, 0.0, 0.0), (0.6, 0.4, 0.0), (0.6, 0.0, 0.4), (0.0, 0.0, 1.0), (0.0, 0.4, 0.6))}  # fmt: skip
    assert list(sizes.values()) == [[5, 0, 0], [3, 2, 0], [3, 0, 2], [0, 0, 5], [0, 2, 3]]


def test_splits_by_name_may_leave_some_out() -> None:
    x, y = np.zeros((12, 3), np.float32), np.repeat(["a", "b", "c"], 4)
    data = ArrayEpisodes(x, y, ways=2, queries=2, splits={"train": ["a", "b", "c"]})
    data.setup("fit")
    assert (data.num_classes("train"), data.num_classes("val")) == (3, 0)
    with pytest.raises(ConfigError, match="splits leaves it without classes"):
        data.episode(0, "val", 0)
    with pytest.raises(ConfigError, match="splits leaves test without classes"):
        data.test_dataloader()
    with pytest.raises(ConfigError, match="a fit needs some"):
        ArrayEpisodes(x, y, ways=2, queries=2, splits=(0, 0, 1)).setup("fit")
    with pytest.raises(ConfigError, match="normalize"):
        ArrayEpisodes(x, y, ways=2, queries=2, splits=(0, 0, 1), options=EpisodeOptions(normalize=True)).setup()
    with pytest.raises(ConfigError, match=r"splits names dev, but"):
        ArrayEpisodes(x, y, splits={"dev": ["a"]}).setup()


def test_a_fit_on_all_classes_goes_without_validation_and_test(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("METALEARN_CACHE", str(tmp_path / "cache"))
    make_folder(tmp_path / "mine" / "train", classes=3, images=3, size=16)
    network = "{class_path: metalearn.backbones.Conv4, init_args: {in_channels: 3, hidden: 4, image_size: 16}}"
    main(["fit", "--model", "MAML", "--model.backbone", network, "--data", "ImageFolderEpisodes", "--data.root", "mine",
          "--data.image_size", "16", "--data.ways", "3", "--data.queries", "2", *TINY])  # fmt: skip
    printed = capsys.readouterr().out
    assert "2 steps" in printed
    assert "test accuracy" not in printed
    assert "the run goes without validation" in caplog.text
    last = next(Path("runs").rglob("last.ckpt"))
    with pytest.raises(SystemExit):
        main(["test", "--ckpt_path", str(last), "--trainer.accelerator", "cpu"])
    assert "splits leaves test without classes, but its tasks are asked for" in capsys.readouterr().err


def test_info_shows_what_is_there_whatever_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("METALEARN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "300")
    make_folder(tmp_path / "mine", classes=12, images=4, size=16)
    arguments = ["data", "info", "--data", "ImageFolderEpisodes", "--data.root", "mine", "--data.image_size", "16"]
    main([*arguments, "--data.ways", "20", "--data.shots", "100"])
    printed = capsys.readouterr().out
    assert re.search(r"val +2 +8 +4$", printed, re.MULTILINE)
    assert re.search(r"tasks +up to 2 ways, and up to 4 shots and queries together", printed)
    assert re.search(r"as asked for +not possible: ways is 20, but the train split .* use at most 2 ways", printed)
    main([*arguments, "--data.ways", "2", "--data.queries", "3"])
    assert "not possible" not in capsys.readouterr().out


def test_what_lies_among_images_and_is_none(tmp_path: Path) -> None:
    """Hidden files, pipes and broken links are passed over; images that lie deeper are found; modes and sizes may differ."""
    root = make_folder(tmp_path / "root", classes=6, images=3, size=16)
    first = root / "class00"
    (first / "._0.png").write_bytes(b"left behind by a file manager")
    (root / ".git").mkdir()
    os.mkfifo(first / "pipe.png")
    (first / "gone.png").symlink_to("nowhere")
    for number, mode in enumerate(("L", "1", "P", "RGBA", "CMYK")):
        Image.new(mode, (9 + number, 30)).save(first / f"mode{number}.{'tif' if mode == 'CMYK' else 'png'}")
    data = data_of(root, tmp_path.with_name("cache"), ways=2, splits=(0.34, 0.33, 0.33))
    data.setup()
    counts = dict(zip(data.pool.names, data.pool.counts.tolist(), strict=True))
    assert counts == {f"class{number:02d}": 8 if number == 0 else 3 for number in range(6)}
    with pytest.raises(DataError, match=r"root holds no image itself, but .*root/class00 does; set the root to "):
        data_of(tmp_path, tmp_path).setup()


@pytest.mark.skipif(os.name != "posix" or os.uname().sysname == "Darwin", reason="names there are always text")
def test_names_that_are_no_text_are_told(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "root", classes=6, images=3, size=16)
    os.rename(root / "class00" / "0.png", os.fsencode(root / "class00") + b"/\xff.png")
    with pytest.raises(DataError, match=r"holds '\\udcff.png', a name that is not UTF-8"):
        data_of(root, tmp_path, ways=2, splits=(0.34, 0.33, 0.33)).setup()
    os.rename(root / "class01", os.fsencode(root) + b"/\xff")
    with pytest.raises(DataError, match="not UTF-8; rename it"):
        data_of(root, tmp_path, ways=2).setup()


@pytest.mark.parametrize(
    ("name", "give"),
    [("labels", {"labels": "PIPE"}), ("root", {"root": "PIPE"}), ("test_tasks_file", {"table": "PIPE"})],
)
def test_a_pipe_is_never_waited_for(name: str, give: dict[str, str], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    given = {key: str(tmp_path / "pipe") for key in give}
    root = Path(given.pop("root", make_folder(tmp_path / "mine", classes=6, images=3, size=16)))
    options = EpisodeOptions(test_tasks_file=given.pop("table", None))
    with pytest.raises(DataError, match=name):
        data_of(root, tmp_path, ways=2, splits=(0.34, 0.33, 0.33), options=options, **given).setup()
    with pytest.raises(DataError, match="no regular file"):
        ArrayEpisodes(str(tmp_path / "pipe"), np.zeros(3, np.int64))


def test_names_with_dollars_and_line_breaks_are_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("METALEARN_CACHE", str(tmp_path / "cache"))
    root = make_folder(tmp_path / "mine", classes=3, images=3, size=16)
    (root / "class00").rename(root / "$\\frac{\n\x1b[31m")
    main(["data", "tasks", "--data", "ImageFolderEpisodes", "--data.root", "mine", "--data.image_size", "16", "--data.ways", "3",
          "--data.queries", "2", "--data.splits", "[1, 0, 0]", "--split", "train", "--count", "1"])  # fmt: skip
    with open("imagefolderepisodes_train_tasks.csv", newline="", encoding="utf-8") as file:
        assert "$\\frac{\n\x1b[31m" in {row["class"] for row in csv.DictReader(file)}
    main(["data", "info", "--data", "ImageFolderEpisodes", "--data.root", "mine", "--data.image_size", "16"])
    assert "\x1b[31m" not in capsys.readouterr().out
    assert Path("imagefolderepisodes.png").stat().st_size > 0
