"""Hyper-cleaning and regularisation tuning on two gloo processes against plain autograd loops over both ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad

from metalearn.datamodules.levels.base import Examples, TermBatches
from tests.distributed.linear import INNER, ITERATIONS, STEPS, cases
from tests.made_bilevel import make_mnist, make_newsgroups

ROOT = Path(__file__).parents[2]
Reports = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("ranks")
    make_mnist(found / "mnist")
    make_newsgroups(found / "news")
    done = subprocess.run(
        [sys.executable, "-m", "tests.distributed.linear", str(found), "2"],
        cwd=ROOT, capture_output=True, text=True, timeout=240, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return found


def reports(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads((folder / f"{name}{rank}.json").read_text()) for rank in (0, 1)]


def entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Of each example."""
    return torch.logsumexp(logits, -1) - logits.gather(1, labels.unsqueeze(1)).squeeze(1)


def bias(x: Tensor) -> Tensor:
    return torch.cat([x.double(), torch.ones(len(x), 1, dtype=torch.float64)], 1)


def weighed(x: Tensor, w: Tensor, part: Examples) -> Tensor:
    """The inner loss of hyper-cleaning, in float64."""
    each = entropy(bias(part.x) @ w.T, part.y)
    return (each / (1 + torch.exp(-x[part.index]))).mean() + 0.001 * (w * w).sum()


def clean(w: Tensor, part: Examples) -> Tensor:
    return entropy(bias(part.x) @ w.T, part.y).mean()


def chosen(batches: Examples, number: int) -> Examples:
    return Examples(batches.index[number], batches.x[number], batches.y[number])


def along(loss: Callable[[Tensor, Tensor], Tensor], x: Tensor, w: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """``J v`` and ``H v``."""
    found: tuple[Tensor, Tensor] = grad(lambda x, w: (grad(loss, argnums=1)(x, w) * v).sum(), argnums=(0, 1))(x, w)
    return found


def test_each_rank_has_its_own_batches_and_hypergradients_are_averaged(folder: Path) -> None:
    """AID by a fixed point: ``x`` moves by the mean of two hypergradients, each of its rank's batches; ``y`` and ``v`` go on from
    their means."""
    pair = reports(folder, "cleaning")
    assert pair[0] == pair[1]
    module, data = cases(str(folder / "mnist"), str(folder / "news"))["cleaning"]
    module.build({"examples": 60, "features": 64, "classes": 10})
    x, w, v = torch.zeros(60, dtype=torch.float64), module.y.double(), torch.zeros(10, 65, dtype=torch.float64)
    losses: list[Tensor] = []
    for step in range(STEPS):
        ends = []
        for rank in (0, 1):
            batch = data.batch(2 * step + rank)
            assert isinstance(batch, TermBatches)
            y, dual = w, v
            for number in range(INNER):
                y = y - 0.3 * grad(weighed, argnums=1)(x, y, chosen(batch.inner, number))
            right = grad(clean)(y, chosen(batch.outer, 0))
            losses.append(clean(y, chosen(batch.outer, 0)))
            for _ in range(ITERATIONS):
                product = along(lambda x, w, b=batch: weighed(x, w, chosen(b.hessian, 0)), x, y, dual)[1]
                dual = dual - 0.3 * (product - right)
            mixed = along(lambda x, w, b=batch: weighed(x, w, chosen(b.jacobian, 0)), x, y, dual)[0]
            ends.append((-mixed, y, dual))
        found, w, v = (torch.stack(each).mean(0) for each in zip(*ends, strict=True))
        x = x - 10.0 * found
    expected = {"x": x, "y": w, "v": v.flatten(), "loss": torch.stack(losses[-2:]).mean()}
    for name, value in expected.items():
        torch.testing.assert_close(torch.tensor(pair[0][name], dtype=torch.float64), value, rtol=2e-5, atol=2e-6)


def test_mrbo_keeps_one_state_on_both_ranks(folder: Path) -> None:
    pair = reports(folder, "mrbo")
    assert pair[0] == pair[1]
    assert {"u", "v"} <= pair[0].keys()
    assert torch.tensor(pair[0]["x"]).count_nonzero() > 40  # batches of 20 on two ranks


def test_ranks_with_all_examples_take_the_step_of_one(folder: Path) -> None:
    """Every batch of 20 Newsgroups is all posts: two ranks do what one does, AID-CG from the last step's ``y`` and ``v``."""
    pair = reports(folder, "regularization")
    assert pair[0] == pair[1]
    _, data = cases(str(folder / "mnist"), str(folder / "news"))["regularization"]
    train, val = data.part("train"), data.part("val")
    inner, outer = train.x.to_dense().double(), val.x.to_dense().double()

    def penalised(x: Tensor, w: Tensor) -> Tensor:
        return entropy(inner @ w, train.y).mean() + 0.5 * (x.exp().unsqueeze(1) * w * w).mean(1).sum()

    x = torch.full((inner.shape[1],), -3.0, dtype=torch.float64)
    w, v = (torch.zeros(inner.shape[1], 3, dtype=torch.float64) for _ in range(2))
    for _ in range(STEPS):
        last = w
        for _ in range(INNER):
            point = w + 0.9 * (w - last)
            last, w = w, point - grad(penalised, argnums=1)(x, point)
        right = grad(lambda w: entropy(outer @ w, val.y).mean())(w)
        r = right - along(penalised, x, w, v)[1]
        p = r
        for _ in range(ITERATIONS):
            product = along(penalised, x, w, p)[1]
            size = (r * r).sum() / (p * product).sum()
            before, v, r = (r * r).sum(), v + size * p, r - size * product
            p = r + (r * r).sum() / before * p
        x = x + 5.0 * along(penalised, x, w, v)[0]
    expected = {"x": x, "y": w, "v": v.flatten()}
    for name, value in expected.items():
        torch.testing.assert_close(torch.tensor(pair[0][name], dtype=torch.float64), value, rtol=2e-4, atol=2e-5)
