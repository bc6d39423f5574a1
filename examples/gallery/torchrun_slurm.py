# %% [markdown]
"""
torchrun and SLURM
==================

One training script for a laptop, ``torchrun`` and a cluster, and a picture of which process trains on which tasks.

The script asks its surroundings how many processes there are. Everything else is an ordinary Trainer.
"""

# %%
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt

from metalearn.datamodules import GlyphsDataModule

STEPS = 6  # the tests run 2
TRAIN = f"""
import json, os
import lightning as L
from metalearn import MAML, Conv4
from metalearn.datamodules import GlyphsDataModule

surroundings = os.environ
devices = int(surroundings.get("LOCAL_WORLD_SIZE") or surroundings.get("SLURM_NTASKS_PER_NODE") or 1)
nodes = int(surroundings.get("GROUP_WORLD_SIZE") or surroundings.get("SLURM_NNODES") or 1)

class Diary(L.Callback):
    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        marks = [float(x.double().sum()) for x in batch.support.x]  # by which a task is known again
        with open(f"rank{{trainer.global_rank}}.jsonl", "a") as file:
            print(json.dumps([batch_idx, marks]), file=file)

L.seed_everything(0)
trainer = L.Trainer(
    max_steps={STEPS}, devices=devices, num_nodes=nodes, strategy="ddp" if devices * nodes > 1 else "auto",
    accelerator="cpu", callbacks=[Diary()], limit_val_batches=0, logger=False, enable_checkpointing=False,
)
trainer.fit(MAML(Conv4(hidden=16)), datamodule=GlyphsDataModule(ways=5, shots=1, queries=5, tasks_per_batch=4))
"""

# %% [markdown]
# On a cluster, SLURM starts the processes. This is a job for two machines with four GPUs each, once the script says
# ``accelerator="gpu"``. Lightning saves the run at the signal, and queues the job again. It is submitted by ``sbatch job.sh``.

# %%
JOB = """#!/bin/bash
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=02:00:00
#SBATCH --signal=SIGUSR1@90

srun python train.py
"""

# %% [markdown]
# What runs here is ``torchrun --nproc_per_node 2 train.py``, on the CPU. The job itself needs a cluster, and was not run on
# one: two processes with SLURM's variables set by hand have trained on the CPU.

# %%
with tempfile.TemporaryDirectory() as folder:
    Path(folder, "train.py").write_text(TRAIN)
    Path(folder, "job.sh").write_text(JOB)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "train.py"]
    subprocess.run(torchrun, cwd=folder, check=True, capture_output=True)
    diaries = [Path(folder, f"rank{rank}.jsonl").read_text().splitlines() for rank in range(2)]

# %% [markdown]
# A task is a function of its number. So each task of the diaries is known by comparing it with those numbers.

# %%
data = GlyphsDataModule(ways=5, shots=1, queries=5)
known = {}
for number in range(8 * STEPS):
    support, _ = data.episode(seed=data.seed, split="train", index=number)
    known[round(float(support.x.double().sum()), 3)] = number
trained = [
    [(step, known[round(mark, 3)]) for step, marks in map(json.loads, diary) for mark in marks] for diary in diaries
]
print(f"{len(set(trained[0]) & set(trained[1]))} tasks were seen by both processes")

# %%
plt.style.use("metalearn.reports.plain")
figure, axis = plt.subplots()
for rank, (points, marker) in enumerate(zip(trained, "os", strict=True)):
    steps, numbers = zip(*points, strict=True)
    axis.plot([step + 0.16 * rank - 0.08 for step in steps], numbers, marker, markersize=3.5, label=f"process {rank}")
axis.set(xlabel="outer step", ylabel="number of the task", title="No task is trained on twice")
axis.set_xticks(range(STEPS))
axis.legend()
figure.savefig("torchrun_slurm.png")
