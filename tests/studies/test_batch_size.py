"""``metalearn study batch_size``: gradients of single tasks, and what a mean over a few of them says."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from metalearn.cli import main
from metalearn.studies.batch_noise import BATCHES, find_task_gradients, list_errors
from metalearn.studies.batch_race import LINEAR, NAMES, make_linear
from metalearn.studies.linear_tasks import draw_tasks
from tests.studies.test_theory_studies import read


def write_out(method: str, body: Tensor, head: Tensor, x: Tensor, y: Tensor, queries: tuple[Tensor, Tensor]) -> Tensor:
    """The meta-loss of one task in plain autograd."""
    adapted = [body, head]
    for _ in range(LINEAR.inner_steps):
        loss = (x @ adapted[0].T @ adapted[1].T - y).square().mean() / 2
        moves = torch.autograd.grad(loss, adapted, create_graph=True)
        if method == "FOMAML":
            moves = tuple(move.detach() for move in moves)
        adapted = [
            value if method == "ANIL" and place == 0 else value - LINEAR.inner_lr * move
            for place, (value, move) in enumerate(zip(adapted, moves, strict=True))
        ]
    return (queries[0] @ adapted[0].T @ adapted[1].T - queries[1]).square().mean() / 2


@pytest.mark.parametrize("method", NAMES)
def test_gradients_of_single_tasks(method: str) -> None:
    episode = draw_tasks(0, 3, 0)
    singles = [draw_slice(episode, number) for number in range(3)]
    module = make_linear(method, 0)
    gradients = find_task_gradients(module, singles)
    body, head = (value.detach().clone().requires_grad_() for value in module.parameters())
    for number in range(3):
        x, y = episode.support.x[number], episode.support.y[number]
        loss = write_out(method, body, head, x, y, (episode.query.x[number], episode.query.y[number]))
        expected = torch.cat([value.reshape(-1) for value in torch.autograd.grad(loss, [body, head])])
        torch.testing.assert_close(gradients[number], expected, rtol=1e-9, atol=1e-12)
    whole = torch.cat([value.reshape(-1) for value in module.meta_gradient(episode).values()])
    torch.testing.assert_close(gradients.mean(0), whole, rtol=1e-9, atol=1e-12)


def draw_slice(episode: object, number: int) -> object:
    """One task of an episode."""
    from metalearn import Batch, Episode

    place = slice(number, number + 1)
    return Episode(
        *(Batch(part.x[place], part.y[place]) for part in (episode.support, episode.query))  # type: ignore[attr-defined]
    )


def test_errors_are_those_of_the_mean_of_a_draw() -> None:
    """Their square is ``bias^2 + sigma^2 / B``, where ``sigma^2`` is the trace of the covariance."""
    generator = torch.Generator().manual_seed(0)
    exact = torch.randn(50, 6, generator=generator, dtype=torch.float64)
    biased = exact + torch.tensor([1.0, 0, 0, 0, 0, 0], dtype=torch.float64)
    rows = list_errors({"MAML": exact, "FOMAML": biased}, seed=0, draws=4000)
    length = float(exact.mean(0).norm())
    sigma = math.sqrt(float(exact.var(0, correction=0).sum()))
    for row in rows:
        assert row["bias"] * length == pytest.approx(0.0 if row["method"] == "MAML" else 1.0, abs=1e-12)
        assert row["deviation"] * length == pytest.approx(sigma / math.sqrt(row["batch"]), rel=0.05)
        assert row["error"] ** 2 == pytest.approx(row["bias"] ** 2 + row["deviation"] ** 2, rel=0.05)
    assert [row["batch"] for row in rows] == [*BATCHES, *BATCHES]


def test_draws_of_a_seed_share_their_representation() -> None:
    inputs = [draw_tasks(seed, 400, number) for seed, number in ((0, 1), (0, 2), (1, 1))]
    spans = []
    for episode in inputs:
        fits = torch.linalg.lstsq(episode.support.x, episode.support.y).solution[..., 0]
        spans.append(torch.linalg.svd(fits, full_matrices=False)[2][:4])
    same, other = (torch.linalg.matrix_norm(spans[0] @ span.T, ord=2) for span in spans[1:])
    assert torch.linalg.svdvals(spans[0] @ spans[1].T).min() > 0.98 > torch.linalg.svdvals(spans[0] @ spans[2].T).min()
    assert same <= 1 + 1e-9
    assert other <= 1 + 1e-9
    assert not torch.equal(inputs[0].support.x, inputs[1].support.x)


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["study", "batch_size", "--output", str(tmp_path), "--seeds", "1", "--tasks", "4", "--calls", "60",
          "--batches", "[1,2]", "--marks", "2"])  # fmt: skip
    printed = capsys.readouterr().out
    assert "| trained weights, FOMAML |" in " ".join(printed.split())
    rows = read(tmp_path / "batch_size.csv")
    race = [row for row in rows if row["kind"] == "race"]
    prices = {"MAML": 11, "FOMAML": 6, "ANIL": 16}
    for row in race:
        assert int(row["calls"]) == int(row["step"]) * int(row["batch"]) * prices[row["method"]]
    assert [row["calls"] for row in race if row["method"] == "FOMAML" and row["batch"] == "1"] == ["30", "60"]
    assert {row["weights"] for row in rows if row["kind"] == "noise"} == {"initial", "trained"}
    assert (tmp_path / "batch_size.png").is_file()
