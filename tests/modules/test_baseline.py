"""Heads on frozen features against scikit-learn and plain autograd; training against plain classification."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestCentroid
from torch import Tensor, nn

from metalearn import Baseline, Batch, ConfigError, Episode, ShapeError
from metalearn.datamodules import ArrayEpisodes, EpisodeOptions
from tests.algorithms import Smooth
from tests.modules.episodic.test_evaluation import trainer
from tests.networks import TinyConv, noise_episode


def network(ways: int = 3) -> Smooth:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Smooth(ways).double()


def task(ways: int = 3, shots: int = 4) -> tuple[Batch, Batch]:
    support, query = noise_episode(1, ways=ways, shots=shots)
    return Batch(support.x[0], support.y[0]), Batch(query.x[0], query.y[0])


def encode(net: Smooth, x: Tensor, unit: bool = False) -> Tensor:
    with torch.no_grad():
        z = net(x, features=True)
    return F.normalize(z, dim=1) if unit else z


@pytest.mark.parametrize(
    ("ways", "inverse_penalty", "unit_features"),
    [(2, 1.0, False), (2, 1000.0, True), (3, 1000.0, False), (5, 0.1, True)],
)
def test_logistic_regression_is_that_of_scikit_learn(ways: int, inverse_penalty: float, unit_features: bool) -> None:
    net, (support, query) = network(), task(ways)
    module = Baseline(
        net, classifier="logistic_regression", inverse_penalty=inverse_penalty, unit_features=unit_features
    )
    shares = module.adapt(support, ways=ways).probabilities(query.x)
    z, q = encode(net, support.x, unit_features), encode(net, query.x, unit_features)
    stock = LogisticRegression(C=inverse_penalty, solver="newton-cholesky", tol=1e-12)
    expected = torch.from_numpy(stock.fit(z.numpy(), support.y.numpy()).predict_proba(q.numpy()))
    torch.testing.assert_close(shares, expected, rtol=1e-6, atol=1e-7)


def test_fewer_classes_than_outputs_are_told_among_themselves() -> None:
    """A network of 64 outputs, and tasks of 3 classes."""
    net, (support, query) = network(64), task()
    for classifier in ("linear", "cosine", "logistic_regression", "nearest_centroid"):
        module = Baseline(net, classifier=classifier)  # type: ignore[arg-type]
        wide = module.adapt(support).probabilities(query.x)
        narrow = Baseline(network(), classifier=classifier).adapt(support).probabilities(query.x)  # type: ignore[arg-type]
        assert wide.shape[1] == 64
        torch.testing.assert_close(wide[:, :3], narrow)


def test_the_nearest_centroid_is_that_of_scikit_learn() -> None:
    net, (support, query) = network(), task()
    stock = NearestCentroid().fit(encode(net, support.x, True).numpy(), support.y.numpy())
    adapted = Baseline(net, classifier="nearest_centroid", unit_features=True).adapt(support)
    assert adapted(query.x).argmax(1).tolist() == stock.predict(encode(net, query.x, True).numpy()).tolist()


@pytest.mark.parametrize("classifier", ["linear", "cosine"])
def test_a_fitted_head_is_where_gradient_steps_of_autograd_lead(classifier: Any) -> None:
    net, (support, query) = network(), task()
    module = Baseline(net, classifier=classifier, head_steps=30, head_lr=0.2, head_decay=0.01)
    cosine = classifier == "cosine"
    z, q = encode(net, support.x, cosine), encode(net, query.x, cosine)
    weight = torch.stack([z[support.y == label].sum(0) for label in range(3)]) if cosine else torch.zeros(3, 6).double()
    weight, bias = weight.requires_grad_(), torch.zeros(3, dtype=torch.float64, requires_grad=True)

    def outputs(x: Tensor) -> Tensor:
        return 10 * F.linear(x, F.normalize(weight, dim=1)) if cosine else F.linear(x, weight, bias)

    groups = [{"params": [weight], "weight_decay": 0.0 if cosine else 0.01}, {"params": [bias]}]
    optimizer = torch.optim.SGD(groups, lr=0.2)
    for _ in range(30):
        optimizer.zero_grad()
        F.cross_entropy(outputs(z), support.y).backward()
        optimizer.step()
    torch.testing.assert_close(module.adapt(support)(query.x), outputs(q).detach())


def test_training_is_plain_classification_of_all_training_classes() -> None:
    """Twelve classes, of which a task has three, by a layer of their own; statistics of batch normalisation move on."""
    net, episode = TinyConv(), noise_episode(2, dtype=torch.float32)
    module = Baseline(net, classes=12)
    labels = [torch.tensor([7, 0, 11])[role.y] for role in episode]
    batch = Episode(*(Batch(role.x, y) for role, y in zip(episode, labels, strict=True)))
    head = module.training_head
    assert isinstance(head, nn.Linear)
    x, y = torch.cat([role.x for role in batch], 1).flatten(0, 1), torch.cat(labels, 1).flatten()
    expected = F.cross_entropy(head(net.body(x)), y)
    before = {name: value.clone() for name, value in net.named_buffers()}
    module.meta_gradient(Episode(*(Batch(role.x, role.y) for role in episode)))
    assert all(torch.equal(value, before[name]) for name, value in net.named_buffers())
    loss = module.training_step(batch, 0)
    assert any(not torch.equal(value, before[name]) for name, value in net.named_buffers())
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(value.grad is not None for value in module.parameters())


def test_data_label_training_tasks_by_class(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32)
    y = np.repeat(np.arange(30), 10)
    rows[:, 0] = y  # tells the class
    data = ArrayEpisodes(
        rows, y, ways=3, shots=1, queries=2, train_tasks=40, val_tasks=4, test_tasks=4, seed=1,
        options=EpisodeOptions(class_labels=True),
    )  # fmt: skip
    plain = ArrayEpisodes(rows, y, ways=3, shots=1, queries=2, seed=1)
    ragged = ArrayEpisodes(rows, y, ways=[2, 3], queries=2, seed=1, options=EpisodeOptions(class_labels=True))
    names, seen = data.class_names("train"), set()
    for role in ragged.episode(1, "train", 0):
        assert [names[label] for label in role.y.tolist()] == [str(round(value)) for value in role.x[:, 0].tolist()]
    for index in range(40):
        support, query = data.episode(1, "train", index)
        for role in (support, query):
            told = [names[label] for label in role.y.tolist()]
            assert told == [str(round(value)) for value in role.x[:, 0].tolist()]
            seen |= set(role.y.tolist())
        assert torch.equal(support.x, plain.episode(1, "train", index).support.x)
    assert seen == set(range(data.num_classes("train")))
    assert torch.equal(data.episode(1, "val", 0).support.y, torch.arange(3))

    net = nn.Sequential()
    net.body, net.head = nn.Sequential(nn.Linear(4, 8), nn.Tanh()), nn.Linear(8, 3)
    run = trainer(tmp_path, max_steps=3)
    with pytest.raises(ConfigError, match=r"options.class_labels is false.*class_labels true"):
        run.fit(Baseline(net), datamodule=plain)
    with pytest.raises(ConfigError, match=rf"backbone has 3 outputs.*use --model.classes {len(names)}"):
        run.fit(Baseline(net), datamodule=data)
    module = Baseline(net, classes=len(names), classifier="nearest_centroid")
    run.fit(module, datamodule=data)
    (result,) = run.test(module, datamodule=data, verbose=False)
    assert 0 <= result["test/acc"] <= 1
    run.save_checkpoint(tmp_path / "module.ckpt")
    again = Baseline.load_from_checkpoint(tmp_path / "module.ckpt", backbone=net)
    assert again.options.classes == len(names)


def test_what_it_cannot_take_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"classifier is 'knn', but it must be one of linear, cosine"):
        Baseline(network(), classifier="knn")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="classes is 1"):
        Baseline(network(), classes=1)
    support, _ = task()
    soft = Batch(support.x, torch.full((len(support.x), 3), 1 / 3, dtype=torch.float64))
    with pytest.raises(ShapeError, match="this head needs integer class labels"):
        Baseline(network()).adapt(soft)
