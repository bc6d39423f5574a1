# %% [markdown]
"""
A torchvision model as the network
==================================

Any network will do: here a ResNet-18 with its batch normalisation, of which ANIL adapts the last layer.

The network stays as it is. Its last linear layer is the head, and the log says so; ``head`` names another. Here the network is
wrapped, since letters are grey and a ResNet expects three channels.
"""

# %%
import logging

import lightning as L
import matplotlib.pyplot as plt
import torch
from torchvision.models import resnet18

from metalearn import ANIL
from metalearn.datamodules import GlyphsDataModule

STEPS = 15  # the tests run 2
TEST_TASKS = 20  # the tests run 4
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
quiet = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)


# %%
class Grey(torch.nn.Module):
    """Repeats grey images over the three channels that the ResNet expects."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x.expand(-1, 3, -1, -1))


# %%
L.seed_everything(0, verbose=False)
module = ANIL(Grey(resnet18(num_classes=5)), inner_steps=5, inner_lr=0.1, execution="sequential")
data = GlyphsDataModule(ways=5, shots=5, queries=5, tasks_per_batch=2, test_tasks=TEST_TASKS)
trainer = L.Trainer(max_steps=STEPS, limit_val_batches=0, accelerator="cpu", **quiet)
trainer.fit(module, datamodule=data)
(results,) = trainer.test(module, datamodule=data, verbose=False)
print(f"test accuracy {100 * results['test/acc']:.1f} % ± {100 * results['test/acc_ci95']:.1f}, chance is 20 %")

# %% [markdown]
# One test task: a row for each letter, its five support images on the left, and its queries with the predicted letter.

# %%
support, query = data.episode(seed=0, split="test", index=0)
predicted = module.adapt(support)(query.x).argmax(1)

plt.style.use("metalearn.reports.plain")
figure, axes = plt.subplots(5, 10, figsize=(7, 4.4))
for label, row in enumerate(axes):
    images = torch.cat([support.x[support.y == label], query.x[query.y == label]])[:, 0]
    answers = predicted[query.y == label].tolist()
    for place, (axis, image) in enumerate(zip(row, images, strict=True)):
        axis.imshow(image, cmap="gray_r")
        axis.set_axis_off()
        if place >= 5:
            answer = answers[place - 5]
            axis.set_title(f"{answer}", color="tab:green" if answer == label else "tab:red", fontsize=9)
    row[0].set_title(f"letter {label}", fontsize=9)
figure.suptitle("Five support images | five queries with the predicted letter", fontsize=11)
figure.savefig("torchvision_backbone.png")
