"""Every module, data module and adapted network can be pickled, copied and saved whole, before and after it has been used."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor, nn
from torch.nn.utils import prune

from metalearn import (
    IMAML,
    MAML,
    Batch,
    BilevelFewShot,
    BilevelModule,
    HyperCleaning,
    MetaModule,
    RegularizationTuning,
)
from metalearn.bilevel import AID, CG, BiO, GradientDescent, quadratic, worst_case
from metalearn.datamodules import (
    ImageFolderEpisodes,
    MNISTCleaningDataModule,
    NewsgroupsDataModule,
    SinusoidDataModule,
)
from metalearn.modules.training.outer import adam
from tests.algorithms import ALGORITHMS, KINDS
from tests.made import make_folder
from tests.made_bilevel import make_mnist, make_newsgroups
from tests.modules.problem_based.test_bilevel_module import trainer
from tests.networks import TinyConv, noise_episode


def save(value: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


WAYS: dict[str, Callable[[Any], Any]] = {
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),  # of our own making
    "deepcopy": copy.deepcopy,
    "save": save,
}
MODULES: dict[str, Callable[[], MetaModule]] = {
    **{name: lambda it=algorithm: it.make_cheap(TinyConv()) for name, algorithm in ALGORITHMS.items()},
    "learned": lambda: MAML(TinyConv(), inner_steps=1, inner_lr="learn", inner_optimizer="adam", outer_scheduler="cosine"),
    "per_element": lambda: MAML(TinyConv(), inner_steps=1, inner_lr="learn_per_element", norm="per_step"),
    "loss_module": lambda: MAML(TinyConv(), inner_steps=1, loss=torch.nn.CrossEntropyLoss(torch.ones(3))),
    "normal_cg": lambda: IMAML(TinyConv(), inner_steps=1, linear_solver="normal_cg", cg_steps=2),
    "bilevel_ridge": lambda: BilevelFewShot(TinyConv(), inner_steps=1, head_loss="ridge", estimator="itd"),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", MODULES)
def test_a_module_gives_the_same_gradient_and_predictions_afterwards(name: str, way: str) -> None:
    torch.manual_seed(0)
    episode = noise_episode(dtype=torch.float32, tasks=2)
    support = Batch(episode.support.x[0], episode.support.y[0])

    def use(module: MetaModule) -> dict[str, Tensor]:
        found = module.meta_gradient(episode)
        return found | {"": module.adapt(support)(episode.query.x[0])}

    module = MODULES[name]()
    fresh = WAYS[way](module)
    expected = use(module)
    used = WAYS[way](module)
    adapted = WAYS[way](module.adapt(support))
    for again in (use(fresh), use(used)):
        assert again.keys() == expected.keys()
        assert all(torch.equal(again[key], expected[key]) for key in expected)
    with torch.no_grad():
        for value in module.parameters():
            value.zero_()
    assert torch.equal(adapted(episode.query.x[0]), expected[""])
    assert all(torch.equal(value, expected[key]) for key, value in use(used).items())  # it shares nothing


def weight_norm_in_hooks() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(nn.Linear(8, 6))


def pruned() -> nn.Module:
    return prune.l1_unstructured(nn.Linear(8, 6), "weight", 0.5)


@pytest.mark.parametrize("build", [weight_norm_in_hooks, pruned])
def test_a_weight_that_hooks_compute_is_copied_without_its_graph(build: Callable[[], nn.Module]) -> None:
    """torch alone refuses to copy such a layer once it has run."""
    net = nn.Sequential(build(), nn.Tanh(), nn.Linear(6, 3))
    module, episode = MAML(net, inner_steps=1), noise_episode(shape=(8,), dtype=torch.float32)
    expected = module.meta_gradient(episode)
    net(episode.query.x[0])
    adapted = module.adapt(Batch(episode.support.x[0], episode.support.y[0]))
    found = copy.deepcopy(module).meta_gradient(episode)
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert torch.equal(copy.deepcopy(adapted)(episode.query.x[0]), adapted(episode.query.x[0]))


def test_the_default_optimiser_is_that_of_the_signature() -> None:
    weights = [torch.nn.Parameter(torch.ones(2))]
    for kind in KINDS:
        made = kind(TinyConv()).outer_optimizer  # type: ignore[abstract]
        assert made is adam
        default = inspect.signature(kind).parameters["outer_optimizer"].default
        assert default(weights).defaults == adam(weights).defaults


def problems() -> dict[str, BilevelModule]:
    algorithm = BiO(
        estimator=AID(inner=GradientDescent(step_size=0.3, steps=5), solver=CG(iterations=3)), step_size=0.01
    )
    return {
        "quadratic": BilevelModule(
            quadratic(4, 3, 5.0, 0).problem, algorithm, torch.zeros(3).double(), steps_per_epoch=2
        ),
        "worst_case": BilevelModule(
            worst_case(20, mu_x=0.1, mu_y=0.1).problem, algorithm, torch.zeros(20).double(), steps_per_epoch=2
        ),
    }


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["quadratic", "worst_case"])
def test_a_bilevel_module_goes_on_as_it_would_have(name: str, way: str, tmp_path: Path) -> None:
    module = problems()[name]
    trainer(tmp_path, max_steps=2).fit(module)
    copied = WAYS[way](module)
    assert torch.equal(copied.x, module.x)
    trainer(tmp_path, max_steps=2).fit(module)
    trainer(tmp_path, max_steps=2).fit(copied)
    assert torch.equal(copied.x, module.x)


LINEAR: dict[str, tuple[Callable[[], Any], Callable[[Path], LightningDataModule]]] = {
    "cleaning": (lambda: HyperCleaning(outer_lr=10.0), lambda root: MNISTCleaningDataModule(
        str(make_mnist(root)), train=60, val=30, test=30, steps_per_epoch=2, corruption=0.4)),
    "regularization": (RegularizationTuning, lambda root: NewsgroupsDataModule(
        str(make_newsgroups(root)), steps_per_epoch=1)),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", LINEAR)
def test_linear_models_and_their_data(name: str, way: str, tmp_path: Path) -> None:
    make_module, make_data = LINEAR[name]
    module, data = make_module(), make_data(tmp_path)
    WAYS[way](module)
    WAYS[way](data)
    trainer(tmp_path, max_steps=1).fit(module, datamodule=data)
    module, data = WAYS[way](module), WAYS[way](data)
    assert data.trainer is None
    (found,) = trainer(tmp_path).test(module, datamodule=data, verbose=False)
    assert "test/loss" in found


@pytest.mark.parametrize(
    "make",
    [lambda root: SinusoidDataModule(), lambda root: ImageFolderEpisodes(str(make_folder(root)), ways=2, queries=2)],
)
def test_episodic_data_modules(make: Callable[[Path], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METALEARN_CACHE", str(tmp_path / "cache"))
    data = make(tmp_path / "data")
    copies = [way(data) for way in WAYS.values()]
    expected = data.episode(0, "test", 3)
    copies += [way(data) for way in WAYS.values()]
    for again in copies:
        found = again.episode(0, "test", 3)
        assert torch.equal(found.support.x, expected.support.x)
        assert torch.equal(found.query.y, expected.query.y)
