"""Hyper-cleaning and regularisation tuning on made data: by every algorithm, under a stock Trainer, saved and reloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from metalearn import ConfigError, DivergenceError, HyperCleaning, RegularizationTuning
from metalearn.bilevel import Exact, GradientDescent, cleaning_problem, hypergradient, regularization_problem, run
from metalearn.datamodules import MNISTCleaningDataModule, NewsgroupsDataModule
from metalearn.modules.problem_based.names import (
    ALGORITHMS,
    ESTIMATORS,
    LINEAR_SOLVERS,
    AlgorithmName,
    EstimatorName,
    LinearSolverName,
)
from tests.made_bilevel import make_mnist, make_newsgroups
from tests.modules.problem_based.test_bilevel_module import trainer

SMALL: dict[str, Any] = {"train": 60, "val": 30, "test": 30, "steps_per_epoch": 3, "corruption": 0.4}
METHODS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "aid_cg": ({"estimator": "aid_cg"}, {}),
    "aid_fp": ({"estimator": "aid_fp"}, {}),
    "aid_neumann": ({"estimator": "aid_neumann"}, {}),
    "itd": ({"estimator": "itd"}, {}),
    "pzobo": ({"estimator": "pzobo", "linear_steps": 1}, {}),
    "stoc_bio": (
        {"estimator": "stoc_bio"}, {"batch_size": 20, "draws": {"inner": 5, "hessian": 3}},
    ),
    "mrbo": ({"algorithm": "mrbo", "estimator": "stoc_bio"}, {"batch_size": 20, "draws": {"inner": 1, "hessian": 3}}),
    "vrbo": (
        {"algorithm": "vrbo", "estimator": "stoc_bio", "inner_steps": 2},
        {"batch_size": 20, "draws": {"inner": 4, "outer": 4, "hessian": 12, "jacobian": 4}},
    ),
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


def resumable(
    name: str, data: MNISTCleaningDataModule, folder: Path, steps: int, ckpt: Path | None = None
) -> HyperCleaning:
    """A run that saves every third step, in epochs of 5."""
    saver = ModelCheckpoint(
        dirpath=folder, filename="last", every_n_train_steps=3, save_top_k=1, enable_version_counter=False
    )
    module = HyperCleaning(outer_lr=10.0, **METHODS[name][0])
    fitted = trainer(folder, max_steps=steps, enable_checkpointing=True, callbacks=[saver], limit_val_batches=0)
    fitted.fit(module, datamodule=data, ckpt_path=ckpt, weights_only=True)
    return module


@pytest.mark.filterwarnings("ignore:Checkpoint directory")  # that of the run which is resumed
@pytest.mark.parametrize("name", ["mrbo", "vrbo", "pzobo", "stoc_bio", "aid_cg"])
def test_a_resumed_run_equals_the_uninterrupted_one(name: str, mnist: str, tmp_path: Path) -> None:
    """Ended after step 8, in mid-epoch and between VRBO's anchors, with the last checkpoint at step 6."""

    def data() -> MNISTCleaningDataModule:
        return MNISTCleaningDataModule(mnist, **{**SMALL, "steps_per_epoch": 5}, **METHODS[name][1])

    whole = resumable(name, data(), tmp_path / "a", 12)
    resumable(name, data(), tmp_path / "b", 8)
    resumed = resumable(name, data(), tmp_path / "b", 12, tmp_path / "b" / "last.ckpt")
    assert torch.equal(resumed.x, whole.x)
    assert torch.equal(resumed.y, whole.y)
    for key in ("u", "v"):
        found, expected = resumed.state.get(key), whole.state.get(key)
        assert (found is None and expected is None) or torch.equal(found, expected)
    assert resumed.counts == whole.counts
    assert whole.weights.std() > 0


def test_a_fit_is_the_run_of_its_problem(mnist: str, tmp_path: Path) -> None:
    """Certificates included."""
    module, data = HyperCleaning(outer_lr=10.0), MNISTCleaningDataModule(mnist, **SMALL)
    fitted = trainer(tmp_path, max_steps=5)
    fitted.fit(module, datamodule=data)
    problem = cleaning_problem(data.part("train"), data.part("val"), init_scale=0.01)
    expected = run(problem, module.algorithm, torch.zeros(60), steps=5)
    assert torch.equal(module.x, expected.x)
    assert float(fitted.callback_metrics["train/certificate"]) == pytest.approx(expected.history[-1].certificate)


@pytest.mark.parametrize("estimator", ["aid_cg", "aid_fp", "itd"])
def test_certificates_are_logged_and_hold(estimator: Any, tmp_path: Path) -> None:
    """Of AID on all posts, the error of the last step's hypergradient, against the dense solution in float64."""
    data = NewsgroupsDataModule(str(make_newsgroups(tmp_path / "news")), vocabulary=20, steps_per_epoch=3)
    module = RegularizationTuning(
        initial_log_penalty=1.0, estimator=estimator, inner_lr=1.0, inner_momentum=0.0, linear_lr=1.0, outer_lr=1.0
    )
    fitted = trainer(tmp_path, max_steps=2)
    fitted.fit(module, datamodule=data)
    logged = fitted.callback_metrics
    assert ("train/certificate" in logged) == (estimator != "itd")
    if estimator == "itd":
        return
    train, val = ((index, x.to_dense().double(), y) for index, x, y in (data.part("train"), data.part("val")))
    problem = regularization_problem(train, val, classes=3)
    made = run(problem, module.algorithm, torch.full((20,), 1.0, dtype=torch.float64), steps=1)
    exact = Exact(inner=GradientDescent(step_size=1.0, tolerance=1e-12))
    again = module.algorithm.step(problem, made.state)
    error = (made.x - again["x"]) - hypergradient(problem, made.x, None, exact).value
    assert float(error.norm()) <= float(logged["train/certificate"])


@pytest.mark.parametrize("name", METHODS)
def test_regularization_tuning(name: str, tmp_path: Path) -> None:
    root = str(make_newsgroups(tmp_path / "news"))
    module = RegularizationTuning(
        initial_log_penalty=-3.0, outer_lr=0.1, inner_lr=1.0, inner_momentum=0.5, linear_lr=1.0, **METHODS[name][0]
    )
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


class Poisoned(MNISTCleaningDataModule):
    """Batches one of whose roles is not a number from the fifth on."""

    role = "inner"

    def batch(self, number: int) -> Any:
        found = super().batch(number)
        part = getattr(found, self.role)
        return found if number < 4 else found._replace(**{self.role: part._replace(x=part.x * float("nan"))})


@pytest.mark.parametrize("name", METHODS)
def test_data_that_are_not_finite_stop_every_method(name: str, mnist: str, tmp_path: Path) -> None:
    arguments, batches = METHODS[name]
    for role, term in (("inner", "grad_y g"), ("outer", "outer_loss")):
        data = Poisoned(mnist, **{**SMALL, "steps_per_epoch": 9}, **batches)
        data.role = role
        with pytest.raises(DivergenceError, match=rf"{term} .*outer step 4, but"):
            trainer(tmp_path, max_steps=9).fit(HyperCleaning(outer_lr=1.0, **arguments), datamodule=data)


def test_data_of_other_sizes_are_one_line(mnist: str, tmp_path: Path) -> None:
    for sizes, reason in (
        ({"features": 7}, "features is 7, but the data have 64; leave features out"),
        ({"examples": 7}, "examples is 7, but the data have 60"),
        ({"classes": 5}, "classes is 5, but the data have 10"),
    ):
        with pytest.raises(ConfigError, match=reason):
            trainer(tmp_path).fit(HyperCleaning(**sizes), datamodule=MNISTCleaningDataModule(mnist, **SMALL))
    module = HyperCleaning(outer_lr=10.0)
    trainer(tmp_path, max_steps=1).fit(module, datamodule=MNISTCleaningDataModule(mnist, **SMALL))
    with pytest.raises(ConfigError, match="examples is 60, but the data have 70"):
        trainer(tmp_path).test(module, datamodule=MNISTCleaningDataModule(mnist, **{**SMALL, "train": 70}))


@pytest.mark.parametrize("module", ["cleaning", "regularization"])
@pytest.mark.parametrize("estimator", ["aid_cg", "itd", "stoc_bio"])
def test_a_step_in_bf16_mixed_is_that_of_a_plain_loop(module: str, estimator: Any, mnist: str, tmp_path: Path) -> None:
    """Dense and sparse data: the first hypergradient, against autograd through a loop in float64 (or a dense solve after it)."""
    sizes: dict[str, Any] = {
        "inner_steps": 6,
        "inner_lr": 0.2,
        "inner_momentum": 0.0,
        "linear_steps": 100,
        "linear_lr": 0.2,
    }
    if module == "cleaning":
        made: Any = HyperCleaning(l2=0.1, outer_lr=1.0, estimator=estimator, **sizes)
        data: Any = MNISTCleaningDataModule(mnist, **{**SMALL, "train": 20})
    else:
        made = RegularizationTuning(initial_log_penalty=1.0, outer_lr=1.0, estimator=estimator, **sizes)
        data = NewsgroupsDataModule(str(make_newsgroups(tmp_path / "news")), vocabulary=20)
    fitted = trainer(tmp_path, precision="bf16-mixed", max_steps=1, limit_val_batches=0)
    fitted.fit(made, datamodule=data)
    assert {value.dtype for value in made.state.values() if isinstance(value, torch.Tensor)} == {torch.float32}
    train, val = (
        (part.index, part.x.to_dense().double() if module != "cleaning" else part.x.double(), part.y)
        for part in (data.part("train"), data.part("val"))
    )
    start = torch.zeros(20) if module == "cleaning" else torch.full((20,), 1.0)
    x = start.double().requires_grad_()
    inner, outer = made.problem.inner_loss, made.problem.outer_loss
    w = made.problem.init_inner(start).double().requires_grad_()
    for _ in range(6):
        w = w - 0.2 * torch.autograd.grad(inner(x, w, train), w, create_graph=True)[0]
    if estimator == "itd":
        (expected,) = torch.autograd.grad(outer(x, w, val), x)
    else:
        w = w.detach().requires_grad_()
        (slope,) = torch.autograd.grad(inner(x, w, train), w, create_graph=True)
        units = torch.eye(w.numel(), dtype=torch.float64).reshape(-1, *w.shape)
        bend = torch.stack([torch.autograd.grad(slope, w, unit, retain_graph=True)[0].flatten() for unit in units])
        (right,) = torch.autograd.grad(outer(x, w, val), w)
        v = torch.linalg.solve(bend, right.flatten()).reshape(w.shape)
        (expected,) = (-each for each in torch.autograd.grad(slope, x, v))
    found = start.double() - made.x.double()
    assert float((found - expected).norm()) < 0.02 * float(expected.norm())


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
    with pytest.raises(ConfigError, match="low must not be above high; swap them"):
        RegularizationTuning(log_penalty_range=(0.0, -14.0))
    with pytest.raises(ConfigError, match="only the steps of algorithm='bio'"):
        RegularizationTuning(log_penalty_range=(-10.0, 0.0), algorithm="mrbo", estimator="stoc_bio")
    with pytest.raises(ConfigError, match="HyperCleaning has no examples, features, classes"):
        trainer(tmp_path, limit_val_batches=0).fit(HyperCleaning(), [0], [0])


def test_names_are_those_of_the_tables() -> None:
    for names, table in (
        (AlgorithmName, ALGORITHMS),
        (EstimatorName, ESTIMATORS),
        (LinearSolverName, LINEAR_SOLVERS),
    ):
        assert list(get_args(names)) == list(table)


def test_a_subclass_may_have_parameters_of_its_own(mnist: str, tmp_path: Path) -> None:
    """They stand in the state dict beside those of ``x``, and nothing of the class is asked for before its constructor ends."""

    class Extended(HyperCleaning):
        def __init__(self, more: int = 2) -> None:
            super().__init__(outer_lr=10.0)
            self.more = torch.nn.Parameter(torch.ones(more))

    module = Extended(more=3)
    trainer(tmp_path, max_steps=1).fit(module, datamodule=MNISTCleaningDataModule(mnist, **SMALL))
    assert sorted(module.state_dict()) == ["more", "outer.0"]
    assert torch.equal(module.more.detach(), torch.ones(3))
    assert module.x.std() > 0
