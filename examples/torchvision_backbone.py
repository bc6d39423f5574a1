"""Any torchvision model as the backbone of ANIL: a ResNet-18 with its BatchNorm, whose head is called "fc".

python examples/torchvision_backbone.py
"""

import lightning as L
import torch
from torchvision.models import resnet18

from metalearn import ANIL
from metalearn.datamodules import GlyphsDataModule


class Grey(torch.nn.Module):
    """Repeats grey images over the three channels that the ResNet expects."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x.expand(-1, 3, -1, -1))


def main(max_steps: int = 30, test_tasks: int = 50) -> float:
    L.seed_everything(0)
    module = ANIL(Grey(resnet18(num_classes=5)), head="network.fc", inner_steps=5, inner_lr=0.1, execution="sequential")
    data = GlyphsDataModule(ways=5, shots=5, queries=5, tasks_per_batch=2, test_tasks=test_tasks)
    trainer = L.Trainer(
        max_steps=max_steps, limit_val_batches=0, accelerator="cpu", logger=False, enable_checkpointing=False
    )
    trainer.fit(module, datamodule=data)
    (results,) = trainer.test(module, datamodule=data)
    return results["test/acc"]


if __name__ == "__main__":
    main()
