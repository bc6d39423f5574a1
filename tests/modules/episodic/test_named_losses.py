"""The losses that have a name, and those that hold a band: values, meta-gradients, shapes, checkpoints and configurations."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.cli import LightningArgumentParser
from sklearn.metrics import mean_pinball_loss
from torch import Tensor
from torch.utils.data import DataLoader

from metalearn import MAML, MLP, Batch, ConfigError, Episode, MetaModule, ShapeError
from metalearn.inner import GaussianNLL, Quantiles
from metalearn.inner.named_losses import NAMED
from tests.modules.episodic.test_evaluation import trainer
from tests.modules.episodic.test_losses import CLASSES, MULTI, episode, network, noise, plain_step


def likelihood(outputs: Tensor, targets: Tensor) -> Tensor:
    targets = targets.reshape(len(targets), -1)
    k = targets.shape[1]
    deviation = (torch.log1p(outputs[:, k:].exp()) + 1e-6).sqrt()
    return -torch.distributions.Normal(outputs[:, :k], deviation).log_prob(targets).mean()


def pinball(*levels: float) -> Callable[[Tensor, Tensor], Tensor]:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        targets = targets.reshape(len(targets), -1)
        error = targets[:, None] - outputs.reshape(len(targets), len(levels), -1)
        level = torch.tensor(levels, dtype=error.dtype)[:, None]
        return torch.where(error > 0, level * error, (level - 1) * error).mean()

    return loss


def crossed(outputs: Tensor, targets: Tensor) -> Tensor:
    p = outputs.sigmoid()
    return -(targets * p.log() + (1 - targets) * (1 - p).log()).mean()


# the outputs, the loss as given, the loss of the plain loop, the targets
RIGHT: dict[str, tuple[int, Any, Callable[[Tensor, Tensor], Tensor], Tensor]] = {
    "l1": (2, "l1", lambda o, y: (o - y).abs().mean(), noise(2, seed=5)),
    "huber": (2, "huber", F.huber_loss, 2 * noise(2, seed=5)),
    "huber_of_whole_numbers": (1, "huber", lambda o, y: F.huber_loss(o, y.double()), 3 * CLASSES.unsqueeze(-1)),
    "gaussian": (4, "gaussian_nll", likelihood, noise(2, seed=5)),
    "gaussian_flat": (2, GaussianNLL(share=0.5), likelihood, noise(seed=5)),
    "quantile": (3, "quantile", pinball(0.1, 0.5, 0.9), noise(1, seed=5)),
    "quantiles_of_two": (4, Quantiles([0.25, 0.75]), pinball(0.25, 0.75), noise(2, seed=5)),  # type: ignore[arg-type]
    "quantiles_flat": (3, "quantile", pinball(0.1, 0.5, 0.9), noise(seed=5)),
    "binary": (4, "binary_cross_entropy", crossed, MULTI),
    "binary_of_truths": (4, "binary_cross_entropy", lambda o, y: crossed(o, y.double()), MULTI.bool()),
    "binary_of_shares": (4, "binary_cross_entropy", crossed, noise(4, seed=5).sigmoid()),
}


@pytest.mark.parametrize("name", RIGHT)
def test_the_meta_gradient_is_that_of_plain_autograd(name: str) -> None:
    outputs, loss, plain, y = RIGHT[name]
    net = network(outputs).double()
    tasks = episode(y)
    value, expected = plain_step(net, plain, tasks)
    for memory in ("store", "mixed"):  # the second takes derivatives forward over reverse
        module = MAML(net, inner_steps=2, inner_lr=0.1, loss=loss, memory=memory).double()  # type: ignore[arg-type]
        torch.testing.assert_close(module.training_step(tasks, 0).detach(), value, rtol=1e-9, atol=1e-12)
        for key, grad in module.meta_gradient(tasks).items():
            torch.testing.assert_close(grad, expected[key], rtol=1e-9, atol=1e-12, msg=f"{memory} {key}")
        assert module.choice is not None
        assert module.choice.name == "vectorized"
        assert not module.classifies


def test_the_meta_gradient_is_that_of_finite_differences() -> None:
    """Of the likelihood, along a direction in float64: an oracle that takes no derivative at all."""
    module = MAML(network(4).double(), inner_steps=2, inner_lr=0.1, loss="gaussian_nll")
    tasks, generator, size = episode(noise(2, seed=5)), torch.Generator().manual_seed(0), 1e-4
    weights = dict(module.named_parameters())
    way = {key: torch.randn(value.shape, generator=generator, dtype=torch.float64) for key, value in weights.items()}
    slope = sum(float((grad * way[key]).sum()) for key, grad in module.meta_gradient(tasks).items())
    ends = []
    for side in (-1, 2):  # from the middle to -1, then to +1
        with torch.no_grad():
            for key, value in weights.items():
                value += side * size * way[key]
        ends.append(float(module.meta_loss(tasks).loss.detach()))
    assert slope == pytest.approx((ends[1] - ends[0]) / (2 * size), rel=1e-6)


def test_the_pinball_loss_is_that_of_scikit_learn() -> None:
    outputs, targets = noise(6, seed=1)[0], noise(2, seed=2)[0]
    values = [mean_pinball_loss(targets, outputs[:, 2 * i : 2 * i + 2], alpha=p) for i, p in enumerate((0.1, 0.5, 0.9))]
    assert float(NAMED["quantile"](outputs, targets)) == pytest.approx(sum(values) / 3, rel=1e-12)


def test_outputs_are_read_as_they_are_laid_out() -> None:
    gaussian, quantiles = GaussianNLL(share=0.9), Quantiles((0.1, 0.4, 0.9))
    outputs = torch.tensor([[1.0, 2.0, math.log(math.e - 1), math.log(math.exp(4) - 1)]], dtype=torch.float64)
    torch.testing.assert_close(gaussian.point(outputs), outputs[:, :2])
    torch.testing.assert_close(gaussian.deviation(outputs) ** 2, torch.tensor([[1.0, 4.0]]).double() + 1e-6)
    low, high = gaussian.band(outputs)
    inside = torch.distributions.Normal(gaussian.point(outputs), gaussian.deviation(outputs))
    torch.testing.assert_close(inside.cdf(high) - inside.cdf(low), torch.full((1, 2), 0.9).double())
    crossing = torch.tensor([[3.0, 5.0, 2.0, 6.0, 1.0, 7.0]])  # of two targets, of which the first's cross
    assert quantiles.quantiles(crossing).tolist() == [[[1.0, 5.0]], [[2.0, 6.0]], [[3.0, 7.0]]]
    assert quantiles.point(crossing).tolist() == [[2.0, 6.0]]
    assert quantiles.band(crossing).tolist() == [[[1.0, 5.0]], [[3.0, 7.0]]]
    assert quantiles.share == pytest.approx(0.8)


def test_the_likelihood_is_finite_for_outputs_of_any_size() -> None:
    """In float32, where an exponential of the output would overflow."""
    outputs = torch.tensor([[0.0, -300.0], [0.0, 300.0]], requires_grad=True)
    loss = GaussianNLL()(outputs, torch.tensor([[3.0], [3.0]]))
    (grad,) = torch.autograd.grad(loss, outputs)
    assert bool(loss.isfinite())
    assert bool(grad.isfinite().all())


WRONG: dict[str, tuple[int, Any, Tensor, str]] = {
    "gaussian_of_one": (
        1,
        "gaussian_nll",
        noise(1),
        r"'gaussian_nll' needs a mean and a variance .*give the backbone 2 outputs",
    ),
    "gaussian_of_two": (2, GaussianNLL(), noise(2), r"GaussianNLL needs .*\[6, 4\]; give the backbone 4 outputs"),
    "quantile": (2, "quantile", noise(), r"'quantile' needs 3 outputs .*give the backbone 3 outputs"),
    "l1": (1, "l1", noise(), r"'l1' needs targets of shape \[6, 1\]"),
    "huber_of_classes": (3, "huber", CLASSES, r"'huber' needs targets of shape \[6, 3\]"),
    "binary_shape": (3, "binary_cross_entropy", MULTI, r"needs targets of shape \[6, 3\]"),
    "binary_range": (
        4,
        "binary_cross_entropy",
        MULTI + 1,
        "holds values from 1 to 2, and each must be 0, 1 or between",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_one_line(name: str) -> None:
    outputs, loss, y, message = WRONG[name]
    with pytest.raises(ShapeError, match=message) as caught:
        MAML(network(outputs).double(), inner_steps=1, inner_lr=0.1, loss=loss).training_step(episode(y), 0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("levels", [[], [0.9, 0.1], [0.5, 0.5], [0.0, 0.5], [0.5, 1.0], 0.5, ["a"]])
def test_levels_that_are_none_are_refused(levels: Any) -> None:
    with pytest.raises(ConfigError, match=r"levels .*use \[0.1, 0.5, 0.9\]"):
        Quantiles(levels)


def test_a_name_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"loss is 'gaussian', .*use 'gaussian_nll'"):
        MAML(network(2), loss="gaussian")  # type: ignore[arg-type]


@pytest.mark.parametrize("loss", ["gaussian_nll", GaussianNLL(share=0.5), Quantiles((0.2, 0.8))])
def test_a_checkpoint_holds_the_loss(loss: Any, tmp_path: Path) -> None:
    module = MAML(MLP(inputs=1, outputs=2), inner_steps=1, inner_lr=0.01, loss=loss)
    x = torch.linspace(-1, 1, 8).reshape(1, 8, 1)
    loader: Any = DataLoader([Episode(Batch(x, x), Batch(x, x))], batch_size=None)  # type: ignore[arg-type]
    run = trainer(tmp_path, max_steps=1, limit_val_batches=0)
    run.fit(module, loader, loader)
    run.save_checkpoint(tmp_path / "loss.ckpt")
    again = MAML.load_from_checkpoint(tmp_path / "loss.ckpt", backbone=MLP(inputs=1, outputs=2))
    assert again.adaptation.loss == module.adaptation.loss
    support = Batch(x[0], x[0])
    torch.testing.assert_close(again.adapt(support)(x[0]), module.adapt(support)(x[0]), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("argument", "loss"),
    [
        ("gaussian_nll", NAMED["gaussian_nll"]),
        ({"class_path": "metalearn.inner.GaussianNLL", "init_args": {"share": 0.9}}, GaussianNLL(0.9)),
        ({"class_path": "metalearn.inner.Quantiles", "init_args": {"levels": [0.05, 0.5, 0.95]}}, Quantiles((0.05, 0.5, 0.95))),
    ],
)  # fmt: skip
def test_a_configuration_says_the_loss(argument: Any, loss: Any) -> None:
    parser = LightningArgumentParser()
    parser.add_subclass_arguments(MetaModule, "model")
    backbone = {"class_path": "metalearn.backbones.MLP", "init_args": {"outputs": 2}}
    model = {"class_path": "metalearn.MAML", "init_args": {"backbone": backbone, "loss": argument}}
    made = parser.instantiate_classes(parser.parse_object({"model": model})).model
    assert made.adaptation.loss == loss
