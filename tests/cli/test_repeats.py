"""An option that stands twice: the last value counts, and one line says so, however many trainings take it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from metalearn.cli import main
from metalearn.cli.arguments import prepare_arguments
from metalearn.cli.repeats import drop_repeats
from tests.experiments.scripted import Scripted, make_scripted


def count_warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "given twice" in record.getMessage()]


def test_seeds_say_it_once_and_hand_on_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    started: list[Sequence[str]] = []

    def make(name: str, home: Path, options: Sequence[str], monitor: str, most: int | None) -> Scripted:
        started.append(options)
        return make_scripted(home, 1.0 + len(started))

    monkeypatch.setattr("metalearn.cli.seed_runs.Training", make)
    monkeypatch.chdir(tmp_path)
    twice = ["--model.inner_steps", "1", "--trainer.max_steps=3", "--model.inner_steps=2"]
    main(["seeds", "--seeds", "2", "--processes", "1", *twice])
    (line,) = count_warnings(caplog)
    assert line == "--model.inner_steps is given twice; '2' counts, which stands last"
    assert len(started) == 2
    for words in started:
        assert [word for word in words if word.startswith("--model")] == ["--model.inner_steps=2"]
        caplog.clear()
        prepare_arguments(["fit", *words], tmp_path)
        assert count_warnings(caplog) == []


@pytest.mark.parametrize(
    ("words", "kept", "said"),
    [
        ("--a 1 --b 2", "--a=1 --b=2", 0),
        ("--a 1 --b 2 --a=1", "--a=1 --b=2", 0),
        ("--a 1 --a 2 --a 3", "--a=3", 1),
        ("--model MAML --model.x 1 --model ANIL --model.x 2", "--model=ANIL --model.x=2", 2),
        ("--t.callbacks+=A --t.callbacks+ B", "--t.callbacks+ A --t.callbacks+ B", 0),
        ("--config a --config b -c c", "--config a --config b -c c", 0),
        ("--a -1 --a -2 --flag --b c", "--a=-2 --flag --b=c", 1),
        ("--a= --a=x=y", "--a=x=y", 1),
    ],
)
def test_each_option_stands_once(words: str, kept: str, said: int, caplog: pytest.LogCaptureFixture) -> None:
    assert " ".join(drop_repeats(words.split())) == kept
    assert len(count_warnings(caplog)) == said
