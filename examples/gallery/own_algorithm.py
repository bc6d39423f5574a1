# %% [markdown]
"""
Your own algorithm in 30 lines
==============================

An algorithm says which parameters adapt. Here a few context numbers do, and the network stays (CAVIA, Zintgraf et al. 2019).

The task is the regression of sinusoids from ten points. The network sees ``x`` beside two context numbers. The inner loop
moves these two alone. The outer loop trains everything else, and where they start.
"""

# %%
import logging

import lightning as L
import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn

from metalearn import MLP, MetaModule
from metalearn.datamodules import FunctionEpisodes
from metalearn.inner import InnerLoop, Learner

STEPS = 1200  # the tests run 2
TASKS = 300  # the tests run 3
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
quiet = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)


# %% [markdown]
# The algorithm: a network, a ``Learner`` that says what adapts, and a ``MetaModule`` that puts them together.


# %%
class WithContext(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.context = nn.Parameter(torch.zeros(size))
        self.network = MLP(outputs=1, inputs=1 + size, hidden=[40, 40])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(torch.cat([x, self.context.expand(len(x), -1)], 1))


class ContextLearner(Learner):
    def adapts(self, name: str) -> bool:
        return name == "context"


class CAVIA(MetaModule):
    """The inner loop adapts the context alone."""

    def __init__(self, backbone: nn.Module, inner_steps: int = 3, inner_lr: float = 0.5, loss: str = "mse") -> None:
        super().__init__(backbone, InnerLoop.of(locals()), learner=ContextLearner)


# %% [markdown]
# The tasks: sinusoids with an amplitude and a phase of their own. Everything else is an ordinary Lightning training.


# %%
def sinusoid(generator: np.random.Generator):
    amplitude, phase = generator.uniform(0.5, 3.0), generator.uniform(0, np.pi)
    x = generator.uniform(-5, 5, (25, 1))
    y = amplitude * np.sin(x - phase)
    return (x[:10], y[:10]), (x[10:], y[10:])


L.seed_everything(0, verbose=False)
data = FunctionEpisodes(sinusoid, train_tasks=25 * STEPS, test_tasks=TASKS)
module = CAVIA(WithContext(size=2))
trainer = L.Trainer(max_steps=STEPS, limit_val_batches=0, accelerator="cpu", **quiet)
trainer.fit(module, datamodule=data)
(results,) = trainer.test(module, datamodule=data, verbose=False)
print(f"test loss before adaptation {results['test/loss_step_0']:.3f}, after {results['test/loss']:.3f}")

# %% [markdown]
# What the two numbers have come to mean can be seen: tasks of like phase and amplitude have like contexts.

# %%
contexts, phases, amplitudes = [], [], []
for index in range(TASKS):
    support, _ = data.episode(seed=1, split="test", index=index)
    contexts.append(module.adapt(support).params["context"])
    basis = torch.cat([support.x.sin(), support.x.cos()], 1)  # y = a cos(p) sin(x) - a sin(p) cos(x)
    first, second = torch.linalg.lstsq(basis, support.y).solution[:, 0].tolist()
    amplitudes.append(np.hypot(first, second))
    phases.append(np.arctan2(-second, first))
contexts = torch.stack(contexts)

plt.style.use("metalearn.reports.plain")
figure, axes = plt.subplots(1, 2, figsize=(8, 3.8), sharey=True)
for axis, values, name in zip(axes, (phases, amplitudes), ("phase", "amplitude"), strict=True):
    points = axis.scatter(*contexts.T, c=values, s=14, cmap="viridis")
    axis.set(xlabel="first context number", title=f"Adapted contexts, colour by {name}")
    figure.colorbar(points, ax=axis)
axes[0].set_ylabel("second context number")
figure.savefig("own_algorithm.png")
