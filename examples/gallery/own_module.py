# %% [markdown]
"""
A module of your own on our data
================================

Prototypical networks (Snell et al. 2017) as a LightningModule: a query gets the class whose mean support feature is nearest.

It needs nothing of ours but the data. With the last three members it joins the summary and the pictures of the command line,
with its best checkpoint tested::

    metalearn fit --model own_module.Prototypes --data GlyphsDataModule --data.queries 5 --trainer.max_steps 300
"""

# %%
import logging
from pathlib import Path

import lightning as L
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

from metalearn import Conv4, Episode
from metalearn.datamodules import GlyphsDataModule
from metalearn.reports.outcome import Picture, RunRecord
from metalearn.reports.pictures import pyplot, save_figure

STEPS = 200  # the tests run 2
TEST_TASKS = 200  # the tests run 8


# %%
class Prototypes(L.LightningModule):
    """Classifies a query by the nearest mean of support features."""

    checkpoint_monitor = ("val/acc", "max")

    def __init__(self, ways: int = 5) -> None:
        super().__init__()
        self.register_buffer("confusion", torch.zeros(ways, ways), persistent=False)
        self.body, self.ways = Conv4(ways, downsample="stride", hidden=32).body, ways

    def shared_step(self, episode: Episode, name: str) -> torch.Tensor:
        (xs, ys), (xq, yq) = episode
        support, query = (self.body(x.flatten(0, 1)).unflatten(0, x.shape[:2]) for x in (xs, xq))
        one_hot = F.one_hot(ys, self.ways).float()
        prototypes = one_hot.transpose(1, 2) @ support / one_hot.sum(1)[..., None]
        logits = -(torch.cdist(query, prototypes) ** 2)
        if name == "test":
            places = yq.flatten() * self.ways + logits.argmax(-1).flatten()
            self.confusion += places.bincount(minlength=self.ways**2).view_as(self.confusion)
        self.log(f"{name}/acc", (logits.argmax(-1) == yq).float().mean(), prog_bar=True, batch_size=len(xs))
        return F.cross_entropy(logits.flatten(0, 1), yq.flatten())

    def training_step(self, batch: Episode, batch_idx: int) -> torch.Tensor:
        return self.shared_step(batch, "train")

    def validation_step(self, batch: Episode, batch_idx: int) -> None:
        self.shared_step(batch, "val")

    def test_step(self, batch: Episode, batch_idx: int) -> None:
        self.shared_step(batch, "test")

    def on_test_start(self) -> None:
        self.confusion.zero_()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=2e-3)

    def summary_facts(self, stage: str) -> list[tuple[str, str]]:
        """Lines of the summary: what the test has measured."""
        right = self.confusion.diagonal().sum() / self.confusion.sum()
        return [("test accuracy", f"{100 * right:.2f} %")] if stage == "test" else []

    def pictures(self, run: RunRecord) -> list[Picture]:
        """Which classes are taken for which, if a test was made."""
        return [Picture("confusion.png", self.draw_confusion)] if run.tested else []

    def draw_confusion(self, path: Path) -> Path:
        figure, axis = pyplot().subplots()
        axis.imshow(self.confusion.cpu().numpy())
        axis.set(xlabel="predicted class", ylabel="class")
        return save_figure(figure, path)


# %% [markdown]
# The command line imports this file for the class alone. Run as a script, it trains and draws.


# %%
def train_and_test() -> tuple[Prototypes, float]:
    L.seed_everything(0, verbose=False)
    data = GlyphsDataModule(ways=5, shots=1, queries=5, tasks_per_batch=8, test_tasks=TEST_TASKS)
    quiet = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)
    trainer = L.Trainer(max_steps=STEPS, limit_val_batches=0, accelerator="cpu", **quiet)
    module = Prototypes()
    trainer.fit(module, datamodule=data)
    (results,) = trainer.test(module, datamodule=data, verbose=False)
    return module, results["test/acc"]


if __name__ == "__main__":
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    module, accuracy = train_and_test()
    print(f"test accuracy {100 * accuracy:.1f} % over {TEST_TASKS} tasks, chance is 20 %")
    data = GlyphsDataModule(ways=5, shots=1, queries=15)
    support, query = data.episode(seed=0, split="test", index=0)
    with torch.no_grad():
        prototypes = module.eval().body(support.x)[support.y.argsort()]
        nearest = torch.cdist(module.body(query.x), prototypes).argmin(1)

    plt.style.use("metalearn.reports.plain")
    figure, axes = plt.subplots(2, 5, figsize=(8, 3.4), height_ratios=[1.3, 1])
    for label, (top, bottom) in enumerate(axes.T):
        top.imshow(support.x[support.y == label][0, 0], cmap="gray_r")
        top.set_title(f"prototype {label}")
        top.set_axis_off()
        counts = nearest[query.y == label].bincount(minlength=5)
        bottom.bar(range(5), counts, color=["#4d9221" if way == label else "#d6604d" for way in range(5)])
        bottom.set(xticks=range(5), ylim=(0, 15.5))
    axes[1, 0].set_ylabel("of 15 queries")
    figure.supxlabel("nearest prototype", fontsize=11)
    figure.savefig("own_module.png")
