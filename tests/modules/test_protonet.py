"""Class means against scikit-learn's nearest centroid, and what they are asked of."""

from __future__ import annotations

import copy

import pytest
import torch
from sklearn.neighbors import NearestCentroid
from torch import nn

from metalearn import Batch, ConfigError, ProtoNet, ShapeError
from tests.algorithms import Smooth
from tests.networks import TinyConv, noise_episode


def network(ways: int = 3) -> Smooth:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Smooth(ways).double()


@pytest.mark.parametrize("ways", [2, 3, 7])
def test_predictions_are_those_of_the_nearest_centroid(ways: int) -> None:
    """Fewer classes than the network has outputs, as many, and more."""
    net, episode = network(), noise_episode(1, ways=ways, shots=4)
    support, query = (Batch(role.x[0], role.y[0]) for role in episode)
    adapted = ProtoNet(net).adapt(support, ways=ways)
    with torch.no_grad():
        z, q = net(support.x, features=True), net(query.x, features=True)
    stock = NearestCentroid().fit(z.numpy(), support.y.numpy())
    outputs = adapted(query.x)
    assert outputs.shape == (len(query.x), ways)
    assert outputs.argmax(1).tolist() == stock.predict(q.numpy()).tolist()
    distances = torch.cdist(q, torch.as_tensor(stock.centroids_)).square()
    torch.testing.assert_close(adapted.probabilities(query.x), (-distances).softmax(1))


def test_imbalanced_classes_have_means_of_their_own_examples() -> None:
    net, x = network(), noise_episode(1, shots=4).support.x[0]
    y = torch.tensor([0, 0, 0, 0, 0, 1, 1, 2, 2, 2, 2, 2])
    with torch.no_grad():
        stock = NearestCentroid().fit(net(x, features=True).numpy(), y.numpy())
        expected = stock.predict(net(x, features=True).numpy())
    assert ProtoNet(net).adapt(Batch(x, y))(x).argmax(1).tolist() == expected.tolist()


def test_a_class_without_examples_is_never_told() -> None:
    episode = noise_episode(1, ways=2)
    support = Batch(episode.support.x[0], episode.support.y[0])
    shares = ProtoNet(network()).adapt(support).probabilities(episode.query.x[0])
    assert shares.shape[1] == 3
    assert bool((shares[:, 2] == 0).all())


def test_digits_are_kept_far_from_the_origin() -> None:
    """Features of norm 1000 that differ by 1, in float32."""
    net = nn.Sequential()
    net.body, net.head = nn.Identity(), nn.Linear(8, 3)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(12, 8, generator=generator) + 1000
    y = torch.arange(3).repeat(4)
    means = torch.stack([x[y == label].double().mean(0) for label in range(3)])
    expected = (-torch.cdist(x.double(), means).square()).softmax(1)
    found = ProtoNet(net).adapt(Batch(x, y)).probabilities(x)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=5e-3)


def test_the_head_is_neither_trained_nor_used() -> None:
    net, episode = TinyConv(), noise_episode(2, dtype=torch.float32)
    module = ProtoNet(net)
    loss = float(module.meta_loss(episode).loss.detach())
    grads = module.meta_gradient(episode)
    assert float(grads["backbone.head.weight"].abs().max()) == 0
    with torch.no_grad():
        net.head.weight.normal_()
    assert float(module.meta_loss(episode).loss.detach()) == loss


def test_what_it_cannot_take_is_one_line() -> None:
    net = network()
    net.head = nn.Linear(6, 3, bias=False).double()
    with pytest.raises(
        ConfigError, match="ProtoNet solves for the head, but 'head' has no bias.*build it with bias=True"
    ):
        ProtoNet(net)
    net = copy.deepcopy(net)
    net.head = nn.Sequential(nn.Linear(6, 3))  # type: ignore[assignment]
    with pytest.raises(ConfigError, match="ProtoNet solves for the head, but 'head' is a Sequential.*use ANIL"):
        ProtoNet(net)
    episode = noise_episode(1)
    soft = Batch(episode.support.x[0], torch.full((len(episode.support.x[0]), 3), 1 / 3, dtype=torch.float64))
    with pytest.raises(ShapeError, match="support.y is float64 of shape.*needs integer class labels"):
        ProtoNet(network()).adapt(soft)
    with pytest.raises(TypeError, match="inner_lr"):
        ProtoNet(network(), inner_lr=0.1)  # type: ignore[call-arg]
