# %% [markdown]
"""
Sinusoids with uncertainty
==========================

The network gives a mean and a spread, and learns how noisy each place is.

The tasks are sinusoids whose noise grows from left to right. The network has two outputs, which the loss reads as a mean and a
variance. The loss is the negative logarithm of a Gaussian's density, in the inner loop as in the outer one.
"""

# %%
import logging

import lightning as L
import matplotlib.pyplot as plt
import numpy as np
import torch

from metalearn import MAML, MLP
from metalearn.datamodules import FunctionEpisodes
from metalearn.inner import GaussianNLL

STEPS = 1200  # the tests run 2
TASKS = 200  # the tests run 3
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
quiet = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)


# %%
def noise(x):
    return 0.05 + 0.1 * (x + 3)  # from 0.05 at the left to 0.65 at the right


def noisy_sinusoid(generator: np.random.Generator):
    amplitude, phase = generator.uniform(1.0, 2.5), generator.uniform(0, np.pi)
    x = generator.uniform(-3, 3, (70, 1))
    y = amplitude * np.sin(x - phase) + noise(x) * generator.normal(size=x.shape)
    return (x[:20], y[:20]), (x[20:], y[20:])


# %% [markdown]
# ``GaussianNLL`` also reads the outputs: as a mean, a spread, or a band.

# %%
L.seed_everything(0, verbose=False)
loss = GaussianNLL()
data = FunctionEpisodes(noisy_sinusoid, train_tasks=10 * STEPS, test_tasks=TASKS, tasks_per_batch=10)
module = MAML(
    MLP(outputs=2, inputs=1, hidden=[40, 40]),
    inner_steps=2,
    inner_lr="learn_per_element",
    initial_inner_lr=0.02,
    loss=loss,
    inner_clip_norm=10.0,
    outer_optimizer=lambda params: torch.optim.Adam(params, lr=2e-3),
)
trainer = L.Trainer(max_steps=STEPS, limit_val_batches=0, accelerator="cpu", **quiet)
trainer.fit(module, datamodule=data)


# %% [markdown]
# A band of two spreads should hold 95 % of new points. Whether it does is counted on all test tasks.


# %%
def predict(support, x, steps=None):
    outputs = module.adapt(support, steps=steps)(x)
    return loss.point(outputs)[:, 0], loss.deviation(outputs)[:, 0]


inside = []
for index in range(TASKS):
    support, query = data.episode(seed=1, split="test", index=index)
    mean, spread = predict(support, query.x)
    inside.append((query.y[:, 0] - mean).abs() < 1.96 * spread)
print(f"points inside of the 95 % band: {100 * torch.cat(inside).float().mean():.1f} %")

# %% [markdown]
# The band holds the noise of the data and what the model usually gets wrong. It says nothing about tasks of another kind.

# %%
plt.style.use("metalearn.reports.plain")
figure, axes = plt.subplots(1, 2, figsize=(8.5, 3.8), sharey=True)
support, query = data.episode(seed=1, split="test", index=0)
x = torch.linspace(-3, 3, 200)[:, None]
for axis, steps, title in zip(axes, (0, 2), ("Before adaptation", "After 2 inner steps"), strict=True):
    mean, spread = predict(support, x, steps)
    axis.fill_between(x[:, 0], mean - 1.96 * spread, mean + 1.96 * spread, alpha=0.2, label="95 % band")
    axis.plot(x, mean, label="mean")
    axis.scatter(query.x, query.y, s=8, color="0.6", label="new points")
    axis.scatter(support.x, support.y, s=26, color="black", marker="x", label="support")
    axis.set(xlabel="x", title=title)
axes[0].set_ylabel("y")
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
figure.savefig("sinusoid_noise.png")
