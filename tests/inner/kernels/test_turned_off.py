"""``kernels=False``: no operator of ours is called, whatever is adapted, trained or evaluated."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from metalearn import ANIL, IMAML, MAML, Batch, BilevelFewShot, Conv4, MetaModule, ResNet12
from metalearn.inner import kernels
from tests.networks import noise_episode

OPERATORS = [getattr(kernels, name) for name in ("conv2d", "first_block", "linear", "normalise")]
MODULES: dict[str, Callable[[nn.Module, bool], MetaModule]] = {
    "maml": lambda net, on: MAML(net, 2, 0.1, kernels=on),
    "one_by_one": lambda net, on: MAML(net, 2, 0.1, kernels=on, execution="sequential"),
    "first_order": lambda net, on: MAML(net, 2, 0.1, kernels=on, first_order=True),
    "anil": lambda net, on: ANIL(net, 2, 0.1, kernels=on),
    "ridge": lambda net, on: ANIL(net, 2, 0.1, kernels=on, head_solver="ridge"),
    "support": lambda net, on: MAML(net, 2, 0.1, kernels=on, norm="support"),
    "per_step": lambda net, on: MAML(net, 2, 0.1, kernels=on, norm="per_step"),
    "remat": lambda net, on: MAML(net, 2, 0.1, kernels=on, memory="remat"),
    "mixed": lambda net, on: MAML(net, 2, 0.1, kernels=on, memory="mixed"),
    "imaml": lambda net, on: IMAML(net, 2, 0.1, damping=100.0, kernels=on),
    "bilevel": lambda net, on: BilevelFewShot(net, inner_steps=2, kernels=on),
}


class OurOperatorError(Exception):
    pass


@pytest.fixture
def without_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every operator, by whatever name it goes, and every differentiable function behind them raises."""

    def refuse(*args: Any, **keywords: Any) -> Any:
        raise OurOperatorError

    for kind in torch.autograd.Function.__subclasses__():
        if kind.__module__.startswith("metalearn.inner.kernels"):
            monkeypatch.setattr(kind, "apply", refuse)
    for module in [value for name, value in sys.modules.items() if name.startswith("metalearn")]:
        for name, value in list(vars(module).items()):
            if any(value is operator for operator in OPERATORS):
                monkeypatch.setattr(module, name, refuse)


def run(module: MetaModule) -> None:
    episode = noise_episode(tasks=2, shape=(1, 16, 16), dtype=torch.float32)
    module.training_step(episode, 0).backward()
    module.meta_gradient(episode)
    module.validation_step(episode, 0)
    module.adapt(Batch(episode.support.x[0], episode.support.y[0]))(episode.query.x[0])


@pytest.mark.usefixtures("without_operators")
@pytest.mark.parametrize("name", MODULES)
def test_nothing_of_ours_is_called(name: str) -> None:
    run(MODULES[name](Conv4(3, hidden=36, image_size=16), False))


@pytest.mark.usefixtures("without_operators")
def test_nothing_of_ours_is_called_for_other_layers() -> None:
    run(MAML(ResNet12(3, in_channels=1, widths=(4, 8, 8, 8)), 1, 0.1, kernels=False))


@pytest.mark.usefixtures("without_operators")
def test_the_test_would_see_it() -> None:
    with pytest.raises(OurOperatorError):
        run(MODULES["maml"](Conv4(3, hidden=36, image_size=16), True))
