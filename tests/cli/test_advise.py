"""``metalearn fit --advise``: the step size is measured, said, logged, drawn, and set where that is asked for."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from metalearn import MAML, MLP, StepSizeAdvisor
from metalearn.carried import read_checkpoint
from metalearn.cli import main
from metalearn.cli.run_callbacks import make_advisors

SMALL = [
    "--config", "maml_sinusoid_10s", "--trainer.accelerator", "cpu", "--data.tasks_per_batch", "4", "--data.train_tasks", "40",
    "--data.val_tasks", "4", "--data.test_tasks", "4", "--trainer.log_every_n_steps", "1",
    "--trainer.enable_progress_bar", "false",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def fit(capsys: pytest.CaptureFixture[str], *options: str, steps: int = 2) -> dict[str, Any]:
    main(["fit", *SMALL, "--trainer.max_steps", str(steps), "--json", *options])
    summary: dict[str, Any] = json.loads(capsys.readouterr().out)
    return summary


def test_a_wrong_step_size_is_set_kept_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    summary = fit(capsys, "--model.inner_lr", "500", "--advise", "apply", "--run_name", "advised")
    step_sizes = summary["training"]["step_sizes"]
    applied = 500 * step_sizes["applied"]
    assert 1e-3 < applied < 1
    assert step_sizes["advice"][0]["inner_lr"] == pytest.approx(applied)
    folder = Path(summary["folder"])
    with (folder / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["advice/alpha_L_N"]]
    assert float(rows[0]["advice/inner_lr"]) == pytest.approx(applied)
    last = folder / "checkpoints" / "last.ckpt"
    checkpoint = read_checkpoint(last)
    assert checkpoint["hyper_parameters"]["inner_lr"] == pytest.approx(applied)
    config = yaml.safe_load(checkpoint["metalearn"]["config"])
    assert config["model"]["init_args"]["inner_lr"] == pytest.approx(applied)
    tested = json.loads(run_quiet(capsys, "test", "--ckpt_path", str(last), "--json"))
    assert tested["test"]["loss"]["mean"] == pytest.approx(summary["test"]["loss"]["mean"], rel=0.5)
    more = fit(
        capsys, "--model.inner_lr", "500", "--advise", "apply", "--ckpt_path", str(last), "--run_name", "on", steps=4
    )
    assert more["training"]["step_sizes"]["applied"] == pytest.approx(step_sizes["applied"])


def run_quiet(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    main(list(words))
    return capsys.readouterr().out


def test_advice_alone_changes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    losses = [fit(capsys, *options)["test"]["loss"] for options in ([], ["--advise", "true"])]
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--advise", "sometimes"], "advise"),
        (["--advise", "true", "--model.inner_optimizer", "adam"], "inner_optimizer is 'adam'"),
        (["--advise", "true", "--model", "ProtoNet"], "takes no inner steps of given sizes"),
    ],
)
def test_what_cannot_be_advised_is_one_line(options: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    small = [*SMALL, "--trainer.max_steps", "1"]
    if "ProtoNet" in options:
        small = ["--config", "protonet_glyphs_5w1s", "--trainer.max_steps", "1"]
        options = options[:2]
    with pytest.raises(SystemExit) as stopped:
        main(["fit", *small, *options])
    assert stopped.value.code == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("metalearn: error")]
    assert len(errors) == 1
    assert text in errors[0]


def test_nothing_is_advised_where_nothing_is_trained(caplog: pytest.LogCaptureFixture) -> None:
    module = MAML(MLP(), loss="mse")
    assert make_advisors(True, "test", [], module) == []
    assert "advise is left out, since test trains nothing" in caplog.text
    assert [advisor.apply for advisor in (*make_advisors("apply", "fit", [], module),)] == [True]  # type: ignore[attr-defined]
    assert make_advisors(True, "fit", [StepSizeAdvisor(every=7)], module) == []  # the user's own is there
