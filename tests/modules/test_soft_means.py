"""Class means that queries move, against soft k-means written out, and where they stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.data import DataLoader

from metalearn import AdaptedModel, Baseline, Batch, ConfigError, ProtoNet
from tests.algorithms import Smooth
from tests.modules.episodic.test_evaluation import trainer
from tests.networks import TinyConv, noise_episode


def network(ways: int = 3) -> Smooth:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Smooth(ways).double()


def move(z: np.ndarray, y: np.ndarray, q: np.ndarray, ways: int, rounds: int, scale: float) -> np.ndarray:
    """Probabilities after soft k-means, one example and one class at a time."""
    told = sorted(set(y.tolist()))
    count = len(z) / len(told)
    own = {k: z[y == k].mean(0) for k in told}
    means = dict(own)

    def share(x: np.ndarray) -> dict[int, float]:
        logits = {k: -scale * float(((x - means[k]) ** 2).sum()) for k in told}
        top = max(logits.values())
        parts = {k: np.exp(value - top) for k, value in logits.items()}
        return {k: part / sum(parts.values()) for k, part in parts.items()}

    for _ in range(rounds):
        shares = [share(x) for x in q]
        means = {
            k: (count * own[k] + sum(p[k] * x for p, x in zip(shares, q, strict=True)))
            / (count + sum(p[k] for p in shares))
            for k in told
        }
    return np.array([[share(x).get(k, 0.0) for k in range(ways)] for x in q])


def make_loader(episode: Any) -> DataLoader[Any]:
    return DataLoader([episode], batch_size=None)


def split(episode: Any) -> tuple[Batch, Batch]:
    support, query = episode
    return Batch(support.x[0], support.y[0]), Batch(query.x[0], query.y[0])


@pytest.mark.parametrize("rounds", [1, 2, 10])
@pytest.mark.parametrize("ways", [2, 3, 7])
def test_answers_are_those_of_soft_k_means(rounds: int, ways: int) -> None:
    """Fewer classes than the network has outputs, as many, and more."""
    net, (support, query) = network(), split(noise_episode(1, ways=ways, shots=2, queries=6))
    with torch.no_grad():
        z, q = net(support.x, features=True), net(query.x, features=True)
    module = ProtoNet(net, refinements=rounds)
    expected = move(z.numpy(), support.y.numpy(), q.numpy(), max(ways, 3), rounds, 1.0)[:, :ways]
    found = module.adapt(support, ways=ways).probabilities(query.x)
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=1e-9, atol=1e-12)

    cosines = Baseline(
        net, classifier="nearest_centroid", unit_features=True, norm="transductive", refinements=rounds, scale=14.0
    )
    z, q = F.normalize(z, dim=1), F.normalize(q, dim=1)
    expected = move(z.numpy(), support.y.numpy(), q.numpy(), max(ways, 3), rounds, 7.0)[:, :ways]
    found = cosines.adapt(support, ways=ways).probabilities(query.x)
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=1e-9, atol=1e-12)


def test_a_class_without_examples_stays_without_queries() -> None:
    net, (support, query) = network(), split(noise_episode(1, ways=2, shots=3, queries=5))
    with torch.no_grad():
        z, q = net(support.x, features=True), net(query.x, features=True)
    found = ProtoNet(net, refinements=4).adapt(support).probabilities(query.x)
    expected = move(z.numpy(), support.y.numpy(), q.numpy(), 3, 4, 1.0)
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=1e-9, atol=1e-12)
    assert not found[:, 2].any()


@pytest.mark.parametrize("execution", ["sequential", "vectorized"])
def test_training_goes_through_every_round(execution: Any) -> None:
    net, episode = network(), noise_episode(3, shots=1, queries=4)
    module = ProtoNet(net, refinements=3, execution=execution)
    found = module.meta_gradient(episode)
    params = {name: value.detach().clone().requires_grad_() for name, value in net.named_parameters()}
    losses = []
    for x, y, queries, labels in zip(*episode.support, *episode.query, strict=True):
        z, q = (functional_call(net, params, (inputs,), {"features": True}) for inputs in (x, queries))
        start = torch.stack([z[y == k].mean(0) for k in range(3)])
        means = start
        for _ in range(3):
            belongs = (-(q[:, None] - means).square().sum(2)).softmax(1)
            means = torch.stack(
                [(start[k] + (belongs[:, k, None] * q).sum(0)) / (1 + belongs[:, k].sum()) for k in range(3)]
            )
        losses.append(F.cross_entropy(-(q[:, None] - means).square().sum(2), labels))
    names = [name for name in params if name.startswith("body")]
    expected = torch.autograd.grad(torch.stack(losses).mean(), [params[name] for name in names])
    for name, value in zip(names, expected, strict=True):
        torch.testing.assert_close(found[f"backbone.{name}"], value, rtol=1e-9, atol=1e-12)


def test_evaluation_may_have_rounds_of_its_own(tmp_path: Path) -> None:
    net, episode = network(), noise_episode(2, shots=1, queries=4)
    module = ProtoNet(net, refinements=0, eval_refinements=4)
    plain, moved = ProtoNet(net), ProtoNet(net, refinements=4)
    losses = [float(m.meta_loss(episode).loss.detach()) for m in (module, plain)]
    assert losses[0] == losses[1]
    support, query = split(episode)
    torch.testing.assert_close(module.adapt(support)(query.x), moved.adapt(support)(query.x))
    for other, expected in ((module, moved), (ProtoNet(net, refinements=4, eval_refinements=0), plain)):
        losses = [
            trainer(tmp_path).validate(m, make_loader(episode), verbose=False)[0]["val/loss"] for m in (other, expected)
        ]
        assert losses[0] == losses[1]
    with pytest.raises(ConfigError, match="eval_refinements is 4, but with norm='support'.*or eval_refinements=0"):
        ProtoNet(net, norm="support", eval_refinements=4)


def test_a_query_alone_is_answered_by_the_support_set(tmp_path: Path) -> None:
    """And so are all of ``independent()``, its file, and the test's metric of queries one by one."""
    net, episode = TinyConv().double(), noise_episode(4, shots=1, queries=5)
    module = ProtoNet(net, refinements=5)
    still = ProtoNet(net, norm="support")
    support, query = split(episode)
    adapted, plain = module.adapt(support), still.adapt(support)
    torch.testing.assert_close(adapted.independent()(query.x).softmax(1), plain(query.x).softmax(1))
    torch.testing.assert_close(adapted(query.x[:1]).softmax(1), plain(query.x[:1]).softmax(1))
    loaded = AdaptedModel.load(adapted.save(tmp_path / "one.safetensors"), module)
    torch.testing.assert_close(loaded(query.x), adapted.independent()(query.x))
    with pytest.raises(ConfigError, match="independent is False, but a query moves no class means by itself.*use save"):
        adapted.save(tmp_path / "two.safetensors", independent=False)
    assert not (tmp_path / "two.safetensors").exists()
    assert float((adapted(query.x).softmax(1) - plain(query.x).softmax(1)).abs().max()) > 1e-3

    trainer(tmp_path).test(module, make_loader(episode), verbose=False)
    alone = module.test_results()["acc_independent", 1].mean
    trainer(tmp_path).test(still, make_loader(episode), verbose=False)
    assert alone == still.test_results()["acc", 1].mean


def test_a_network_without_batch_normalisation_is_tested_both_ways(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module = ProtoNet(network(), refinements=5)
    support, query = split(noise_episode(1, shots=1, queries=5))
    module.adapt(support)(query.x[:1])
    (line,) = [line for line in caplog.messages if "a single query" in line]
    assert line == (
        "a single query moves no class means by itself, so it is answered by the support set alone; pass queries together for "
        "norm='transductive'"
    )
    trainer(tmp_path).test(module, make_loader(noise_episode(4, shots=1, queries=5)), verbose=False)
    assert {("acc", 1), ("acc_independent", 1)} <= module.test_results().keys()


class Apart(nn.Module):
    """Features of norm 1000 that differ by 1."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Flatten(), nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x + 1000))


def test_digits_are_kept_far_from_the_origin() -> None:
    support, query = split(noise_episode(1, shots=1, queries=5, dtype=torch.float32))
    near, far = (x.flatten(1).double() for x in (support.x + 1000, query.x + 1000))
    expected = move(near.numpy(), support.y.numpy(), far.numpy(), 3, 3, 1.0)
    found = ProtoNet(Apart(), refinements=3).adapt(support).probabilities(query.x)
    torch.testing.assert_close(found.double(), torch.from_numpy(expected), rtol=0, atol=5e-3)


def test_a_checkpoint_keeps_it(tmp_path: Path) -> None:
    module = ProtoNet(TinyConv(), refinements=2)
    run = trainer(tmp_path, max_steps=1)
    episode = noise_episode(2, shots=1, queries=5, dtype=torch.float32)
    run.fit(module, make_loader(episode), make_loader(episode))
    run.save_checkpoint(tmp_path / "there.ckpt")
    again = ProtoNet.load_from_checkpoint(tmp_path / "there.ckpt", backbone=TinyConv())
    support, query = split(episode)
    assert again.hparams["refinements"] == 2
    torch.testing.assert_close(again.adapt(support)(query.x), module.adapt(support)(query.x))


def test_what_does_not_go_together_is_one_line() -> None:
    with pytest.raises(
        ConfigError, match="refinements is 2, but with norm='running' .*use norm='transductive', or ref"
    ):
        Baseline(network(), classifier="nearest_centroid", refinements=2)
    with pytest.raises(
        ConfigError, match="refinements is 2, but classifier is 'linear', .*use classifier='nearest_cent"
    ):
        Baseline(network(), norm="transductive", refinements=2)
    with pytest.raises(ConfigError, match="refinements is 3, but with norm='support'"):
        ProtoNet(network(), norm="support", refinements=3)
    with pytest.raises(ConfigError, match="refinements is -1"):
        ProtoNet(network(), refinements=-1)
