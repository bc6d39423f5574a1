"""A LightningModule of your own, fed by our DataModule: here prototypical networks (Snell et al. 2017).

python examples/own_module.py

The last members make it join the summary and the pictures of the command line, with the best checkpoint tested (in this folder):

python -m metalearn fit --model own_module.Prototypes --data GlyphsDataModule --data.queries 5 --trainer.max_steps 300
"""

from pathlib import Path

import lightning as L
import torch
import torch.nn.functional as F

from metalearn import Conv4, Episode
from metalearn.datamodules import GlyphsDataModule
from metalearn.reports.outcome import Picture, RunRecord
from metalearn.reports.pictures import pyplot, save_figure


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
        loss = F.cross_entropy(logits.flatten(0, 1), yq.flatten())
        if name == "test":
            places = yq.flatten() * self.ways + logits.argmax(-1).flatten()
            self.confusion += places.bincount(minlength=self.ways**2).view_as(self.confusion)
        self.log(f"{name}/acc", (logits.argmax(-1) == yq).float().mean(), prog_bar=True, batch_size=len(xs))
        return loss

    def training_step(self, batch: Episode, batch_idx: int) -> torch.Tensor:
        return self.shared_step(batch, "train")

    def validation_step(self, batch: Episode, batch_idx: int) -> None:
        self.shared_step(batch, "val")

    def test_step(self, batch: Episode, batch_idx: int) -> None:
        self.shared_step(batch, "test")

    def on_test_start(self) -> None:
        self.confusion.zero_()

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

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def main(max_steps: int = 300, test_tasks: int = 600) -> float:
    L.seed_everything(0)
    data = GlyphsDataModule(ways=5, shots=1, queries=5, test_tasks=test_tasks)
    trainer = L.Trainer(max_steps=max_steps, accelerator="cpu", logger=False, enable_checkpointing=False)
    module = Prototypes()
    trainer.fit(module, datamodule=data)
    (results,) = trainer.test(module, datamodule=data)
    return results["test/acc"]


if __name__ == "__main__":
    main()
