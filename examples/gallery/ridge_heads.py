# %% [markdown]
"""
Ridge heads
===========

A head that is solved in closed form, beside one that takes gradient steps, by the number of shots.

Both networks learn features for five classes of letters with five examples each. One adapts its head by five gradient steps
(ANIL). The other's head is the ridge regression of the labels on the features, differentiated exactly (R2-D2, Bertinetto
et al. 2019). How strong the ridge is, and the scale of the outputs, are learned.
"""

# %%
import logging

import lightning as L
import matplotlib.pyplot as plt

from metalearn import ANIL, Conv4
from metalearn.datamodules import GlyphsDataModule

STEPS = 80  # the tests run 2
SHOTS = [1, 2, 5, 10]  # the tests run [1, 2]
TEST_TASKS = 200  # the tests run 8
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
quiet = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)


# %%
def make_data(shots):
    return GlyphsDataModule(ways=5, shots=shots, queries=5, tasks_per_batch=8, test_tasks=TEST_TASKS)


def train_and_test(**options):
    L.seed_everything(0, verbose=False)
    module = ANIL(Conv4(ways=5, hidden=16, downsample="stride"), **options)
    trainer = L.Trainer(max_steps=STEPS, limit_val_batches=0, accelerator="cpu", **quiet)
    trainer.fit(module, datamodule=make_data(shots=5))
    results = [trainer.test(module, datamodule=make_data(shots), verbose=False)[0] for shots in SHOTS]
    return [(100 * result["test/acc"], 100 * result["test/acc_ci95"]) for result in results]


runs = {
    "ridge regression": train_and_test(head_solver="ridge"),
    "5 gradient steps": train_and_test(inner_steps=5, inner_lr=0.1),
}

# %% [markdown]
# Both were trained with five shots alone, and are tested with one to ten. The bars are 95 % intervals over the test tasks.

# %%
plt.style.use("metalearn.reports.plain")
figure, axis = plt.subplots()
for (name, values), marker in zip(runs.items(), "os", strict=True):
    accuracies, intervals = zip(*values, strict=True)
    axis.errorbar(SHOTS, accuracies, intervals, marker=marker, capsize=3, label=name)
axis.axvline(5, color="0.5", linestyle=":", label="trained with 5 shots")
axis.set(xlabel="shots at test", ylabel="test accuracy (%)", title=f"Glyphs, 5-way, {STEPS} outer steps, one seed")
axis.set_xticks(SHOTS)
axis.legend(loc="lower right")
figure.savefig("ridge_heads.png")
