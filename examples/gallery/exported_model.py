# %% [markdown]
"""
An exported model
=================

A model that was adapted to one task, saved as a program that needs torch alone.

The network is adapted first. ``adapted.exported()`` makes a program of ``torch.export`` of it. That runs where this
package is not installed. ``adapted.export("sinusoid.onnx")`` writes an ONNX file in the same way.
"""

# %%
import logging
import tempfile
from pathlib import Path

import lightning as L
import matplotlib.pyplot as plt
import torch

from metalearn import MAML, MLP
from metalearn.datamodules import SinusoidDataModule

STEPS = 1000  # the tests run 2
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
quiet = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)

# %%
L.seed_everything(0, verbose=False)
network = MLP(outputs=1, inputs=1, hidden=[40, 40])
module = MAML(network, inner_steps=1, inner_lr=0.01, eval_inner_steps=10, loss="mse")
data = SinusoidDataModule(shots=10, queries=60, train_tasks=25 * STEPS)
trainer = L.Trainer(max_steps=STEPS, limit_val_batches=0, accelerator="cpu", **quiet)
trainer.fit(module, datamodule=data)

# %% [markdown]
# Adapt to a test task, and export what came of it. The number of queries may differ from call to call.

# %%
support, query = data.episode(seed=0, split="test", index=1)
adapted = module.adapt(support)
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "sinusoid.pt2"
    torch.export.save(adapted.exported(), path)
    print(f"{path.name}: {path.stat().st_size / 1024:.0f} KiB")
    loaded = torch.export.load(path).module()

x = torch.linspace(-5, 5, 200)[:, None]
difference = float((loaded(x) - adapted(x)).abs().max().detach())
print(f"largest difference between program and adapted model: {difference:.1e}")

# %%
plt.style.use("metalearn.reports.plain")
figure, axis = plt.subplots()
order = query.x[:, 0].argsort()
axis.plot(query.x[order, 0], query.y[order, 0], color="0.6", label="the task")
axis.plot(x, module.adapt(support, steps=0)(x), color="0.6", linestyle=":", label="before adaptation")
axis.plot(x, adapted(x), label="adapted model")
axis.plot(x[::8], loaded(x[::8]).detach(), "o", markersize=5, label="exported program")
axis.scatter(support.x, support.y, color="black", marker="x", zorder=3, label="support")
axis.set(xlabel="x", ylabel="y", title="The program gives what the adapted model gives")
axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
figure.savefig("exported_model.png")
