# %% [markdown]
"""
Several processes
=================

Two processes train on half of the tasks each, and come to the weights that one process comes to.

The command line starts them: ``--trainer.devices 2 --trainer.strategy ddp``. Here both run on the CPU and talk by gloo. On a
machine with GPUs each takes one of its own, and they talk by NCCL.
"""

# %%
import csv
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt

STEPS = 20  # the tests run 4
OPTIONS = f"""
    --trainer.max_steps {STEPS} --trainer.log_every_n_steps 1 --trainer.limit_val_batches 0 --trainer.accelerator cpu
    --model.backbone.init_args.hidden 16 --data.queries 5 --data.test_tasks 50
""".split()


# %% [markdown]
# One process with eight tasks a step, and two with four tasks each. The tasks of a step are the same eight.


# %%
def train(*options):
    """The training loss by step, and what the run has printed."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "metalearn", "fit", *OPTIONS, *options]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
        (metrics,) = Path(folder).glob("runs/*/version_0/metrics.csv")
        rows = [row for row in csv.DictReader(metrics.open()) if row["train/loss"]]
    return [int(row["step"]) for row in rows], [float(row["train/loss"]) for row in rows], done.stdout


steps, losses, printed = train("--data.tasks_per_batch", "8")
ddp = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
_, losses_of_two, printed_by_two = train("--data.tasks_per_batch", "4", *ddp)

# %% [markdown]
# The test tasks are shared out, too, each to one process. The accuracy and its interval are over all of them.

# %%
for name, text in (("one process", printed), ("two processes", printed_by_two)):
    (line,) = (line.strip("│ ") for line in text.splitlines() if "test accuracy" in line)
    print(f"{name}: {line}")
difference = max(abs(a - b) for a, b in zip(losses, losses_of_two, strict=True))
print(f"largest difference of the training losses: {difference:.1e}")

# %%
plt.style.use("metalearn.reports.plain")
figure, axis = plt.subplots()
axis.plot(steps, losses, linewidth=5, alpha=0.35, label="one process, 8 tasks a step")
axis.plot(steps, losses_of_two, "o--", markersize=4, label="two processes, 4 tasks a step each")
axis.set(xlabel="outer step", ylabel="training loss", title="The same training on one process and on two")
axis.set_xticks(steps[::5])
axis.legend()
figure.savefig("several_processes.png")
