"""Our MAML under a plain Trainer, with a LightningDataModule of your own: any loader that yields Episodes will do.

python examples/own_datamodule.py
"""

import lightning as L
import torch
from torch.utils.data import DataLoader, Dataset

from metalearn import MAML, MLP, Batch, Episode


class Rings(Dataset):
    """Tasks of telling three random rings of points in the plane apart."""

    def __init__(self, tasks: int, first: int) -> None:
        self.tasks, self.first = tasks, first

    def __len__(self) -> int:
        return self.tasks

    def __getitem__(self, index: int) -> Episode:
        generator = torch.Generator().manual_seed(self.first + index)
        radii = 1.0 + 3.0 * torch.rand(3, generator=generator)

        def points(count: int) -> Batch:
            y = torch.arange(3).repeat_interleave(count)
            angle = 6.28 * torch.rand(len(y), generator=generator)
            x = radii[y, None] * torch.stack([angle.cos(), angle.sin()], -1)
            return Batch(x + 0.05 * torch.randn(x.shape, generator=generator), y)

        return Episode(points(5), points(10))


class RingsDataModule(L.LightningDataModule):
    def train_dataloader(self) -> DataLoader:
        return DataLoader(Rings(800, 0), batch_size=8)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(Rings(64, 10_000), batch_size=8)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(Rings(200, 20_000), batch_size=8)


def main(max_steps: int = 400) -> float:
    L.seed_everything(0)
    module = MAML(
        MLP(outputs=3, inputs=2, hidden=[64, 64]),
        inner_steps=3,
        inner_lr=0.3,
        outer_optimizer=lambda params: torch.optim.Adam(params, lr=3e-3),
    )
    trainer = L.Trainer(max_steps=max_steps, accelerator="cpu", logger=False, enable_checkpointing=False)
    data = RingsDataModule()
    trainer.fit(module, datamodule=data)
    (results,) = trainer.test(module, datamodule=data)
    return results["test/acc"]


if __name__ == "__main__":
    main()
