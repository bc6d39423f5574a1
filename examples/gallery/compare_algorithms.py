# %% [markdown]
"""
MAML against FOMAML against ANIL
================================

Three algorithms on the same tasks: all weights adapt, the same without second derivatives, and the head alone.

All take three inner steps on Glyphs, letters of five classes with one example each. They start from the same weights and see
the same tasks in the same order.
"""

# %%
import logging

import lightning as L
import matplotlib.pyplot as plt

from metalearn import ANIL, MAML, Conv4
from metalearn.datamodules import GlyphsDataModule

STEPS = 100  # the tests run 2
EVERY = 20  # the tests run 1
TEST_TASKS = 100  # the tests run 8
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
quiet = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)


# %% [markdown]
# A callback keeps the validation accuracy on the way.


# %%
class Curve(L.Callback):
    def __init__(self) -> None:
        self.points: list[tuple[int, float]] = []

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.points.append((trainer.global_step, 100 * float(trainer.callback_metrics["val/acc"])))


def train_and_test(algorithm, **options):
    L.seed_everything(0, verbose=False)
    module = algorithm(Conv4(ways=5, hidden=16, downsample="stride"), inner_steps=3, inner_lr=0.2, **options)
    data = GlyphsDataModule(ways=5, shots=1, queries=5, tasks_per_batch=4, val_tasks=40, test_tasks=TEST_TASKS)
    curve = Curve()
    trainer = L.Trainer(max_steps=STEPS, val_check_interval=EVERY, callbacks=[curve], accelerator="cpu", **quiet)
    trainer.fit(module, datamodule=data)
    (results,) = trainer.test(module, datamodule=data, verbose=False)
    return curve.points, 100 * results["test/acc"], 100 * results["test/acc_ci95"]


runs = {
    "MAML": train_and_test(MAML),
    "FOMAML": train_and_test(MAML, first_order=True),
    "ANIL": train_and_test(ANIL),
}
for name, (_, accuracy, interval) in runs.items():
    print(f"{name:7} test accuracy {accuracy:.1f} % ± {interval:.1f} over {TEST_TASKS} tasks")

# %% [markdown]
# This is one seed and a short training of a narrow network. Which algorithm is ahead in the end is another question, for
# several seeds and longer runs.

# %%
plt.style.use("metalearn.reports.plain")
figure, axis = plt.subplots()
for (name, (points, accuracy, interval)), marker in zip(runs.items(), "os^", strict=True):
    axis.plot(*zip(*points, strict=True), marker=marker, label=f"{name} (test {accuracy:.1f} % ± {interval:.1f})")
axis.axhline(20, color="0.5", linestyle=":", label="chance")
axis.set(xlabel="outer steps", ylabel="validation accuracy (%)", title="Glyphs, 5-way 1-shot, one seed")
axis.legend(loc="lower right")
figure.savefig("compare_algorithms.png")
