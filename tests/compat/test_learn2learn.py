"""learn2learn's Tasksets as our episodes, and its MAML as our module, where it is installed."""

from __future__ import annotations

import copy
import pickle
import random
import sys
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from metalearn import MAML, MLP, Batch, ConfigError, DataError, Episode
from metalearn.compat.learn2learn import TasksetDataModule, from_learn2learn
from tests.modules.episodic.test_meta_gradient import largest_error
from tests.networks import TinyConv, noise_episode

LR = 0.3
WAYS, SHOTS, QUERIES = 3, 2, 3
# what learn2learn says of itself on today's Python and torch
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def l2l() -> Any:
    return pytest.importorskip("learn2learn", reason="learn2learn is not installed: .ci/build_learn2learn builds it")


class Toy(Dataset):
    """8 classes of 20 noise images, whose first pixel is the number of the class and second that of the image."""

    def __init__(self, noisy: bool = False, names: bool = False) -> None:
        generator = torch.Generator().manual_seed(0)
        self.y = torch.arange(8).repeat_interleave(20)
        self.x = torch.randn(160, 1, 8, 8, generator=generator)
        self.x[:, 0, 0, 0], self.x[:, 0, 0, 1] = self.y.float(), torch.arange(160.0)
        self.noisy, self.names = noisy, names

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        x = self.x[index].clone()
        if self.noisy:  # augmentation from each of the three generators
            x[0, 1, :3] = torch.tensor([random.random(), np.random.rand(), float(torch.rand(()))])  # noqa: NPY002
        label = int(self.y[index])
        return x, f"class {label}" if self.names else label


def tasks(
    l2l: Any, ways: int = WAYS, images: int = SHOTS + QUERIES, number: int = -1, noisy: bool = False, remap: bool = True,
    consecutive: bool = True, replacement: bool = False,
) -> Any:  # fmt: skip
    dataset, t = l2l.data.MetaDataset(Toy(noisy)), l2l.data.transforms
    transforms = [t.NWays(dataset, n=ways), t.KShots(dataset, k=images, replacement=replacement), t.LoadData(dataset)]
    transforms += [t.RemapLabels(dataset)] if remap else []
    transforms += [t.ConsecutiveLabels(dataset)] if consecutive else [lambda task: random.sample(task, len(task))]
    return l2l.data.Taskset(dataset, transforms, num_tasks=number)


def module_of(taskset: Any, **kwargs: Any) -> TasksetDataModule:
    return TasksetDataModule(taskset, **{"ways": WAYS, "shots": SHOTS, "queries": QUERIES, **kwargs})


def equal(a: Episode, b: Episode) -> bool:
    return all(torch.equal(p, q) for r, s in zip(a, b, strict=True) for p, q in zip(r, s, strict=True))


def states() -> tuple[Any, ...]:
    numpy = np.random.get_state()  # noqa: NPY002
    return random.getstate(), numpy[1].tolist(), numpy[2:], torch.get_rng_state().tolist()


@pytest.mark.parametrize("consecutive", [True, False])
def test_support_and_query_are_disjoint_and_balanced(l2l: Any, consecutive: bool) -> None:
    data = module_of(tasks(l2l, consecutive=consecutive), tasks_per_batch=4, train_tasks=8)
    first, _ = data.train_dataloader()
    assert first.support.x.shape == (4, WAYS * SHOTS, 1, 8, 8)
    assert first.query.x.shape == (4, WAYS * QUERIES, 1, 8, 8)
    assert first.support.y.dtype == first.query.y.dtype == torch.int64
    for task in range(4):
        sx, qx = first.support.x[task], first.query.x[task]
        support, query = set(sx[:, 0, 0, 1].tolist()), set(qx[:, 0, 0, 1].tolist())
        assert (len(support), len(query), len(support & query)) == (WAYS * SHOTS, WAYS * QUERIES, 0)
        classes = sx[::SHOTS, 0, 0, 0]
        assert len(classes.unique()) == WAYS
        # a label names the same class of the dataset in both roles
        assert torch.equal(classes[first.support.y[task]], sx[:, 0, 0, 0])
        assert torch.equal(classes[first.query.y[task]], qx[:, 0, 0, 0])
        assert first.support.y[task].bincount().tolist() == [SHOTS] * WAYS
        assert first.query.y[task].bincount().tolist() == [QUERIES] * WAYS


def test_the_split_is_learn2learns_own(l2l: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a task whose examples come in any order."""
    drawn: list[Any] = []
    real = l2l.data.Taskset.get_task
    monkeypatch.setattr(l2l.data.Taskset, "get_task", lambda *args: drawn.append(real(*args)) or drawn[-1])
    support, query = module_of(tasks(l2l, consecutive=False)).episode(0, "train", 0)
    (sx, sy), (qx, qy) = l2l.data.partition_task(*drawn[0], shots=SHOTS)
    for ours, theirs in ((support.x, sx), (support.y, sy), (query.x, qx), (query.y, qy)):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("number", [-1, 7])
def test_an_episode_is_a_pure_function(l2l: Any, number: int) -> None:
    taskset = tasks(l2l, number=number, noisy=True)
    data, again = module_of(taskset), module_of(tasks(l2l, number=number, noisy=True))
    episode = data.episode(3, "train", 5)
    before = states()
    data.episode(4, "train", 12)
    assert states() == before
    random.seed(1)
    taskset.sample()  # what others draw, and what the Taskset caches, changes nothing
    assert equal(data.episode(3, "train", 5), episode)
    assert equal(again.episode(3, "train", 5), episode)
    assert not equal(data.episode(4, "train", 5), episode)
    assert not equal(data.episode(3, "train", 6), episode)
    both = data.draw(3, "train", [6, 5])
    assert equal(Episode(*(Batch(r.x[1], r.y[1]) for r in both)), episode)


def test_the_generators_come_back_after_an_error(l2l: Any) -> None:
    data = module_of(tasks(l2l, images=30))
    before = states()
    with pytest.raises(DataError, match=r"train task 0 cannot be drawn \(Sample larger than population"):
        data.episode(0, "train", 0)
    assert states() == before


def test_a_finite_taskset_repeats_its_tasks_with_new_augmentation(l2l: Any) -> None:
    data = module_of(tasks(l2l, number=4, noisy=True))
    first, second, other = (data.episode(0, "train", index).support for index in (1, 5, 2))
    assert torch.equal(first.x[..., 0, :2], second.x[..., 0, :2])
    assert not torch.equal(first.x, second.x)
    assert not torch.equal(first.x[..., 0, :2], other.x[..., 0, :2])
    assert not data.tasksets["train"].sampled_descriptions


def test_workers_draw_the_same(l2l: Any) -> None:
    alone, helped = (module_of(tasks(l2l, noisy=True), tasks_per_batch=2, train_tasks=4, num_workers=n) for n in (0, 1))
    for a, b in zip(alone.train_dataloader(), helped.train_dataloader(), strict=True):
        assert equal(a, b)
    dataset = pickle.loads(pickle.dumps(alone.train_dataloader().dataset))  # as for spawned workers
    assert equal(dataset[0], alone.train_dataloader().dataset[0])


def trainer(**kwargs: Any) -> L.Trainer:
    return L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, **kwargs)


def test_a_trainer_fits_and_tests(l2l: Any) -> None:
    data = module_of(
        tasks(l2l), val=tasks(l2l), test=tasks(l2l), tasks_per_batch=2, train_tasks=4, val_tasks=3, test_tasks=5
    )
    module = MAML(TinyConv(), inner_steps=1, inner_lr=LR)
    run = trainer(max_epochs=1)
    run.fit(module, datamodule=data)
    assert run.global_step == 2
    assert "val/acc" in run.callback_metrics
    (metrics,) = run.test(module, datamodule=data)
    assert 0 <= metrics["test/acc"] <= 1
    assert len(run.predict(module, datamodule=data)) == 3


def test_validation_and_test_may_be_left_out(l2l: Any) -> None:
    data = module_of(tasks(l2l), tasks_per_batch=2, train_tasks=4)
    module = MAML(TinyConv(), inner_steps=1, inner_lr=LR)
    run = trainer(max_epochs=1)
    run.fit(module, datamodule=data)
    assert run.global_step == 2
    assert "val/acc" not in run.callback_metrics
    with pytest.raises(ConfigError, match="test is None"):
        run.test(module, datamodule=data)
    with pytest.raises(ConfigError, match="val is None"):
        data.episode(0, "val", 0)


@pytest.mark.parametrize(
    ("taskset", "kind", "message"),
    [
        ({"ways": 4}, ConfigError, "ways is 3, but train task 0 has 4 classes"),
        ({"images": 7}, ConfigError, r"2 \+ 3 = 5, but class 0 of train task 0 has 7 examples; use KShots\(k=5\)"),
        ({"remap": False}, DataError, r"the labels \d, \d, \d, but they must be 0..2; add RemapLabels"),
        ({"replacement": True, "images": 60}, DataError, "holds an example twice"),
        ({"ways": 9}, DataError, "cannot be drawn"),
    ],
)
def test_a_task_that_does_not_fit_is_refused(l2l: Any, taskset: dict, kind: type, message: str) -> None:
    with pytest.raises(kind, match=message) as caught:
        module_of(tasks(l2l, **taskset)).episode(0, "train", 0)
    assert "\n" not in str(caught.value)


def test_a_taskset_of_something_else_is_refused(l2l: Any) -> None:
    regression = l2l.data.MetaDataset(TensorDataset(torch.randn(6, 2), torch.arange(6.0) / 2))
    load = l2l.data.transforms.LoadData
    for transforms, message in [
        ([load(regression)], "y must be one whole number per example"),
        (None, "has no examples|cannot be drawn"),
        ([l2l.data.transforms.NWays(regression, n=3)], "must be a pair of tensors"),
    ]:
        with pytest.raises(DataError, match=message):
            module_of(l2l.data.Taskset(regression, transforms)).episode(0, "train", 0)


def test_arguments_that_do_not_fit_are_refused(l2l: Any) -> None:
    good = tasks(l2l)
    named = l2l.data.Taskset(l2l.data.MetaDataset(Toy(names=True)))
    for make, message in [
        (lambda: module_of(None), "train is a NoneType"),
        (lambda: module_of(good, test=TensorDataset(torch.zeros(3))), "test is a TensorDataset"),
        (lambda: module_of(good, ways=1), "ways is 1"),
        (lambda: module_of(good, test=tasks(l2l, number=100)), "use test_tasks=100"),
        (lambda: module_of(named), "class label 'class 0'"),
    ]:
        with pytest.raises(ConfigError, match=message) as caught:
            make()
        assert "\n" not in str(caught.value)
    module_of(good, test=tasks(l2l, number=100), test_tasks=100)


@pytest.mark.parametrize("use", [lambda: TasksetDataModule(None), lambda: from_learn2learn(None)])
def test_a_missing_learn2learn_is_named(use: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "learn2learn", None)
    with pytest.raises(ConfigError, match=".ci/build_learn2learn") as caught:
        use()
    assert "\n" not in str(caught.value)


def their_loop(theirs: Any, episode: Episode, task: int, steps: int) -> Any:
    learner = theirs.clone()
    for _ in range(steps):
        learner.adapt(F.cross_entropy(learner(episode.support.x[task]), episode.support.y[task]))
    return learner


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("steps", [1, 3])
def test_a_learner_keeps_its_meta_gradient_and_predictions(l2l: Any, steps: int, first_order: bool) -> None:
    torch.manual_seed(0)
    theirs = l2l.algorithms.MAML(TinyConv().double(), lr=LR, first_order=first_order)
    episode = noise_episode()
    before = copy.deepcopy(theirs.module.state_dict())
    ours = from_learn2learn(theirs, inner_steps=steps)
    meta_gradient = ours.meta_gradient(episode)
    adapted = ours.adapt(Batch(episode.support.x[0], episode.support.y[0]))(episode.query.x[0])
    assert all(torch.equal(value, before[name]) for name, value in theirs.module.state_dict().items())
    assert [type(layer) for layer in theirs.module.body] == [type(layer) for layer in TinyConv().body]
    expected = their_loop(theirs, episode, 0, steps)(episode.query.x[0])
    torch.testing.assert_close(adapted, expected.detach(), rtol=1e-9, atol=1e-9)
    for task in range(3):
        learner = their_loop(theirs, episode, task, steps)
        (F.cross_entropy(learner(episode.query.x[task]), episode.query.y[task]) / 3).backward()
    grads = {f"backbone.{name}": value.grad for name, value in theirs.module.named_parameters()}
    assert largest_error(meta_gradient, grads) < 1e-9


def test_a_learner_shares_nothing_with_its_copy(l2l: Any) -> None:
    theirs = l2l.algorithms.MAML(TinyConv(), lr=LR)
    ours = from_learn2learn(theirs)
    shared = {value.data_ptr() for value in theirs.module.state_dict().values()}
    assert not shared & {value.data_ptr() for value in ours.backbone.state_dict().values()}
    run = trainer(max_epochs=1)
    run.fit(ours, datamodule=module_of(tasks(l2l), tasks_per_batch=2, train_tasks=2))
    assert all(value.grad is None for value in theirs.module.parameters())


def test_an_adapted_clone_is_taken_over(l2l: Any) -> None:
    """Its parameters are no leaves; shared and frozen ones stay what they are."""
    net = MLP(outputs=2, inputs=2, hidden=[2, 2])
    layers = [layer for layer in net.modules() if isinstance(layer, nn.Linear)]
    layers[1].weight = layers[0].weight
    layers[0].bias.requires_grad_(False)
    clone = l2l.algorithms.MAML(net, lr=LR, allow_nograd=True).clone()
    clone.adapt(F.cross_entropy(clone(torch.randn(4, 2)), torch.tensor([0, 1, 0, 1])))
    ours = from_learn2learn(clone)
    assert all(value.is_leaf for value in ours.parameters())
    copied = [layer for layer in ours.backbone.modules() if isinstance(layer, nn.Linear)]
    assert copied[0].weight is copied[1].weight
    assert not copied[0].bias.requires_grad
    theirs = dict(clone.module.named_parameters())
    for name, value in ours.backbone.named_parameters():
        assert torch.equal(value, theirs[name])


def test_other_learners_are_refused(l2l: Any) -> None:
    net = TinyConv()
    for learner, message in [
        (l2l.algorithms.MetaSGD(net), "learner is a MetaSGD"),
        (net, "learner is a TinyConv"),
        (l2l.algorithms.MAML(net, lr=nn.Parameter(torch.tensor(0.1))), "learner.lr is a Parameter"),
        (l2l.algorithms.MAML(net, lr=-1.0), "inner_lr is -1.0"),
    ]:
        with pytest.raises(ConfigError, match=message) as caught:
            from_learn2learn(learner)
        assert "\n" not in str(caught.value)
