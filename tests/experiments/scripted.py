"""Trainings that are small scripts: they write the log of a run without a network."""

from __future__ import annotations

import sys
from pathlib import Path

from metalearn.experiments.parallel import Job
from metalearn.experiments.training import Training

SCRIPT = """
import pathlib, sys, time
home, value, waits, attempt = pathlib.Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3] == "True", sys.argv[4] == "True"
run = home / "version_0"
(run / "checkpoints").mkdir(parents=True, exist_ok=True)
with (home / "starts").open("a") as file:
    file.write(".")
if attempt and len((home / "starts").read_text()) == 1:
    sys.exit("metalearn: error: not at first")
rows = [f"{step},{value * (step + 1) / 10},," for step in (4, 9)] + [f"10,,{value},0.25"]
(run / "metrics.csv").write_text("\\n".join(["step,val/loss,test/loss,test/loss_ci95", *rows[:2], ""]))
if waits:
    time.sleep(100)
(run / "metrics.csv").write_text("\\n".join(["step,val/loss,test/loss,test/loss_ci95", *rows, ""]))
(run / "config.yaml").write_text("trainer: {max_steps: 10, default_root_dir: here}\\nrun_name: trial\\n")
(run / "checkpoints" / "best.ckpt").touch()
"""


class Scripted(Training):
    """Its validations are half its value, and its value; its test is its value."""

    value, waits, fails_first = 0.0, False, False

    def job(self) -> Job:
        script = [str(part) for part in (self.home, self.value, self.waits, self.fails_first)]
        return Job(self.name, [sys.executable, "-S", "-c", SCRIPT, *script], self.home, self.look)


def make_scripted(home: Path, value: float, waits: bool = False, fails_first: bool = False) -> Scripted:
    training = Scripted(home.name.replace("_", " "), home, [], "val/loss", 10)
    training.value, training.waits, training.fails_first = value, waits, fails_first
    return training
