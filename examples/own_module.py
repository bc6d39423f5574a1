"""A LightningModule of your own, fed by our DataModule: here prototypical networks (Snell et al. 2017).

python examples/own_module.py
"""

import lightning as L
import torch
import torch.nn.functional as F

from metalearn import Conv4, Episode
from metalearn.datamodules import GlyphsDataModule


class Prototypes(L.LightningModule):
    """Classifies a query by the nearest mean of support features."""

    def __init__(self, ways: int = 5) -> None:
        super().__init__()
        self.body, self.ways = Conv4(ways, downsample="stride", hidden=32).body, ways

    def shared_step(self, episode: Episode, name: str) -> torch.Tensor:
        (xs, ys), (xq, yq) = episode
        support, query = (self.body(x.flatten(0, 1)).unflatten(0, x.shape[:2]) for x in (xs, xq))
        one_hot = F.one_hot(ys, self.ways).float()
        prototypes = one_hot.transpose(1, 2) @ support / one_hot.sum(1)[..., None]
        logits = -(torch.cdist(query, prototypes) ** 2)
        loss = F.cross_entropy(logits.flatten(0, 1), yq.flatten())
        self.log(f"{name}/acc", (logits.argmax(-1) == yq).float().mean(), prog_bar=True, batch_size=len(xs))
        return loss

    def training_step(self, batch: Episode, batch_idx: int) -> torch.Tensor:
        return self.shared_step(batch, "train")

    def validation_step(self, batch: Episode, batch_idx: int) -> None:
        self.shared_step(batch, "val")

    def test_step(self, batch: Episode, batch_idx: int) -> None:
        self.shared_step(batch, "test")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def main(max_steps: int = 300, test_tasks: int = 600) -> float:
    L.seed_everything(0)
    data = GlyphsDataModule(ways=5, shots=1, queries=5, test_tasks=test_tasks)
    trainer = L.Trainer(max_steps=max_steps, accelerator="cpu", logger=False, enable_checkpointing=False)
    module = Prototypes()
    trainer.fit(module, datamodule=data)
    (found,) = trainer.test(module, datamodule=data)
    return found["test/acc"]


if __name__ == "__main__":
    main()
