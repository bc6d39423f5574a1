# %% [markdown]
"""
The inner-steps curve
=====================

How far does a model get with every step of adaptation? The curve shows what it was trained for.

Two models are trained on Glyphs, letters of five classes with one example each. One takes a single inner step in training,
the other five. Both are then tested after 0, 1, ..., 10 steps.
"""

# %%
import logging

import lightning as L
import matplotlib.pyplot as plt

from metalearn import MAML, Conv4
from metalearn.datamodules import GlyphsDataModule

STEPS = 80  # the tests run 2
TEST_TASKS = 200  # the tests run 8
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
quiet = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)

# %% [markdown]
# ``test/acc_step_3`` is the test accuracy after three inner steps. A test measures all of them at once.


# %%
def train_and_test(inner_steps, inner_lr):
    L.seed_everything(0, verbose=False)
    network = Conv4(ways=5, hidden=16, downsample="stride")
    module = MAML(network, inner_steps=inner_steps, inner_lr=inner_lr, eval_inner_steps=10)
    data = GlyphsDataModule(ways=5, shots=1, queries=5, tasks_per_batch=8, test_tasks=TEST_TASKS)
    trainer = L.Trainer(max_steps=STEPS, limit_val_batches=0, accelerator="cpu", **quiet)
    trainer.fit(module, datamodule=data)
    (results,) = trainer.test(module, datamodule=data, verbose=False)
    return [100 * results[f"test/acc_step_{step}"] for step in range(11)]


curves = {1: train_and_test(1, inner_lr=0.4), 5: train_and_test(5, inner_lr=0.1)}

# %% [markdown]
# Before the first step both guess: labels mean nothing outside of their task. Most of the way is done in the first steps.

# %%
plt.style.use("metalearn.reports.plain")
figure, axis = plt.subplots()
for (steps, curve), marker in zip(curves.items(), "os", strict=True):
    axis.plot(curve, marker=marker, label=f"trained with {steps} inner step{'s' if steps > 1 else ''}")
axis.axhline(20, color="0.5", linestyle=":", label="chance")
axis.set(xlabel="inner steps at test", ylabel="test accuracy (%)", title=f"Glyphs, 5-way 1-shot, {STEPS} outer steps")
axis.legend()
figure.savefig("inner_steps_curve.png")
