"""The loss under bf16: outputs of 8 bits go into it as float32."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn import MAML, Batch, Episode
from tests.modules.episodic.test_evaluation import NoiseTasks, trainer
from tests.networks import TinyConv, noise_episode


def test_every_loss_of_a_bf16_run_is_computed_in_float32(tmp_path: Path) -> None:
    """The inner one and the query's, in training and in validation."""
    seen: set[torch.dtype] = set()

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        seen.add(outputs.dtype)
        return F.cross_entropy(outputs, targets)

    run = trainer(tmp_path, precision="bf16-true", max_steps=1, limit_val_batches=1)
    module = MAML(TinyConv(), inner_steps=1, loss=loss)
    module.meta_gradient(noise_episode(dtype=torch.float32))  # the probe's float64 and float32 come before
    seen.clear()
    run.fit(module, datamodule=NoiseTasks(train_tasks=4))
    assert next(module.parameters()).dtype == torch.bfloat16
    assert seen - {torch.float64} == {torch.float32}


@pytest.mark.parametrize("soft", [False, True])
def test_the_value_is_that_of_float32_on_the_same_outputs(soft: bool) -> None:
    """In bf16 a loss near 5 has steps of 1/32; soft labels are lifted with the outputs."""
    episode = noise_episode(shape=(3,), dtype=torch.float32)
    (xs, ys), (xq, yq) = episode
    if soft:
        ys, yq = (F.one_hot(y, 3).bfloat16() * 0.75 + 0.0625 for y in (ys, yq))
    half = Episode(Batch(xs.bfloat16(), ys), Batch(xq.bfloat16(), yq))
    torch.manual_seed(0)
    net = nn.Linear(3, 3)
    net.weight.data.mul_(8)
    module = MAML(net, inner_steps=1, inner_lr=0.1, loss=lambda out, y: F.cross_entropy(out, y)).bfloat16()
    found = module.meta_loss(half)
    assert found.logits.dtype == torch.bfloat16
    rows = [F.cross_entropy(z.float(), y.float() if soft else y) for z, y in zip(found.logits, yq, strict=True)]
    assert float(found.loss.detach()) == pytest.approx(float(torch.stack(rows).mean()), rel=1e-6)


class Tempered(nn.Module):
    """Cross-entropy at a temperature that is learned as its logarithm."""

    def __init__(self) -> None:
        super().__init__()
        self.log_temperature = nn.Parameter(torch.tensor(0.7))

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs / self.log_temperature.exp(), targets)


def test_functions_of_the_targets_and_of_the_losss_parameters_are_of_float32() -> None:
    """In bf16 a logarithm or an exponential has 8 bits, whatever the outputs have."""
    (xs, ys), (xq, yq) = noise_episode(shape=(3,), dtype=torch.float32)
    given, soft = (F.one_hot(y, 3).bfloat16() * 0.75 + 0.0625 for y in (ys, yq))
    support, query = xs.bfloat16(), xq.bfloat16()
    torch.manual_seed(0)

    def divergence(outputs: Tensor, targets: Tensor) -> Tensor:
        return (targets * (targets.log() - outputs.log_softmax(1))).sum(1).mean()

    module = MAML(nn.Linear(3, 3), inner_steps=1, loss=divergence).bfloat16()
    found = module.meta_loss(Episode(Batch(support, given), Batch(query, soft)))
    rows = [divergence(z.float(), y.float()) for z, y in zip(found.logits, soft, strict=True)]
    assert float(found.loss.detach()) == pytest.approx(float(torch.stack(rows).mean()), rel=1e-6)

    module = MAML(nn.Linear(3, 3), inner_steps=1, loss=Tempered()).bfloat16()
    found = module.meta_loss(Episode(Batch(support, ys), Batch(query, yq)))
    temperature = torch.tensor(0.7).bfloat16().float().exp()
    rows = [F.cross_entropy(z.float() / temperature, y) for z, y in zip(found.logits, yq, strict=True)]
    assert float(found.loss.detach()) == pytest.approx(float(torch.stack(rows).mean()), rel=1e-6)
