"""A bilevel problem under a stock Trainer is the run of its algorithm, also after a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader

from metalearn import BilevelModule, CheckpointError, ConfigError, DivergenceError, ShapeError
from metalearn.bilevel import (
    AID,
    CG,
    ITD,
    L1,
    MRBO,
    VRBO,
    AccBiO,
    AccBiOBG,
    Algorithm,
    BilevelProblem,
    BiO,
    Constants,
    GradientDescent,
    ProximalBiO,
    Sampled,
    StocBiONeumann,
    run,
)
from tests.bilevel.made import DOUBLE, Logistic, noise, relative
from tests.bilevel.test_mixed_precision import INNER as INNER_12
from tests.bilevel.test_mixed_precision import Plain
from tests.distributed.bilevel import sampled

ROOT = Path(__file__).parents[3]
INNER = GradientDescent(step_size=0.3, steps=5)
POINT = StocBiONeumann(eta=0.3, Q=2)

ALGORITHMS: dict[str, Callable[[], Algorithm]] = {
    "aid": lambda: BiO(estimator=AID(inner=INNER, solver=CG(iterations=3)), step_size=0.3),
    "itd": lambda: BiO(estimator=ITD(inner=INNER), step_size=0.3),
    "stoc_bio": lambda: BiO(estimator=StocBiONeumann(inner=INNER, eta=0.3, Q=3), step_size=0.3),
    "acc_bio": lambda: AccBiO(estimator=AID(inner=INNER), L_phi=4.0, mu_x=0.1),
    "acc_bio_bg": lambda: AccBiOBG(estimator=AID(inner=INNER), step_size=0.1, mu_x=0.1),
    "mrbo": lambda: MRBO(estimator=POINT, step_size=0.2, inner_step_size=0.3),
    "vrbo": lambda: VRBO(estimator=POINT, anchor=POINT, step_size=0.1, inner_step_size=0.2, anchor_size=10),
    "proximal": lambda: ProximalBiO(estimator=AID(inner=INNER), prox=L1(0.01), step_size=0.2, momentum=0.5),
}


def trainer(folder: Path, **more: Any) -> L.Trainer:
    settings = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False,
                "enable_checkpointing": False, "default_root_dir": folder, "max_steps": 7}  # fmt: skip
    return L.Trainer(**{**settings, **more})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_fit_is_a_run(name: str, tmp_path: Path) -> None:
    """The same points, state and counts as the plain loop, up to the last digit of x - (x - x+)."""
    stochastic = name in ("stoc_bio", "mrbo", "vrbo")
    problem = sampled() if stochastic else Logistic().problem
    algorithm, x = ALGORITHMS[name](), noise(4, seed=9)
    expected = run(problem, algorithm, x, steps=7, seed=3)
    module = BilevelModule(problem, algorithm, x, seed=3, steps_per_epoch=3)
    fitted = trainer(tmp_path)
    fitted.fit(module)
    torch.testing.assert_close(module.x, expected.state["x"], rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(module.solution(), expected.x, rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(module.y, expected.state["y"], rtol=1e-13, atol=1e-14)
    if isinstance(algorithm, BiO):
        assert torch.equal(module.x, expected.x)
    assert module.counts.as_dict() == expected.state["counts"]
    logged, last = fitted.callback_metrics, expected.history[-1]
    assert float(logged["train/loss"]) == pytest.approx(last.loss, rel=1e-6)
    assert float(logged["train/hypergradient_norm"]) == pytest.approx(last.norm, rel=1e-5)
    assert float(logged["oracles/gc_g"]) == last.gc_g
    assert ("train/dual_residual" in logged) == (name in ("aid", "acc_bio", "acc_bio_bg", "proximal"))


def test_the_certificate_is_logged_where_constants_are_known(tmp_path: Path) -> None:
    problem = Logistic().problem
    known = BilevelProblem(
        problem.outer_loss, problem.inner_loss, problem.init_inner, stream=problem.stream,
        constants=Constants(mu=0.05, L_xy=10.0, L_fxy=1.0, L_fyy=5.0, rho_J=5.0, rho_H=5.0),
    )  # fmt: skip
    fitted = trainer(tmp_path, max_steps=2)
    fitted.fit(BilevelModule(known, ALGORITHMS["aid"](), noise(4)))
    assert float(fitted.callback_metrics["train/certificate"]) > 0


def test_another_optimizer_and_a_tree(tmp_path: Path) -> None:
    """Adam on the hypergradient, with x a dict and batches from a loader."""
    problem = Logistic().problem
    assert problem.stream is not None
    tree = BilevelProblem(
        lambda x, y, batch: problem.outer_loss(x["a"] + x["b"], y, batch),
        lambda x, y, batch: problem.inner_loss(x["a"] + x["b"], y, batch),
        lambda x: torch.zeros(4, dtype=DOUBLE),
    )
    algorithm = BiO(estimator=AID(inner=INNER), step_size=0.1)
    data = problem.stream
    batches = [(data.outer, data.inner)] * 5  # type: ignore[attr-defined]
    module = BilevelModule(
        tree, algorithm, {"a": noise(4), "b": torch.zeros(4, dtype=DOUBLE)},
        outer_optimizer=lambda params: torch.optim.Adam(params, lr=0.05),
    )  # fmt: skip
    trainer(tmp_path, max_steps=5).fit(module, DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
    x = noise(4)
    a, b = x.clone().requires_grad_(), torch.zeros_like(x).requires_grad_()
    optimizer, state = torch.optim.Adam([a, b], lr=0.05), algorithm.init(problem, x)
    for _ in range(5):
        before = (a + b).detach()
        state = algorithm.step(problem, {**state, "x": before})
        a.grad = b.grad = (before - state["x"]) / 0.1
        optimizer.step()
    torch.testing.assert_close(module.x, {"a": a.detach(), "b": b.detach()}, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["aid", "itd"])
def test_a_step_in_bf16_mixed_is_that_of_a_plain_loop(name: str, tmp_path: Path) -> None:
    """One step from a warm start, of which ``d`` alone is measured; the state stays in float32."""
    made, x = Plain(examples=40), 0.3 * noise(4, seed=8) - 1
    estimator = ITD(inner=INNER_12) if name == "itd" else AID(inner=INNER_12, solver=CG(iterations=4))
    module = BilevelModule(made.single, BiO(estimator=estimator, step_size=1.0), x.float())
    fitted = trainer(tmp_path, precision="bf16-mixed", max_steps=1)
    fitted.fit(module)
    expected = made.unrolled(x) if name == "itd" else made.implicit(x)
    assert relative(x.float().double() - module.x.double(), expected) < 0.02
    tensors = [value for value in module.state.values() if isinstance(value, Tensor)]
    assert {value.dtype for value in tensors} == {torch.float32}
    assert relative(module.y.double(), made.end(x)) < 0.02


def test_bf16_mixed_runs(tmp_path: Path) -> None:
    train, val = (tuple(part.float() for part in each) for each in (Logistic().train, Logistic().val))
    base = Logistic()
    problem = BilevelProblem(base.outer_loss, base.inner_loss, lambda x: torch.zeros(4)).with_batch(val, train)
    module = BilevelModule(problem, ALGORITHMS["aid"](), torch.zeros(4))
    fitted = trainer(tmp_path, precision="bf16-mixed")
    fitted.fit(module)
    plain = run(problem, ALGORITHMS["aid"](), torch.zeros(4), steps=7)
    torch.testing.assert_close(module.x, plain.x, rtol=0.1, atol=0.05)


SCRIPT = """
import os, signal, sys, warnings
from pathlib import Path
from lightning.pytorch.callbacks import Callback
from tests.modules.problem_based.test_bilevel_module import resumable
warnings.simplefilter("ignore")
class Kill(Callback):
    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        if trainer.global_step == 8:
            os.kill(os.getpid(), signal.SIGKILL)
resumable(Path(sys.argv[1]), sys.argv[2], callbacks=[Kill()])
"""


def resumable(
    folder: Path, name: str, ckpt: Path | None = None, steps: int = 12, callbacks: Sequence[Any] = ()
) -> BilevelModule:
    """A run that saves every third step, in epochs of 5."""
    saver = ModelCheckpoint(
        dirpath=folder,
        filename="last",
        every_n_train_steps=3,
        save_top_k=1,
        enable_version_counter=False,
    )
    module = BilevelModule(sampled(), ALGORITHMS[name](), noise(4, seed=9), seed=1, steps_per_epoch=5)
    fitted = trainer(folder, max_steps=steps, enable_checkpointing=True, callbacks=[*callbacks, saver])
    fitted.fit(module, ckpt_path=ckpt, weights_only=True)
    return module


@pytest.mark.filterwarnings("ignore:Checkpoint directory")  # that of the run which is resumed
@pytest.mark.parametrize("name", ["stoc_bio", "mrbo", "vrbo", "acc_bio_bg", "proximal", "vrbo killed"])
def test_a_resumed_run_equals_the_uninterrupted_one(name: str, tmp_path: Path) -> None:
    """Ended after step 8, in mid-epoch and between VRBO's anchors, with the last checkpoint at step 6; once by a kill."""
    name, *killed = name.split()
    whole = resumable(tmp_path / "a", name)
    if killed:
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(tmp_path / "b"), name], cwd=ROOT, capture_output=True, text=True,
            timeout=200, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
    else:
        resumable(tmp_path / "b", name, steps=8)
    torch.load(tmp_path / "b" / "last.ckpt", weights_only=True)
    resumed = resumable(tmp_path / "b", name, tmp_path / "b" / "last.ckpt")
    assert torch.equal(resumed.x, whole.x)
    assert torch.equal(resumed.y, whole.y)
    assert resumed.counts == whole.counts


def test_a_checkpoint_of_another_algorithm_is_one_line(tmp_path: Path) -> None:
    fitted = trainer(tmp_path, max_steps=2)
    fitted.fit(BilevelModule(sampled(), ALGORITHMS["mrbo"](), noise(4)))
    fitted.save_checkpoint(tmp_path / "mrbo.ckpt")
    other = BilevelModule(sampled(), ALGORITHMS["stoc_bio"](), noise(4))
    with pytest.raises(CheckpointError, match="state is of another algorithm: u, x_before, y_before"):
        trainer(tmp_path).fit(other, ckpt_path=tmp_path / "mrbo.ckpt", weights_only=True)
    again = BilevelModule.load_from_checkpoint(
        tmp_path / "mrbo.ckpt", problem=sampled(), algorithm=ALGORITHMS["mrbo"](), x=noise(4)
    )
    assert torch.equal(again.y, fitted.lightning_module.y)


def test_what_would_change_the_step_is_refused(tmp_path: Path) -> None:
    problem = sampled()
    with pytest.raises(ConfigError, match="MRBO, but that algorithm makes its own step"):
        BilevelModule(problem, ALGORITHMS["mrbo"](), noise(4), outer_optimizer=lambda p: torch.optim.SGD(p, lr=1.0))
    for setting, reason in (
        ({"accumulate_grad_batches": 2}, "accumulate_grad_batches is 2"),
        ({"gradient_clip_val": 1.0}, "gradient_clip_val is 1.0"),
    ):
        with pytest.raises(ConfigError, match=reason):
            trainer(tmp_path, **setting).fit(BilevelModule(problem, ALGORITHMS["mrbo"](), noise(4)))
    bare = BilevelProblem(problem.outer_loss, problem.inner_loss, problem.init_inner)
    with pytest.raises(ShapeError, match=r"needs a pair \(outer, inner\)"):
        trainer(tmp_path).fit(
            BilevelModule(bare, ALGORITHMS["aid"](), noise(4)),
            DataLoader([torch.zeros(2)] * 2, batch_size=None),  # type: ignore
        )


def test_a_value_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    problem = Logistic().problem
    bad = BilevelProblem(
        lambda x, y, batch: problem.outer_loss(x, y, batch) * float("nan"), problem.inner_loss, problem.init_inner,
        stream=problem.stream,
    )  # fmt: skip
    with pytest.raises(DivergenceError, match="outer_loss has an entry nan at outer step 0"):
        trainer(tmp_path).fit(BilevelModule(bad, ALGORITHMS["aid"](), noise(4)))


def test_streams_are_sampled() -> None:
    assert isinstance(sampled().stream, Sampled)
    assert isinstance(sampled().init_inner(noise(4)), Tensor)
