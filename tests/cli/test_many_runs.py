"""What a user gets wrong with ``seeds`` and ``sweep`` is one line, and nothing is left behind."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path

import pytest

from metalearn.cli import main
from metalearn.cli.seeds import read_seeds

TOO_MANY = str(len(os.sched_getaffinity(0)) + 1 if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1) + 1)


def refuse(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line."""
    with pytest.raises(SystemExit) as end:
        main(words)
    output = capsys.readouterr()
    assert end.value.code == 2
    assert output.out == ""
    (line,) = output.err.splitlines()
    return line.removeprefix("metalearn: error: ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("seeds --seeds 0", "seeds is '0', but there must be from 1 to 10,000; write --seeds 5"),
        ("seeds --seeds -3", "seeds is '-3', but it must be a number of seeds, or a list of them"),
        ("seeds --seeds 1,", "seeds is '1,', but it must be"),
        ("seeds --seeds 4,2,4", "seeds is 4,2,4, but 4 stands in it twice"),
        ("seeds --seeds 1,4294967296", "a seed must be less than 2^32"),
        ("seeds --seeds", "--seeds has no value"),
        ("seeds --seed 3", "option --seed does not exist; did you mean --seeds"),
        ("seeds --run_name mine", "option --run_name is not taken by metalearn seeds; use --output for the folder"),
        ("seeds --trainer.default_root_dir=x", "use --output for the folder"),
        ("seeds -c mine.yaml", "option -c is not taken by metalearn seeds; name the config as the first word"),
        ("seeds --config=mine.yaml", "name the config as the first word"),
        ("seeds --ckpt_path x", "the same command goes on by itself"),
        ("sweep", "set is missing"),
        ("sweep --set a=1 --trials 3", "trials is 3, but lists alone are tried in all combinations"),
        ("sweep --set a=1..3 --trials many", "trials is 'many', but it must be a whole number of at least 1"),
        ("sweep --set a=1 --a=3 --sett b=2", "option --a does not exist"),
        ("sweep --set model.inner_lr=1 --model.inner_lr 3", "option --model.inner_lr is given for all trials and in --set"),
        ("sweep --set model.inner_lr=1 --test_after_fit false", "add --test to test the best trial"),
        # these build the training
        ("seeds maml_glyphs_5w1 --seeds 2", "config 'maml_glyphs_5w1' is neither a file nor a shipped config; did you mean"),
        ("seeds --seed_everything 4", "option --seed_everything is set by every seed; leave it out"),
        ("seeds --data.train_seed=4", "option --data.train_seed is set by every seed"),
        (f"seeds --processes {TOO_MANY}", f"processes is {TOO_MANY}, but it must be from 1 to "),
        ("seeds --processes none", "processes is 'none', but it must be a whole number of at least 1"),
        ("sweep --set model.inner_stepz=1,2", "model.inner_stepz is no option here; did you mean inner_steps"),
        ("sweep --set model.inner_steps=1,0", "inner_steps is 0, but it must be a whole number, at least 1"),
        ("sweep --set data.ways=5,200", "ways is 200, but"),
        ("sweep --set model.inner_steps=1 --trainer.logger lightning.pytorch.loggers.CSVLogger --trainer.logger.save_dir x",
         "trainer.logger is .*metrics.csv; leave it out"),
    ],
)  # fmt: skip
def test_one_line(
    words: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    line = refuse(words.split(), capsys)
    assert re.search(message.replace("^", r"\^"), line), line
    assert not list(tmp_path.iterdir())


def test_a_sweep_names_the_extra_that_it_needs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr("metalearn.cli.sweep.find_spec", lambda name: None if name == "optuna" else find(name))
    line = refuse(["sweep", "--set", "model.inner_lr=1,2"], capsys)
    assert line == "a sweep needs Optuna, which is not installed; pip install 'metalearn-lightning[sweep]'"


def test_seeds_are_a_number_or_a_list() -> None:
    assert read_seeds("3") == [0, 1, 2]
    assert read_seeds("7, 3") == [7, 3]


@pytest.mark.parametrize("command", ["seeds", "sweep"])
def test_help_fits_a_terminal(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert f"metalearn {command} maml_glyphs_5w1s" in text
