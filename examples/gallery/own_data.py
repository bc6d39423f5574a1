# %% [markdown]
"""
Your own data set
=================

Any loader that yields episodes will do. Here a task is to tell three rings of points in the plane apart.

A LightningDataModule of your own gives the loaders. A module of ours trains on them under an ordinary Trainer.
"""

# %%
import logging

import lightning as L
import matplotlib.pyplot as plt
import torch
from torch.utils.data import DataLoader, Dataset

from metalearn import MAML, MLP, Batch, Episode

STEPS = 250  # the tests run 2
TEST_TASKS = 200  # the tests run 8
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
quiet = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)


# %% [markdown]
# An episode has a support set to adapt to, and a query set to be judged by. Each has inputs ``x`` and labels ``y``. The
# number of a task says which task it is, so training and test tasks differ.


# %%
class Rings(Dataset):
    """Tasks of three random rings of points, five examples of each."""

    def __init__(self, tasks: int, first: int) -> None:
        self.tasks, self.first = tasks, first

    def __len__(self) -> int:
        return self.tasks

    def __getitem__(self, index: int) -> Episode:
        generator = torch.Generator().manual_seed(self.first + index)
        radii = torch.randperm(4, generator=generator)[:3] + 0.5 + 0.5 * torch.rand(3, generator=generator)

        def points(count: int) -> Batch:
            y = torch.arange(3).repeat_interleave(count)
            angle = 6.28 * torch.rand(len(y), generator=generator)
            x = radii[y, None] * torch.stack([angle.cos(), angle.sin()], -1)
            return Batch(x + 0.05 * torch.randn(x.shape, generator=generator), y)

        return Episode(points(5), points(10))


class RingsDataModule(L.LightningDataModule):
    def train_dataloader(self) -> DataLoader:
        return DataLoader(Rings(8 * STEPS, 0), batch_size=8)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(Rings(16, 1_000_000), batch_size=8)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(Rings(TEST_TASKS, 2_000_000), batch_size=8)


# %%
L.seed_everything(0, verbose=False)
module = MAML(
    MLP(outputs=3, inputs=2, hidden=[64, 64]),
    inner_steps=3,
    inner_lr=0.3,
    outer_optimizer=lambda params: torch.optim.Adam(params, lr=3e-3),
)
trainer = L.Trainer(max_steps=STEPS, accelerator="cpu", **quiet)
trainer.fit(module, datamodule=RingsDataModule())
(results,) = trainer.test(module, datamodule=RingsDataModule(), verbose=False)
print(f"test accuracy {100 * results['test/acc']:.1f} % ± {100 * results['test/acc_ci95']:.1f}, chance is 33.3 %")

# %% [markdown]
# What a model of three test tasks has learned from its fifteen points. The colours are the classes that it predicts.

# %%
plt.style.use("metalearn.reports.plain")
figure, axes = plt.subplots(1, 3, figsize=(8, 3.2), sharex=True, sharey=True)
line = torch.linspace(-4.5, 4.5, 120)
plane = torch.cartesian_prod(line, line)
colours = plt.rcParams["axes.prop_cycle"].by_key()["color"][:3]
for index, axis in enumerate(axes):
    support, _ = Rings(3, 2_000_000)[index]
    predicted = module.adapt(support)(plane).argmax(1).view(120, 120)
    axis.contourf(line, line, predicted.T, levels=[-0.5, 0.5, 1.5, 2.5], colors=colours, alpha=0.25)
    for label, colour in enumerate(colours):
        axis.scatter(*support.x[support.y == label].T, color=colour, s=18, label=f"class {label}")
    axis.set(title=f"Test task {index}", aspect="equal")
    axis.grid(False)
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
figure.savefig("own_data.png")
