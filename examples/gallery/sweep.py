# %% [markdown]
"""
A sweep
=======

Six trainings find out which step size and how many inner steps suit a short training. Optuna keeps the books.

``metalearn sweep`` trains a configuration with all combinations of the values that it is given. It compares them by their
validation, never by the test. It needs the extra ``sweep``: ``pip install 'metalearn-lightning[sweep]'``.
"""

# %%
import csv
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

STEPS = 40  # the tests run 2
RATES = [0.05, 0.2, 0.8]  # the tests run [0.05, 0.2]
INNER_STEPS = [1, 3]  # the tests run [1]

# %% [markdown]
# All other options are those of ``metalearn fit``. Two trainings run at a time.

# %%
OPTIONS = f"""
    --processes 2 --no_pruning
    --set model.initial_inner_lr={",".join(map(str, RATES))} --set model.inner_steps={",".join(map(str, INNER_STEPS))}
    --trainer.max_steps {STEPS} --trainer.val_check_interval {STEPS} --trainer.accelerator cpu
    --model.backbone.init_args.hidden 16 --data.tasks_per_batch 4 --data.queries 5 --data.val_tasks 40
    --data.test_tasks 8
""".split()

with tempfile.TemporaryDirectory() as folder:
    command = [sys.executable, "-m", "metalearn", "sweep", "maml_glyphs_5w1s", "--output", "sweep", *OPTIONS]
    subprocess.run(command, cwd=folder, capture_output=True, check=True)
    (table,) = Path(folder).glob("sweep/*.csv")
    rows = list(csv.DictReader(table.open()))
for row in sorted(rows, key=lambda row: -float(row["val/acc"])):
    values = f"step size {row['model.initial_inner_lr']}, inner steps {row['model.inner_steps']}"
    print(f"{values}: validation accuracy {100 * float(row['val/acc']):.1f} %")

# %% [markdown]
# The folder of a sweep has this table as ``trials.csv``, a picture, and the best configuration as ``best.yaml``.

# %%
accuracies = np.full((len(INNER_STEPS), len(RATES)), np.nan)
for row in rows:
    place = INNER_STEPS.index(int(row["model.inner_steps"])), RATES.index(float(row["model.initial_inner_lr"]))
    accuracies[place] = 100 * float(row["val/acc"])

plt.style.use("metalearn.reports.plain")
figure, axis = plt.subplots(figsize=(5.6, 3.2))
image = axis.imshow(accuracies, cmap="Blues", aspect="auto")
for (line, column), accuracy in np.ndenumerate(accuracies):
    dark = accuracy > np.nanmean(accuracies)
    axis.text(column, line, f"{accuracy:.1f} %", ha="center", va="center", color="white" if dark else "black")
axis.set_xticks(range(len(RATES)), RATES)
axis.set_yticks(range(len(INNER_STEPS)), INNER_STEPS)
axis.set(xlabel="inner step size at the start", ylabel="inner steps", title=f"Validation accuracy after {STEPS} steps")
axis.grid(False)
figure.savefig("sweep.png")
