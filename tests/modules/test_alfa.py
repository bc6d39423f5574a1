"""ALFA against a plain loop in float64: the meta-gradient by the network and by what generates its steps."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.data import DataLoader

from metalearn import ALFA, MAML, Batch, ConfigError
from tests.algorithms import Smooth
from tests.networks import noise_episode


def make(execution: Any = "auto", **options: Any) -> ALFA:
    """A module whose generator is no longer at its start."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        module = ALFA(Smooth().double(), **{"inner_steps": 2, "inner_lr": 0.3, **options}, execution=execution).double()
        with torch.no_grad():
            for value in module.solver.parameters():
                value += 0.3 * torch.randn_like(value)
    return module


def loop(module: ALFA, task: tuple[Tensor, ...], frozen: str = "") -> Tensor:
    """The query loss after two steps."""
    net, solver = module.backbone, module.solver
    params = dict(net.named_parameters())
    names = list(params)
    moving = [name for name in names if name != frozen]
    for step in range(2):
        loss = F.cross_entropy(functional_call(net, params, (task[0],)), task[1])
        grads = dict(
            zip(moving, torch.autograd.grad(loss, [params[n] for n in moving], create_graph=True), strict=True)
        )
        means = [grads[n].mean() if n in grads else torch.zeros(()).double() for n in names]
        means += [params[n].mean() if n in grads else torch.zeros(()).double() for n in names]
        factors = 1 + solver.generator(torch.stack(means))
        rates, decays = factors[: len(names)] * solver.rates[step], factors[len(names) :] * solver.decays[step]
        params |= {n: decays[i] * params[n] - rates[i] * grads[n] for i, n in enumerate(names) if n in grads}
    return F.cross_entropy(functional_call(net, params, (task[2],)), task[3])


@pytest.mark.parametrize("frozen", ["", "body.1.bias"])
@pytest.mark.parametrize(("execution", "memory"), [("sequential", "store"), ("vectorized", "remat")])
def test_the_meta_gradient_is_that_of_a_plain_loop(execution: str, memory: str, frozen: str) -> None:
    module, episode = make(execution, memory=memory), noise_episode(2)
    for name, value in module.backbone.named_parameters():
        value.requires_grad_(name != frozen)
    (xs, ys), (xq, yq) = episode
    total = torch.stack([loop(module, task, frozen) for task in zip(xs, ys, xq, yq, strict=True)]).mean()
    outer = {name: value for name, value in module.named_parameters() if value.requires_grad}
    expected = dict(zip(outer, torch.autograd.grad(total, list(outer.values())), strict=True))
    grads = module.meta_gradient(episode)
    assert grads.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(grads[name], value, rtol=1e-9, atol=1e-9, msg=name)


def test_it_starts_as_maml() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = Smooth().double()
    support, query = noise_episode(1)
    batch = Batch(support.x[0], support.y[0])
    ours = ALFA(net, inner_steps=3, inner_lr=0.25).double().adapt(batch)(query.x[0])
    torch.testing.assert_close(ours, MAML(net, inner_steps=3, inner_lr=0.25).adapt(batch)(query.x[0]))


def test_more_classes_and_other_layers() -> None:
    """Its rates are those of tensors, so that a wider head has them too; new layers have new ones."""
    module, (support, query) = make(), noise_episode(1, ways=5)
    assert module.adapt(Batch(support.x[0], support.y[0]), ways=5)(query.x[0]).shape == (len(query.x[0]), 5)
    module.backbone.head = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)).double()  # type: ignore[assignment]
    module.configure_optimizers()
    assert module.solver.rates.shape == (2, 6)  # type: ignore[union-attr]


def test_step_sizes_are_one_number() -> None:
    with pytest.raises(ConfigError, match=r"inner_lr is 'learn'.*number"):
        make(inner_lr="learn")


@pytest.mark.parametrize(("taken", "says"), [(None, False), (1, False), (4, True)])
def test_more_steps_than_were_learned_are_said(taken: int | None, says: bool, caplog: pytest.LogCaptureFixture) -> None:
    module, loader = make(eval_inner_steps=taken), DataLoader([noise_episode(2)], batch_size=None)  # type: ignore[arg-type]
    with caplog.at_level("INFO"):
        for _ in range(2):
            L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False).validate(
                module, loader, verbose=False
            )
    lines = [record.getMessage() for record in caplog.records if "use eval_inner_steps=2" in record.getMessage()]
    assert len(lines) == int(says)
    assert all("learned for 2 inner steps, but evaluation takes 4" in line for line in lines)
