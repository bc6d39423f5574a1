"""Configurations that are damaged, odd or hostile: each is one line, within a moment, and nothing is done."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from metalearn.cli import main
from metalearn.cli.arguments import prepare_arguments
from metalearn.cli.commands import find_command
from metalearn.cli.config_files import read_config
from metalearn.cli.shipped import config_path, shipped_configs
from metalearn.errors import ConfigError

GOOD = shipped_configs()["maml_glyphs_5w1s"].read_text(encoding="utf-8")
NINE = "[{0},{0},{0},{0},{0},{0},{0},{0},{0}]"
BOMB = "a: &a [x]\n" + "".join(
    f"{k}: &{k} {NINE.format('*' + j)}\n" for j, k in zip("abcdefgh", "bcdefghi", strict=True)
)

BAD: dict[str, tuple[bytes | str, str]] = {
    "utf-16": (GOOD.encode("utf-16"), "is UTF-16, but it must be UTF-8; save it as UTF-8"),
    "latin-1": (("trainer: {}\n# \u00e9\n" + GOOD).encode("latin-1"), "is not UTF-8 .* in line 2.; save it as UTF-8"),
    "binary": (b"\x00\x01\x02" * 50, "control character in line 1, so it is binary"),
    "empty": ("", "is empty, but it must hold options"),
    "comment": ("# nothing\n", "is empty"),
    "list": ("- a\n- b\n", "holds a list, but it must be a mapping"),
    "scalar": ("hello", "holds a single value, but it must be a mapping"),
    "no options": ("trainer: [1, 2]\n", r"gives trainer as \[1, 2\], but it must be a mapping"),
    "options of a command": ("fit:\n  trainer: 3\n", "gives trainer as 3, but it must be a mapping of options"),
    "tab": ("model:\n\tclass_path: MAML\n", "line 2: a tab, where only spaces may indent"),
    "twice": ("model: {}\ntrainer: {max_steps: 1, max_steps: 2}\n", "says 'max_steps' in line 2 and again in line 2; keep one"),
    "sections": ("model: {}\ndata: {}\nmodel: {}\n", "says 'model' in line 1 and again in line 3; keep one of them"),
    "unclosed": ("model: {class_path: MAML\n", "is no YAML .line 2"),
    "two documents": (f"{GOOD}\n---\n{GOOD}", "is no YAML .*found another document"),
    "tag": ("model: !!python/object/apply:os.system ['touch pwned']\n", "is no plain YAML .*could not determine a constructor"),
    "deep": ("a: " + "[" * 5000 + "]" * 5000, "nested more than 40 levels deep"),
    "bomb": (BOMB, "holds more than 20,000 values"),
    "self": ("a: &a\n  b: *a\n", "refers to itself in line "),
    "list as key": ("? [a, b]\n: 3\n", "has a key in line 1 that is no text"),
    "large": ("a: " + "x" * 2_000_000, "has more than 1,048,576 bytes"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_config_is_one_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                  capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    content, message = BAD[name]
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_bytes(content.encode() if isinstance(content, str) else content)
    for command in (
        ["fit", "--config", "mine.yaml"],
        ["data", "info", "--config=mine.yaml"],
        ["fit", "--trainer", "mine.yaml"],
    ):
        with pytest.raises(SystemExit) as stopped:
            main(command)
        line = capsys.readouterr().err
        assert stopped.value.code == 2
        assert line.startswith("metalearn: error: config mine.yaml ")
        assert line.count("\n") == 1
        assert re.search(message, line), line
    assert os.listdir() == ["mine.yaml"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("folder", "config folder is a folder, but it must be a file"),
        ("pipe", "config pipe is a pipe or device"),
        ("/dev/zero", "config /dev/zero is a pipe or device"),
        ("x" * 300, r"\(302 characters\) is neither a file nor a shipped config"),
        ("a/" * 400, "is neither a file nor a shipped config"),
        ("", "config '' is neither a file nor a shipped config"),
        ("x\0y", "is neither a file nor a shipped config"),
        ("maml_glyph_5w1s.yaml", r"did you mean maml_glyphs_5w1s"),
    ],
)
def test_what_is_no_file_is_one_line(name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    os.mkfifo("pipe")
    with pytest.raises(ConfigError, match=message):
        config_path(name)


@pytest.mark.parametrize(
    "text", [GOOD.encode("utf-8-sig"), GOOD.replace("\n", "\r\n").encode()], ids=["mark", "windows"]
)
def test_a_byte_order_mark_and_windows_line_ends_are_read(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_bytes(text)
    assert read_config(tmp_path / "mine.yaml") == read_config(shipped_configs()["maml_glyphs_5w1s"])


def test_configs_come_before_options_wherever_they_stand(tmp_path: Path) -> None:
    """So that an option counts, and the class that it belongs to is known."""
    path = str(shipped_configs()["maml_sinusoid_10s"])
    given = [
        "fit",
        "--model.inner_steps",
        "2",
        "--config=maml_sinusoid_10s",
        "--trainer.max_steps=-1",
        "-cmaml_sinusoid_10s",
    ]
    resolved, name = prepare_arguments(given, tmp_path)
    assert resolved == ["fit", f"--config={path}", "-c", path, "--model.inner_steps", "2", "--trainer.max_steps=-1"]
    assert name == "maml_sinusoid_10s"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["fti"], "command is 'fti', but it must be one of fit, .*; did you mean fit"),
        (["Study"], "did you mean study"),
        (
            ["--trainer.max_steps", "3"],
            "a command comes first: fit, .*; write for example: metalearn fit --trainer.max_steps",
        ),
        (["fit", "\udcff"], "is not UTF-8"),
    ],
)
def test_what_is_no_command_is_one_line(args: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_command(args)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--config", "maml_glyphs_5w1s", "fit"], "write: metalearn fit --config maml_glyphs_5w1s"),
        (["fit", "--config"], "--config has no value"),
        (["fit", "--config", "--trainer.max_steps=3"], "--config has no value"),
        (["fit", "--model.inner_lr", "[" * 5000], "the value of --model.inner_lr is nested more than 40 levels deep"),
        (["fit", "--trainer", "{a: &a [*a]}"], "refers to itself"),
        (["fit", "--run_name", "x" * 200_000], "has 200,000 characters"),
    ],
)
def test_arguments_that_are_none_are_one_line(args: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        prepare_arguments(args, tmp_path)
