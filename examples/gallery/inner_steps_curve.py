# %% [markdown]
"""
The inner-steps curve
=====================

How far does a model get with every step of adaptation? The curve shows it, for one and five labelled examples a class.

The model is MAML, trained on letters of Latin and Greek with one example of each class and one inner step. Its checkpoint is
installed with the package. It is tested here on Armenian and Georgian letters.
"""

# %%
import logging

import lightning as L
import matplotlib.pyplot as plt

from metalearn import MAML
from metalearn.datamodules import GlyphsDataModule

SHOTS = [1, 5]  # the tests run [1, 2]
TEST_TASKS = 50  # the tests run 4
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

# %% [markdown]
# ``test/acc_step_3`` is the test accuracy after three inner steps. A test measures all of them at once.

# %%
module = MAML.load_from_checkpoint("maml_glyphs_5w1s", eval_inner_steps=10)
trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
curves = {}
for shots in SHOTS:
    data = GlyphsDataModule(ways=5, shots=shots, queries=5, test_tasks=TEST_TASKS)
    (results,) = trainer.test(module, datamodule=data, verbose=False)
    curves[shots] = [100 * results[f"test/acc_step_{step}"] for step in range(11)]
    print(f"{shots:2} shots: {curves[shots][1]:.1f} % after one step, {curves[shots][-1]:.1f} % after ten")

# %% [markdown]
# Before the first step both guess: labels mean nothing outside of their task. The first step does most of the way. The
# learned step sizes are those of one step on one shot, so the next steps on five shots overshoot at first.

# %%
plt.style.use("metalearn.reports.plain")
figure, axis = plt.subplots()
for (shots, curve), marker in zip(curves.items(), "os", strict=True):
    label = f"{shots} shot{'s' if shots > 1 else ''} ({curve[0]:.0f} % before the first step)"
    axis.plot(range(1, 11), curve[1:], marker=marker, label=label)
axis.set(xlabel="inner steps at test", ylabel="test accuracy (%)", title="Glyphs, 5 classes, MAML trained with 1 shot")
axis.legend(loc="lower right")
figure.savefig("inner_steps_curve.png")
