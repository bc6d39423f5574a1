"""Tasks with fewer or more classes than the network has outputs, and batches of tasks that differ in shape."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.data import DataLoader

from metalearn import ANIL, MAML, Batch, ConfigError, Conv4, Episode, ShapeError
from metalearn.datamodules import EpisodeOptions, GlyphsDataModule
from metalearn.episode import SemiSupervisedEpisode
from tests.modules.episodic.test_evaluation import trainer
from tests.networks import TinyConv

OUTPUTS = 5


def task(ways: int, shots: int, queries: int, seed: int) -> Episode:
    """Noise, in float64."""
    generator = torch.Generator().manual_seed(seed)
    sets = []
    for count in (shots, queries):
        x = torch.randn(1, ways * count, 1, 8, 8, generator=generator, dtype=torch.float64)
        sets.append(Batch(x, torch.arange(ways).repeat_interleave(count)[None]))
    return Episode(*sets)


SHAPES = [(3, 2, 4), (5, 1, 2), (3, 2, 4), (2, 3, 3)]
TASKS = [task(*shape, seed) for seed, shape in enumerate(SHAPES)]


def narrow_loop(net: nn.Module, episode: Episode, steps: int, lr: float, head: str) -> Tensor:
    """The query loss of one task after inner steps, where only the first outputs exist; plain autograd."""
    params = dict(net.named_parameters())
    adapted = [name for name in params if name.startswith(head)]
    ways = int(episode.support.y.max()) + 1

    def loss(batch: Batch) -> Tensor:
        return F.cross_entropy(functional_call(net, params, (batch.x[0],))[:, :ways], batch.y[0])

    for _ in range(steps):
        grads = torch.autograd.grad(loss(episode.support), [params[name] for name in adapted], create_graph=True)
        params |= {name: params[name] - lr * grad for name, grad in zip(adapted, grads, strict=True)}
    return loss(episode.query)


def network() -> nn.Module:
    torch.manual_seed(0)
    return TinyConv(ways=OUTPUTS).double()


@pytest.mark.parametrize("execution", ["sequential", "vectorized"])
@pytest.mark.parametrize("algorithm", [MAML, ANIL])
def test_tasks_of_any_shape_train_as_a_plain_loop_over_them(algorithm: Any, execution: str) -> None:
    net = network()
    plain = copy.deepcopy(net).train()
    losses = [narrow_loop(plain, each, 2, 0.3, "head" if algorithm is ANIL else "") for each in TASKS]
    expected = torch.stack(losses).mean()
    grads = torch.autograd.grad(expected, list(plain.parameters()))
    module = algorithm(net, inner_steps=2, inner_lr=0.3, execution=execution)
    loss = module.training_step(TASKS, 0)
    loss.backward()
    assert abs(loss.item() - expected.item()) < 1e-12
    for parameter, grad in zip(module.backbone.parameters(), grads, strict=True):
        assert float((parameter.grad - grad).norm() / grad.norm()) < 1e-9


def test_a_list_of_one_shape_is_the_batch_of_it() -> None:
    module = MAML(network(), inner_steps=1, inner_lr=0.3)
    full = [task(OUTPUTS, 1, 2, seed) for seed in range(3)]
    whole = Episode(*(Batch(torch.cat(xs), torch.cat(ys)) for xs, ys in ((zip(*roles)) for roles in zip(*full))))  # noqa: B905
    assert abs(module.training_step(full, 0).item() - module.training_step(whole, 0).item()) < 1e-12


def test_each_task_is_evaluated_in_its_order(tmp_path: Path) -> None:
    module = MAML(network(), inner_steps=1, inner_lr=0.3)
    probabilities = module.predict_step(TASKS, 0)
    assert [tuple(each.shape) for each in probabilities] == [(1, 12, 3), (1, 10, 5), (1, 12, 3), (1, 6, 2)]
    for each, shares in zip(TASKS, probabilities, strict=True):
        ways = int(each.support.y.max()) + 1
        adapted = module.adapt(Batch(each.support.x[0], each.support.y[0]), ways=ways)
        torch.testing.assert_close(adapted.probabilities(each.query.x[0]).float(), shares[0])
    trainer(tmp_path).test(module, DataLoader([0], collate_fn=lambda _: TASKS), verbose=False)
    header, rows = module.test_table()
    accuracies = [row[header.index("acc_step_1")] for row in rows]
    right = [
        float((shares[0].argmax(-1) == each.query.y[0]).double().mean())
        for each, shares in zip(TASKS, probabilities, strict=True)
    ]
    assert accuracies == pytest.approx(right)


def test_a_narrow_task_neither_sees_nor_moves_the_other_outputs() -> None:
    module = MAML(network(), inner_steps=2, inner_lr=0.3)
    each = TASKS[0]
    support = Batch(each.support.x[0], each.support.y[0])
    adapted = module.adapt(support, ways=3)
    before = module.backbone.head.weight  # type: ignore[union-attr]
    after = adapted.params["head.weight"]
    assert torch.equal(after[3:], before[3:])  # type: ignore[index]
    assert not torch.equal(after[:3], before[:3])  # type: ignore[index]
    other = copy.deepcopy(module)
    with torch.no_grad():
        other.backbone.head.weight[3:] = 100.0  # type: ignore[union-attr, index, operator]
    torch.testing.assert_close(other.adapt(support, ways=3)(each.query.x[0]), adapted(each.query.x[0]))


@pytest.mark.parametrize("inner_lr", [0.3, "learn_per_element"])
@pytest.mark.parametrize("algorithm", [MAML, ANIL])
def test_more_classes_start_from_the_mean_row(algorithm: Any, inner_lr: Any) -> None:
    """Against a network that was built with as many outputs, all rows the mean of the narrow one's."""
    net = network()
    wide = TinyConv(ways=8).double()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    for part in ("weight", "bias"):
        row = state[f"head.{part}"].mean(0, keepdim=True)
        state[f"head.{part}"] = row.expand(8, *row.shape[1:])
    wide.load_state_dict(state)
    each = task(8, 2, 3, 9)
    support = Batch(each.support.x[0], each.support.y[0])
    found, expected = (
        algorithm(copy.deepcopy(one), inner_steps=2, inner_lr=inner_lr, initial_inner_lr=0.3) for one in (net, wide)
    )
    logits = found.adapt(support, ways=8)(each.query.x[0])
    assert logits.shape == (24, 8)
    torch.testing.assert_close(logits, expected.adapt(support)(each.query.x[0]))
    assert found.backbone.head.weight.shape[0] == OUTPUTS


def test_a_ridge_head_takes_any_number_of_classes() -> None:
    module = ANIL(network(), head_solver="ridge")
    for ways in (2, 8):
        each = task(ways, 3, 2, ways)
        logits = module.adapt(Batch(each.support.x[0], each.support.y[0]), ways=ways)(each.query.x[0])
        assert logits.shape == (2 * ways, ways)


def test_what_cannot_be_widened_is_one_line() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(64, 3))

        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1).float() @ self.weight

    each = task(4, 1, 1, 0)
    with pytest.raises(
        ConfigError, match=r"the task has 4 classes, but Fixed tells 3 apart and has no torch\.nn\.Linear"
    ):
        MAML(Fixed()).adapt(Batch(each.support.x[0], each.support.y[0]), ways=4)


def test_labels_beyond_the_ways_are_one_line() -> None:
    each = TASKS[1]
    with pytest.raises(ShapeError, match=r"label 4 is outside 0\.\.2"):
        MAML(network()).adapt(Batch(each.support.x[0], each.support.y[0]), ways=3)


def test_compiled_steps_refuse_tasks_that_differ() -> None:
    module = MAML(network(), inner_steps=1, inner_lr=0.3, compile=True)
    with pytest.raises(ConfigError, match="compile is True, but the tasks of this batch differ"):
        module.training_step(TASKS, 0)


def test_unlabeled_examples_are_left_out() -> None:
    module = MAML(network(), inner_steps=1, inner_lr=0.3)
    plain = task(OUTPUTS, 1, 2, 0)
    more = SemiSupervisedEpisode(*plain, Batch(torch.zeros(1, 7, 1, 8, 8), -torch.ones(1, 7, dtype=torch.int64)))
    assert torch.equal(module.training_step(more, 0), module.training_step(plain, 0))  # type: ignore[arg-type]


def test_varied_tasks_under_a_stock_trainer() -> None:
    data = GlyphsDataModule(
        ways=[2, 5], shots=[1, 3], queries=[1, 4], tasks_per_batch=4, train_tasks=8, val_tasks=3, test_tasks=5,
        options=EpisodeOptions(balanced=False, within_groups=True),
    )  # fmt: skip
    module = MAML(Conv4(ways=5, hidden=4), inner_steps=1, inner_lr=0.1)
    trainer = L.Trainer(max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.fit(module, datamodule=data)
    trainer.test(module, datamodule=data, verbose=False)
    assert module.test_results()["acc", 1].tasks == 5
    assert len(trainer.predict(module, datamodule=data) or []) == 2
