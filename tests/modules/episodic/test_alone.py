"""A test answers queries one by one too: against a loop that adapts, normalises by the support set, and asks for one query."""

from __future__ import annotations

import csv
import statistics
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from metalearn import ANIL, MAML, Batch, Episode, ProtoNet
from metalearn.modules.callbacks.tables import TaskTable
from tests.modules.episodic.test_evaluation import trainer
from tests.modules.episodic.test_single_query import Small, plain

DOUBLE = torch.float64


def make_tasks(count: int = 5) -> Episode:
    """Tasks that are neither trivial nor hopeless, with few queries, so that their company matters."""
    torch.manual_seed(1)
    centres = torch.randn(count, 3, 1, 6, 6, dtype=DOUBLE)
    y = torch.arange(3).repeat(count, 2)
    roles = [centres.repeat(1, 2, 1, 1, 1) + 0.9 * torch.randn(count, 6, 1, 6, 6, dtype=DOUBLE) for _ in range(2)]
    order = torch.tensor([0, 1, 2, 3, 0])  # the queries' classes are not as balanced as those of the support set
    return Episode(Batch(roles[0], y), Batch(roles[1][:, order], y[:, order]))


class Tasks(L.LightningDataModule):
    """The tasks in batches of two, or as lists of single tasks."""

    def __init__(self, lists: bool = False) -> None:
        super().__init__()
        self.lists = lists

    def test_dataloader(self) -> Any:
        tasks, size = make_tasks(), 1 if self.lists else 2
        parts = [
            Episode(*(Batch(role.x[k : k + size], role.y[k : k + size]) for role in tasks)) for k in range(0, 5, size)
        ]
        batches: list[Any] = [[part] for part in parts] if self.lists else parts
        return DataLoader(batches, batch_size=None, collate_fn=lambda batch: batch)  # type: ignore[arg-type]


def loss_and_accuracy(network: nn.Module, task: list[Tensor], moving: str, steps: int) -> tuple[float, float]:
    """Of one task whose queries come one by one: an inner loop and a forward pass of plain operations."""
    xs, ys, xq, yq = task
    params = {name: value.detach().requires_grad_() for name, value in network.named_parameters()}
    for _ in range(steps):
        names = [name for name in params if name.startswith(moving)]
        grads = torch.autograd.grad(F.cross_entropy(plain(params, xs, xs), ys), [params[name] for name in names])
        moved = {name: params[name] - 0.3 * grad for name, grad in zip(names, grads, strict=True)}
        params = {**params, **{name: value.detach().requires_grad_() for name, value in moved.items()}}
    answers = torch.cat([plain(params, xs, xq[k : k + 1]) for k in range(len(xq))]).detach()
    return F.cross_entropy(answers, yq).item(), (answers.argmax(1) == yq).double().mean().item()


@pytest.mark.parametrize(
    ("algorithm", "options", "lists"),
    [
        (MAML, {"execution": "sequential"}, False),
        (MAML, {"execution": "vectorized"}, False),
        (MAML, {}, True),
        (ANIL, {}, False),
        (ANIL, {"execution": "sequential"}, True),
    ],
)
def test_it_is_the_accuracy_of_a_loop_over_queries(
    algorithm: Any, options: dict[str, Any], lists: bool, tmp_path: Path
) -> None:
    torch.manual_seed(3)
    network = Small().to(DOUBLE)
    module, table = algorithm(network, inner_steps=2, inner_lr=0.3, **options), TaskTable()
    run = trainer(tmp_path, precision="64-true", callbacks=[table])
    (logged,) = run.test(module, datamodule=Tasks(lists), verbose=False)
    moving = "head." if algorithm is ANIL else ""
    tasks = zip(*(part for role in make_tasks() for part in role), strict=True)
    expected = [loss_and_accuracy(network, list(task), moving, 2) for task in tasks]
    assert table.path is not None
    with table.path.open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["loss_independent"]) for row in rows] == pytest.approx([loss for loss, _ in expected], rel=1e-9)
    accuracies = [accuracy for _, accuracy in expected]
    assert [float(row["acc_independent"]) for row in rows] == pytest.approx(accuracies, rel=1e-9)
    assert logged["test/acc_independent"] == pytest.approx(statistics.fmean(accuracies))
    differences = [new - float(row["acc_step_2"]) for new, row in zip(accuracies, rows, strict=True)]
    assert any(differences)
    results = module.test_results()
    assert results["acc_difference", 2].mean == pytest.approx(statistics.fmean(differences))
    half = 1.96 * statistics.stdev(differences) / len(differences) ** 0.5
    assert results["acc_difference", 2].ci95 == pytest.approx(half)
    assert results["acc_independent", 2].tasks == 5


def test_it_is_what_the_model_to_ship_answers(tmp_path: Path) -> None:
    torch.manual_seed(3)
    module = ProtoNet(Small().to(DOUBLE))
    trainer(tmp_path, precision="64-true").test(module, datamodule=Tasks(), verbose=False)
    tasks, losses = make_tasks(), []
    for xs, ys, xq, yq in zip(*tasks.support, *tasks.query, strict=True):
        shipped = module.adapt(Batch(xs, ys)).independent()
        losses.append(F.cross_entropy(torch.cat([shipped(query[None]) for query in xq]), yq).item())
    assert module.test_results()["loss_independent", 1].mean == pytest.approx(statistics.fmean(losses), rel=1e-9)


def test_the_summary_says_both_and_their_difference(tmp_path: Path) -> None:
    torch.manual_seed(3)
    module = MAML(Small().to(DOUBLE), inner_steps=2, inner_lr=0.3)
    trainer(tmp_path, precision="64-true").test(module, datamodule=Tasks(), verbose=False)
    facts = {fact.name: fact for fact in module.summary_facts("test")}
    fact, results = facts["independent"], module.test_results()
    share, gap = results["acc_independent", 2], results["acc_difference", 2]
    assert fact.text.startswith(f"{100 * share.mean:.2f} % ± {100 * share.ci95:.2f}, each query alone: ")
    word = "more" if gap.mean > 0 else "less"
    assert fact.text.endswith(f"{100 * abs(gap.mean):.2f} ± {100 * gap.ci95:.2f} points {word}")
    assert fact.data["test"]["accuracy_independent"]["mean"] == share.mean
    assert fact.data["test"]["accuracy_difference"]["mean"] == gap.mean


@pytest.mark.parametrize(("norm", "batch_norm"), [("support", True), ("running", True), ("transductive", False)])
def test_where_it_is_the_same_nothing_is_said(norm: Any, batch_norm: bool, tmp_path: Path) -> None:
    network = Small() if batch_norm else nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    module = MAML(network.to(DOUBLE), inner_steps=1, norm=norm)
    (logged,) = trainer(tmp_path, precision="64-true").test(module, datamodule=Tasks(), verbose=False)
    assert not any("independent" in key for key in logged)
    assert "independent" not in {fact.name for fact in module.summary_facts("test")}


def test_it_can_be_left_out(tmp_path: Path) -> None:
    module = MAML(Small().to(DOUBLE), inner_steps=1)
    module.tests_independently = False
    (logged,) = trainer(tmp_path, precision="64-true").test(module, datamodule=Tasks(), verbose=False)
    assert "test/acc" in logged
    assert not any("independent" in key for key in logged)
