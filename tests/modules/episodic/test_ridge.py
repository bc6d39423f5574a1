"""The ridge head: the normal equations, its meta-gradient, and runs of it."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from metalearn import ANIL, Batch
from metalearn.inner.ridge import solve_ridge
from tests.modules.episodic.test_evaluation import NoiseTasks, trainer
from tests.modules.episodic.test_meta_gradient import largest_error
from tests.networks import TinyConv, noise_episode


@pytest.mark.parametrize("count", [4, 40])
def test_ridge_is_the_normal_equations(count: int) -> None:
    """Fewer examples than features, and more: the dual and the primal system."""
    generator = torch.Generator().manual_seed(0)
    z, y = (torch.randn(2, count, n, dtype=torch.float64, generator=generator) for n in (9, 3))
    found = solve_ridge(z, y, 0.3)
    residual = z.mT @ (z @ found - y) / count + 0.3 * found
    assert float(residual.abs().max()) < 1e-12


@pytest.mark.parametrize("execution", ["sequential", "vectorized"])
def test_the_ridge_head_is_where_gradient_descent_ends(execution: str) -> None:
    """Its meta-gradient is that of many unrolled steps on the regularised squared error, by autograd in the test."""
    torch.manual_seed(0)
    net, episode = TinyConv().double(), noise_episode()
    module = ANIL(copy.deepcopy(net), head_solver="ridge", initial_ridge=0.5, execution=execution).double()  # type: ignore[arg-type]
    assert module.inner_steps == 1
    ridge = module.solver.log_ridge.detach().exp().requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    for task in range(3):
        z = F.pad(net.body(episode.support.x[task]), (0, 1), value=1.0)
        y = F.one_hot(episode.support.y[task], 3).double()
        w = torch.zeros(17, 3, dtype=torch.float64)
        hessian = z.T @ z / len(z) + ridge * torch.eye(17)
        for _ in range(2000):
            w = w - (hessian @ w - z.T @ y / len(z)) / (float(torch.linalg.matrix_norm(hessian.detach(), 2)))
        q = F.pad(net.body(episode.query.x[task]), (0, 1), value=1.0)
        total = total + F.cross_entropy(q @ w, episode.query.y[task]) / 3
    names = [name for name, _ in net.body.named_parameters()]
    grads = torch.autograd.grad(total, [*net.body.parameters(), ridge])
    found = module.meta_gradient(episode)
    expected = {f"backbone.body.{k}": g for k, g in zip(names, grads, strict=False)} | {
        "solver.log_ridge": grads[-1] * ridge.detach()
    }
    assert largest_error({name: found[name] for name in expected}, expected) < 1e-6
    assert float(found["backbone.head.weight"].abs().max()) == 0.0
    assert module.choice is not None
    assert module.choice.name == execution


def test_the_ridge_head_learns_reloads_and_adapts(tmp_path: Path) -> None:
    module = ANIL(TinyConv(), head_solver="ridge")
    run = trainer(tmp_path, limit_val_batches=1)
    run.fit(module, datamodule=NoiseTasks(train_tasks=8))
    run.test(module, datamodule=NoiseTasks(), verbose=False)
    run.save_checkpoint(tmp_path / "module.ckpt")
    again = ANIL.load_from_checkpoint(tmp_path / "module.ckpt", backbone=TinyConv())
    episode = noise_episode(tasks=1, dtype=torch.float32)
    support = Batch(episode.support.x[0], episode.support.y[0])
    torch.testing.assert_close(again.adapt(support)(episode.query.x[0]), module.adapt(support)(episode.query.x[0]))
