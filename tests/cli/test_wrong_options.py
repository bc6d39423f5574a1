"""Whatever a user gets wrong on the command line is one line with exit code 2, before anything is written or printed."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from metalearn.cli import main
from metalearn.cli.lightning_cli import MetaCLI
from tests.cli.wrong_values import wrong_values

Refused = Callable[..., str]


@pytest.fixture
def one_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    """Builds the parser, which takes longer than anything else here, once."""
    made: dict[str, Any] = {}
    build = MetaCLI.setup_parser

    def setup_parser(cli: MetaCLI, *given: Any) -> None:
        if not made:
            before = set(vars(cli))
            build(cli, *given)
            made.update({name: value for name, value in vars(cli).items() if name not in before})
        vars(cli).update(made)

    monkeypatch.setattr(MetaCLI, "setup_parser", setup_parser)


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Refused:
    """Runs a command whose training is left out, and gives the one line that it must end with."""
    monkeypatch.chdir(tmp_path)
    for command in ("fit", "validate", "test", "predict"):
        run_nothing = wraps(getattr(L.Trainer, command))(lambda *args, **options: print("ran"))
        monkeypatch.setattr(L.Trainer, command, run_nothing)

    def run(*args: str) -> str:
        try:
            main(list(args))
            code: object = 0
        except SystemExit as stopped:
            code = stopped.code
        out, err = capfd.readouterr()
        assert (code, out) == (2, ""), (args, out, err)
        assert err.startswith("metalearn: error: "), (args, err)
        assert err.endswith("\n"), (args, err)
        assert err[:-1].isprintable(), (args, err)  # one line, and nothing that a terminal would obey
        assert not err.rstrip().endswith((":", "one of")), (args, err)
        assert "Subtypes" not in err, (args, err)
        assert "NestedArg" not in err, (args, err)
        assert len(err) < 900, (args, err)
        assert not os.listdir(), (args, os.listdir())
        return err.removeprefix("metalearn: error: ").rstrip()

    return run


@pytest.mark.long
@pytest.mark.usefixtures("one_parser")
def test_every_wrong_value_is_one_line(refused: Refused) -> None:
    """250 options with wrong values, before or behind what is right."""
    right = [[], ["--trainer.log_every_n_steps", "1"], ["--trainer.max_steps=3"], ["--config", "maml_glyphs_5w1s"]]

    @settings(
        max_examples=250, derandomize=True, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.sampled_from(wrong_values()), st.sampled_from(right), st.booleans(), st.booleans())
    def check(case: tuple[str, str], beside: list[str], joined: bool, last: bool) -> None:
        name, value = case
        wrong = [f"--{name}={value}"] if joined or value.startswith("-") else [f"--{name}", value]
        if beside and f"--{name}" == beside[0].partition("=")[0]:
            beside = []
        line = refused("fit", *(beside + wrong if last else wrong + beside))
        # of a mapping its own key may be named
        named = [name.rpartition(".")[2], *re.findall(r"\w+(?=:)", value)]
        assert any(each in line for each in named) or name in NAMED_OTHERWISE, (
            case,
            line,
        )

    check()


NAMED_OTHERWISE = ("data", "model", "trainer", "trainer.callbacks", "start_from")
"""The line speaks of their class, or of the checkpoint."""

MISSPELLED = [
    ("fit --model MALM", "did you mean MAML?"), ("fit --model.inner_step 3", "did you mean inner_steps"),
    ("fit --model.inner_ 3", "is no option here; did you mean inner_lr"), ("fit --inner_steps 3", "mean --model.inner_steps?"),
    ("fit --shots 5", "did you mean --data.shots?"), ("fit --model MAML --model.backbone Conv5", "did you mean Conv4?"),
    ("fit --model.backbone.hid 3", "did you mean hidden?"), ("fit --data Omniglot", "did you mean OmniglotDataModule?"),
    ("fit --trainer.max_step 3", "did you mean --trainer.max_steps?"), ("fit --max_steps 3", "mean --trainer.max_steps?"),
    ("fit --conf maml_glyphs_5w1s", "did you mean --config?"), ("fit --config maml_glyph_5w1s", "mean maml_glyphs_5w1s"),
    ("fit maml_glyphs_5w1s", "write --config maml_glyphs_5w1s"), ("fit --model.norm transductiv", "mean transductive?"),
    ("fit --test_after true", "did you mean --test_after_fit?"), ("fit --seed 3", "did you mean --seed_everything"),
    ("fit --jsn", "did you mean --json?"), ("fit --model.help MALM", "no such class; did you mean MAML?"),
    ("fit --data.help Omniglot", "did you mean OmniglotDataModule?"), ("fit --model.hlep MAML", "did you mean help?"),
    ("fit --model.backbone.help Conv", "did you mean Conv4?"), ("fit --model.backbone.help", "write --model.backbone.help CLASS"),
    ("test --ckpt x", "did you mean --ckpt_path?"), ("predict --supp x --query y", "did you mean --support?"),
    ("predict --ckpt_path x --support x --query y --outp z", "did you mean --output?"), ("data inof", "did you mean info?"),
    ("data info --dat GlyphsDataModule", "did you mean --data?"), ("data --conf x info", "did you mean --config?"),
    ("data info --data GlyphsDataModule --data.variant 3", "did you mean variants?"), ("study newsgroup", "mean newsgroups?"),
    ("study few_shot --second 3", "did you mean --seconds?"), ("tset", "did you mean test?"), ("train", "did you mean fit?"),
]  # fmt: skip


@pytest.mark.usefixtures("one_parser")
def test_what_is_misspelled_or_cut_short_is_named_beside_what_was_meant(refused: Refused) -> None:
    """Nothing is taken for what it begins like."""
    wrong = {words: line for words, meant in MISSPELLED if meant not in (line := refused(*words.split()))}
    assert not wrong


@pytest.mark.parametrize(("words", "line"), [
    (["--trainer.callbacks", "EarlyStopping"], "trainer.callbacks.monitor is missing; give it"),
    (["--trainer.callbacks+=EarlyStopping"], "trainer.callbacks.monitor is missing; give it"),
    (["--trainer.callbacks", "EarlyStopping", "--trainer.callbacks.patience", "x"], "trainer.callbacks.patience is 'x', but"),
])  # fmt: skip
def test_a_fault_within_one_of_several_types_is_named(words: list[str], line: str, refused: Refused) -> None:
    assert line in refused("fit", *words)
