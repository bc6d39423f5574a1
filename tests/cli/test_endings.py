"""How runs end: what is saved, what is said, with which exit code, and how they go on."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from metalearn.cli import main
from tests.cli.test_configs import SMALL, TINY
from tests.modules.training.test_checkpoint_io import full_disk

RUN = Path("runs/maml_glyphs_5w1s/version_0")
LAST = RUN / "checkpoints/last.ckpt"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def fit(*args: object, steps: int = 6) -> None:
    main(["fit", *SMALL, *TINY, "--data.train_tasks", "8", "--trainer.max_steps", str(steps), *map(str, args)])


def weights(path: Path = LAST) -> dict[str, Any]:
    found = torch.load(path, weights_only=True)
    return {"step": found["global_step"], **found["state_dict"], **found["current_model_state"]}


def check_alike(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0)


def send(name: str, where: str, step: int = 3) -> list[object]:
    """The argument that adds the signal beside the configuration's own callbacks."""
    return ["--trainer.callbacks+=tests.cli.ending_callbacks.SignalAt", "--trainer.callbacks.name", name,
            "--trainer.callbacks.where", where, "--trainer.callbacks.step", step]  # fmt: skip


def test_a_run_shorter_than_a_validation_is_saved(capsys: pytest.CaptureFixture[str]) -> None:
    """And what goes on from it, in the middle of an epoch, is the run that was not cut short, in the same folder."""
    plain = ["--model.outer_scheduler", "null", "--test_after_fit"]  # a cosine would know where the run ends
    fit(*plain, "false", "--run_name", "whole")
    fit(*plain, "true", steps=3)
    assert weights()["step"] == 3
    assert not (RUN / "checkpoints/best.ckpt").exists()
    assert f"test --ckpt_path {LAST}" in capsys.readouterr().out
    fit(*plain, "false", "--ckpt_path", "last")
    assert [each.name for each in RUN.parent.iterdir()] == [RUN.name]
    check_alike(weights(), weights(Path("runs/whole/version_0/checkpoints/last.ckpt")))
    steps = [row.split(",")[1] for row in (RUN / "metrics.csv").read_text().splitlines()[1:]]
    assert [step for step in steps if step in "012345"] == list(
        "0123345"
    )  # the validation's row is at the fourth step's
    capsys.readouterr()
    fit(*plain, "false", "--ckpt_path", LAST)
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "nothing was left to train: step 6 is at the end that max_steps 6 sets" in said


@pytest.mark.parametrize(
    ("name", "where", "step"), [("SIGTERM", "train", 3), ("SIGINT", "val", 4), ("SIGINT", "test", 6)]
)
def test_a_signal_ends_a_run_after_its_step(
    name: str, where: str, step: int, capsys: pytest.CaptureFixture[str]
) -> None:
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stopped:
        fit(*send(name, where, step))
    assert stopped.value.code == 128 + signal.Signals[name]
    assert handlers == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
    told = capsys.readouterr().err.splitlines()
    assert not any("Traceback" in line or "KeyboardInterrupt" in line for line in told)
    (line,) = [line for line in told if line.startswith("metalearn: ")]
    assert weights()["step"] == step
    if where == "test":
        assert line.startswith(f"metalearn: stopped by {name} after training; test it with: python -m metalearn test ")
        return
    assert line.startswith(f"metalearn: stopped by {name} at step {step}; go on with: python -m metalearn resume ")
    command = shlex.split(line.split("go on with: python -m metalearn ")[1])
    config = Path(command[1]) / "config.yaml"
    text = config.read_text()
    config.write_text(text.replace("where: train", "where: never").replace("where: val", "where: never"))
    main([*command, "--test_after_fit", "false"])
    fit("--run_name", "whole", "--test_after_fit", "false")
    assert [each.name for each in RUN.parent.iterdir()] == [RUN.name]
    check_alike(weights(), weights(Path("runs/whole/version_0/checkpoints/last.ckpt")))


def test_a_full_disk_is_one_line_that_says_what_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    fit("--trainer.fast_dev_run", "true")  # packs the images
    with full_disk(10_000), pytest.raises(SystemExit) as stopped:
        fit(steps=3)
    assert stopped.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"metalearn: error: checkpoint {LAST} cannot be written (")
    assert not list(Path().iterdir())


def test_a_failure_after_training_keeps_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        fit("--model.inner_lr", "1e30", "--trainer.limit_train_batches", "0")
    assert stopped.value.code == 2
    assert not list(Path().iterdir())  # nothing was trained, so nothing is left
    with pytest.raises(RuntimeError, match="broken"):
        fit("--trainer.callbacks+=tests.cli.ending_callbacks.BrokenTest", steps=2)
    assert f"the state of step 2 is kept in {LAST}" in capsys.readouterr().err
    assert weights()["step"] == 2


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["--ckpt_path", "last"], r"ckpt_path is 'last', but no run in runs/maml_glyphs_5w1s has a last.ckpt"),
        (
            ["--trainer.val_check_interval", "5"],
            "`val_check_interval` (5) must be less than or equal to the number of the training",
        ),
        (["--trainer.devices", "999"], r"trainer.devices is 999, but each is a process"),
        (["--trainer.callbacks", "BatchSizeFinder"], r"batch_arg_name tasks_per_batch"),
        (["--trainer.callbacks", "tests.cli.ending_callbacks.NeedsPackage"], "`shapes` is not installed"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    args: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        fit(*args)
    assert stopped.value.code == 2
    assert told in capsys.readouterr().err
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["--trainer.overfit_batches", "1"], "2 steps"),
        (["--trainer.barebones", "true"], "2 steps"),
        (["--trainer.limit_test_batches", "0"], "2 steps"),
        (["--trainer.callbacks", "Timer"], "2 steps"),
        (["--trainer.limit_val_batches", "0"], "2 steps"),
        (["--trainer.accumulate_grad_batches", "2"], "2 steps"),
        (["--trainer.fast_dev_run", "true"], ""),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_options_of_the_trainer_work(args: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    fit(*args, steps=2)
    assert told in capsys.readouterr().out


def test_ctrl_c_during_the_imports_is_quiet() -> None:
    for wait in (0.15, 0.6):
        process = subprocess.Popen(
            [sys.executable, "-m", "metalearn", "fit"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        time.sleep(wait)
        process.send_signal(signal.SIGINT)
        out, told = process.communicate(timeout=60)
        if process.returncode == -signal.SIGINT or "site" in told:
            continue  # the machine is so slow that Python itself was still starting
        assert (process.returncode, out, told) == (130, "", "")


def test_a_second_ctrl_c_ends_at_once(tmp_path: Path) -> None:
    code = (
        "import os, signal, time; from metalearn.cli.interrupts import Signals; s = Signals(); s.handle(); s.deferred = True;"
        "os.kill(os.getpid(), 2); os.kill(os.getpid(), 2); print('once', flush=True); time.sleep(0.4);"
        "os.kill(os.getpid(), 2); print('never')"
    )
    done = subprocess.run(
        [sys.executable, "-c", "import sys, types; sys.modules['metalearn'] = p = types.ModuleType('metalearn');"
         f"p.__path__ = [{str(Path(__file__).parents[2] / 'metalearn')!r}];" + code],
        capture_output=True, text=True, timeout=60, check=False, env=os.environ,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (130, "once\n", "")
