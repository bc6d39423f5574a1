"""Hyper-cleaning and regularisation tuning on made data: by every algorithm, under a stock Trainer, saved and reloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from metalearn import ConfigError, HyperCleaning, RegularizationTuning
from metalearn.bilevel import cleaning_problem, run
from metalearn.datamodules import MNISTCleaningDataModule, NewsgroupsDataModule
from tests.made_bilevel import make_mnist, make_newsgroups
from tests.modules.test_bilevel_module import trainer

SMALL: dict[str, Any] = {"train": 60, "val": 30, "test": 30, "steps_per_epoch": 3, "corruption": 0.4}
METHODS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "aid_cg": ({"estimator": "aid_cg"}, {}),
    "aid_fp": ({"estimator": "aid_fp"}, {}),
    "itd": ({"estimator": "itd"}, {}),
    "pzobo": ({"estimator": "pzobo", "linear_steps": 1}, {}),
    "stoc_bio": (
        {"estimator": "stoc_bio"}, {"batch_size": 20, "draws": {"inner": 5, "hessian": 3}},
    ),
    "mrbo": ({"algorithm": "mrbo", "estimator": "stoc_bio"}, {"batch_size": 20, "draws": {"inner": 1, "hessian": 3}}),
}  # fmt: skip


@pytest.fixture(scope="module")
def mnist(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_mnist(tmp_path_factory.mktemp("mnist")))


@pytest.mark.parametrize("name", METHODS)
def test_hyper_cleaning_by_every_method(name: str, mnist: str, tmp_path: Path) -> None:
    arguments, batches = METHODS[name]
    module = HyperCleaning(outer_lr=10.0, **arguments)
    fitted = trainer(tmp_path, max_steps=6)
    fitted.fit(module, datamodule=MNISTCleaningDataModule(mnist, **SMALL, **batches))
    (found,) = fitted.test(module, datamodule=MNISTCleaningDataModule(mnist, **SMALL, **batches), verbose=False)
    assert {"test/acc", "test/loss", "test/auroc"} <= found.keys()
    assert module.weights.shape == (60,)
    assert module.weights.std() > 0
    assert module.counts.gc_f > 0
    fitted.save_checkpoint(tmp_path / "module.ckpt")
    torch.load(tmp_path / "module.ckpt", weights_only=True)
    again = HyperCleaning.load_from_checkpoint(tmp_path / "module.ckpt", weights_only=True)
    assert torch.equal(again.x, module.x)
    assert torch.equal(again.y, module.y)
    assert again.counts == module.counts


def test_a_fit_is_the_run_of_its_problem(mnist: str, tmp_path: Path) -> None:
    module, data = HyperCleaning(outer_lr=10.0), MNISTCleaningDataModule(mnist, **SMALL)
    trainer(tmp_path, max_steps=5).fit(module, datamodule=data)
    problem = cleaning_problem(data.part("train"), data.part("val"), init_scale=0.01)
    expected = run(problem, module.algorithm, torch.zeros(60), steps=5)
    assert torch.equal(module.x, expected.x)


def test_regularization_tuning(tmp_path: Path) -> None:
    root = str(make_newsgroups(tmp_path / "news"))
    module = RegularizationTuning(initial_log_penalty=-3.0, outer_lr=5.0, inner_lr=1.0, inner_momentum=0.5)
    fitted, data = trainer(tmp_path, max_steps=6), NewsgroupsDataModule(root, steps_per_epoch=3)
    fitted.fit(module, datamodule=data)
    (found,) = fitted.test(module, datamodule=data, verbose=False)
    assert 0 <= found["test/acc"] <= 1
    assert module.x.shape == (len(data.words),)
    assert (module.x != -3.0).any()
    fitted.save_checkpoint(tmp_path / "module.ckpt")
    again = RegularizationTuning.load_from_checkpoint(tmp_path / "module.ckpt", weights_only=True)
    assert torch.equal(again.x, module.x)


def test_penalties_stay_in_their_range(tmp_path: Path) -> None:
    root = str(make_newsgroups(tmp_path / "news"))

    def fit(**changes: Any) -> torch.Tensor:
        module = RegularizationTuning(
            initial_log_penalty=-3.0, outer_lr=100.0, inner_lr=1.0, inner_momentum=0.5, **changes
        )
        trainer(tmp_path, max_steps=1).fit(module, datamodule=NewsgroupsDataModule(root))
        return module.x.detach()

    free = fit()
    assert free.min() < -3.1
    assert free.max() > -2.95
    torch.testing.assert_close(fit(log_penalty_range=(-3.1, -2.95)), free.clamp(-3.1, -2.95), rtol=0, atol=1e-6)


def test_arguments_out_of_range_are_one_line(mnist: str, tmp_path: Path) -> None:
    for arguments, reason in (
        ({"algorithm": "mrbo"}, "estimator is 'aid_cg' with algorithm='mrbo'"),
        ({"estimator": "newton"}, "estimator is 'newton'"),
        ({"l2": 0.0}, "l2 is 0.0"),
        ({"outer_lr": -1.0}, "outer_lr is -1.0"),
    ):
        with pytest.raises(ConfigError, match=reason):
            HyperCleaning(**arguments)
    with pytest.raises(ConfigError, match="initial_log_penalty is 99"):
        RegularizationTuning(initial_log_penalty=99.0)
    with pytest.raises(ConfigError, match="initial_log_penalty is -9.0, outside of log_penalty_range"):
        RegularizationTuning(log_penalty_range=(-3.0, 0.0))
    with pytest.raises(ConfigError, match="only the steps of algorithm='bio'"):
        RegularizationTuning(log_penalty_range=(-10.0, 0.0), algorithm="mrbo", estimator="stoc_bio")
    with pytest.raises(ConfigError, match="HyperCleaning has no examples, features, classes"):
        trainer(tmp_path, limit_val_batches=0).fit(HyperCleaning(), [0], [0])
