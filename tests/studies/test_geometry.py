"""``metalearn study geometry``: the smoothness of heads, and the study from the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from metalearn import Batch
from metalearn.cli import main
from metalearn.studies.intervals import at_equal, least_paid
from metalearn.studies.linear_tasks import draw_tasks, half_squares, make_anil, make_network, smoothness_of_head
from metalearn.studies.methods import DECAY
from tests.made import make_omniglot
from tests.studies.test_theory_studies import read, thin

__all__ = ["thin"]


@pytest.mark.parametrize("layers", [1, 2])
def test_the_smoothness_of_a_head_is_the_top_of_its_dense_hessian(layers: int) -> None:
    episode = draw_tasks(0, 3)
    network = make_network(layers, 0)
    supports = [Batch(x, y) for x, y in zip(episode.support.x, episode.support.y, strict=True)]
    largest = []
    for support in supports:
        features = support.x @ network.body.weight.detach().T
        if layers == 1:
            largest.append(float(torch.linalg.eigvalsh(features.T @ features / len(features)).max()))
            continue

        def loss(*values: Tensor, features: Tensor = features, y: Tensor = support.y) -> Tensor:
            outputs = torch.tanh(features @ values[0].T + values[1]) @ values[2].T + values[3]
            return (outputs - y).square().mean() / 2

        values = tuple(value.detach() for value in network.head.parameters())
        blocks = torch.autograd.functional.hessian(loss, values)
        sizes = [value.numel() for value in values]
        dense = torch.cat([
            torch.cat([block.reshape(rows, columns) for block, columns in zip(line, sizes, strict=True)], 1)
            for line, rows in zip(blocks, sizes, strict=True)
        ])  # fmt: skip
        largest.append(float(torch.linalg.eigvalsh(dense).max()))
    assert smoothness_of_head(make_anil(network, 1, 1.0), half_squares, episode.support) == pytest.approx(
        max(largest) + DECAY, rel=0.02
    )


def test_the_measure_at_equal_cost() -> None:
    rows = [
        {"seed": 0, "n": 1, "paid": paid, "y": 10 * paid, "last": int(paid == 4)} for paid in (2, 4)
    ] + [{"seed": 0, "n": 2, "paid": paid, "y": paid, "last": int(paid == 6)} for paid in (3, 6)]  # fmt: skip
    budget = least_paid(rows, "paid")
    assert budget == 4
    assert at_equal(rows, "paid", "y", "n", budget) == {1: [40.0], 2: [4.0]}
    assert at_equal(rows, "paid", "y", "n", 3) == {1: [30.0], 2: [3.0]}


@pytest.mark.usefixtures("thin")
def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_omniglot(tmp_path / "omniglot", drawings=10)
    main(["study", "geometry", "--output", str(tmp_path / "out"), "--omniglot", str(root), "--inner_steps", "[1,2]",
          "--seeds", "1", "--outer_steps", "20", "--tasks", "2", "--image_seeds", "1", "--image_steps", "1",
          "--test_tasks", "1"])  # fmt: skip
    printed = capsys.readouterr().out
    assert "Linear tasks: meta-loss" in printed
    assert "Omniglot, 5-way 5-shot: test accuracy (%)" in printed
    rows = read(tmp_path / "out/geometry.csv")
    sizes = {(row["part"], row["geometry"], row["inner_steps"]): float(row["inner_lr"]) for row in rows}
    for part in ("known", "omniglot"):
        assert sizes[part, "convex", "1"] == sizes[part, "convex", "2"]
        assert sizes[part, "nonconvex, c/N", "2"] == pytest.approx(sizes[part, "nonconvex", "2"] / 2)
    known = [row for row in rows if row["part"] == "known"]
    assert len(known) == 3 * 2 * 21
    convex = [float(row["loss"]) for row in known if row["geometry"] == "convex"]
    assert convex[20] < convex[0]
    assert (tmp_path / "out/geometry.png").is_file()
