"""iMAML and the few-shot setting against plain autograd, closed forms, and a stock Trainer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.func import functional_call

from metalearn import (
    ANIL,
    IMAML,
    MLP,
    Batch,
    BilevelError,
    BilevelFewShot,
    ConfigError,
    DivergenceError,
    Episode,
    MetaModule,
)
from metalearn.carried import KEY
from tests.modules.episodic.test_evaluation import NoiseTasks
from tests.networks import TinyConv, noise_episode


class Smooth(nn.Module):
    """A body without kinks, and a head."""

    def __init__(self, ways: int = 3) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.Tanh())
        self.head = nn.Linear(6, ways)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def smooth() -> Smooth:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Smooth().double()


def tasks_of(episode: Episode) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    (xs, ys), (xq, yq) = episode
    return list(zip(xs, ys, xq, yq, strict=True))


def agree(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("execution", ["sequential", "vectorized"])
def test_imaml_is_the_derivative_of_a_converged_inner_loop(execution: Any) -> None:
    episode, lam, net = noise_episode(2), 1.0, smooth()
    module = IMAML(net, inner_steps=300, inner_lr=0.4, lam=lam, cg_steps=60, execution=execution)
    found = module.meta_gradient(episode)
    x = {name: value.detach().clone().requires_grad_() for name, value in net.named_parameters()}
    losses = []
    for xs, ys, xq, yq in tasks_of(episode):
        y = dict(x)
        for _ in range(300):
            tied = sum(((y[name] - x[name]) ** 2).sum() for name in x)
            loss = F.cross_entropy(functional_call(net, y, (xs,)), ys) + lam / 2 * tied
            grads = torch.autograd.grad(loss, list(y.values()), create_graph=True)
            y = {name: value - 0.4 * grad for (name, value), grad in zip(y.items(), grads, strict=True)}
        losses.append(F.cross_entropy(functional_call(net, y, (xq,)), yq))
    mean = torch.stack(losses).mean()
    torch.testing.assert_close(module.meta_loss(episode).loss.detach(), mean.detach(), rtol=1e-9, atol=1e-9)
    expected = dict(zip(x, torch.autograd.grad(mean, list(x.values())), strict=True))
    agree({name.removeprefix("backbone."): value for name, value in found.items()}, expected, 1e-8)


def head_by_hand(
    net: Smooth, z: Tensor, t: Tensor, ridge: bool, l2: float, lr: float, steps: int, momentum: float
) -> tuple[Tensor, Tensor]:
    """The weight and bias after gradient steps or Nesterov's method, with their graph."""
    w, b = torch.zeros(3, 6, dtype=z.dtype), torch.zeros(3, dtype=z.dtype)
    last = (w, b)
    for _ in range(steps):
        v, c = ((now + momentum * (now - before)).detach().requires_grad_() if not now.requires_grad else
                now + momentum * (now - before) for now, before in zip((w, b), last, strict=True))  # fmt: skip
        out = z @ v.T + c
        fit = (out - F.one_hot(t, 3)).square().sum(-1).mean() / 2 if ridge else F.cross_entropy(out, t)
        loss = fit + l2 / 2 * (v.square().sum() + c.square().sum())
        of_v, of_c = torch.autograd.grad(loss, (v, c), create_graph=True)
        last, (w, b) = (w, b), (v - lr * of_v, c - lr * of_c)
    return w, b


@pytest.mark.parametrize(
    ("estimator", "head_loss", "momentum", "steps", "more"),
    [
        ("itd", "softmax", 0.0, 7, {}),
        ("itd", "softmax", 0.0, 7, {"memory": "remat"}),
        ("itd", "ridge", 0.5, 7, {}),
        ("aid", "softmax", 0.0, 400, {"linear_steps": 30}),
        ("aid", "softmax", 0.5, 200, {"linear_steps": 30, "support_chunk": 4}),
        ("aid", "softmax", 0.0, 400, {"linear_solver": "fixed_point", "linear_steps": 400}),
        ("aid", "softmax", 0.0, 400, {"linear_solver": "neumann", "linear_steps": 400}),
        ("aid", "softmax", 0.0, 400, {"linear_solver": "normal_cg", "linear_steps": 60}),
        ("aid", "ridge", 0.0, 400, {"linear_steps": 30}),
    ],
)
@pytest.mark.parametrize("execution", ["sequential", "vectorized"])
def test_few_shot_against_a_plain_loop(
    estimator: Any, head_loss: Any, momentum: float, steps: int, more: dict[str, Any], execution: Any
) -> None:
    """ITD at a few steps; AID at so many that an unrolled loop has converged to the same."""
    episode, net, l2, lr = noise_episode(2), smooth(), 0.2, 0.3
    module = BilevelFewShot(
        net, head_loss=head_loss, l2=l2, estimator=estimator, inner_steps=steps, inner_lr=lr, inner_momentum=momentum,
        execution=execution, **more,
    ).double()  # fmt: skip
    found = module.meta_gradient(episode)
    scale = torch.tensor(5.0 if head_loss == "ridge" else 1.0, dtype=torch.float64, requires_grad=True)
    losses = []
    for xs, ys, xq, yq in tasks_of(episode):
        w, b = head_by_hand(net, net.body(xs), ys, head_loss == "ridge", l2, lr, steps, momentum)
        losses.append(F.cross_entropy(scale * (net.body(xq) @ w.T + b), yq))
    mean = torch.stack(losses).mean()
    torch.testing.assert_close(module.meta_loss(episode).loss.detach(), mean.detach(), rtol=1e-10, atol=1e-10)
    expected = dict(
        zip(
            (f"backbone.body.{name}" for name, _ in net.body.named_parameters()),
            torch.autograd.grad(mean, list(net.body.parameters()), retain_graph=True), strict=True,
        )
    )  # fmt: skip
    agree(found, expected, 1e-12 if estimator == "itd" else 1e-8)
    assert not found["backbone.head.weight"].any()
    if head_loss == "ridge":
        (of_scale,) = torch.autograd.grad(mean, scale)
        torch.testing.assert_close(found["solver.scale"], of_scale)


def test_a_ridge_head_is_the_closed_form() -> None:
    """Against ANIL's head solved in closed form, with the same ridge and scale."""
    episode = noise_episode(3)
    ours = BilevelFewShot(
        smooth(), head_loss="ridge", l2=0.3, inner_steps=500, inner_lr=0.3, linear_steps=30, initial_scale=1.0
    ).double()
    closed = ANIL(smooth(), head_solver="ridge", initial_ridge=0.3).double()
    closed.solver.log_ridge.data = torch.tensor(0.3, dtype=torch.float64).log()
    found, expected = ours.meta_gradient(episode), closed.meta_gradient(episode)
    agree(
        found,
        {name: expected[name] for name in ("backbone.body.1.weight", "backbone.body.1.bias", "solver.scale")},
        1e-9,
    )


@pytest.mark.parametrize(
    ("damping", "lam", "solver", "positive"),
    [(0.0, 3.0, "cg", True), (7.0, 3.0, "cg", True), (0.0, 0.01, "auto", False), (7.0, 3.0, "auto", True)],
)
def test_damping_is_added_to_the_system_alone(damping: float, lam: float, solver: Any, positive: bool) -> None:
    """Against a dense solve at the end of a plain loop, whose Hessian is bent downwards; ``"auto"`` solves what has any sign."""
    episode, net = noise_episode(2), smooth()
    module = IMAML(net, inner_steps=5, inner_lr=0.1, lam=lam, cg_steps=150, damping=damping, linear_solver=solver)
    found = module.meta_gradient(episode)
    names, values = zip(*((name, value.detach()) for name, value in net.named_parameters()), strict=True)
    shapes, start = [value.shape for value in values], torch.cat([value.flatten() for value in values])

    def loss(y: Tensor, x: Tensor, labels: Tensor) -> Tensor:
        pieces = y.split([shape.numel() for shape in shapes])
        weights = {name: piece.reshape(shape) for name, piece, shape in zip(names, pieces, shapes, strict=True)}
        return F.cross_entropy(functional_call(net, weights, (x,)), labels)

    total = torch.zeros_like(start)
    for xs, ys, xq, yq in tasks_of(episode):
        y = start
        for _ in range(5):
            leaf = y.clone().requires_grad_()
            (slope,) = torch.autograd.grad(loss(leaf, xs, ys), leaf)
            y = y - 0.1 * (slope + lam * (y - start))
        leaf = y.clone().requires_grad_()
        (right,) = torch.autograd.grad(loss(leaf, xq, yq), leaf)
        bend: Any = torch.autograd.functional.hessian(lambda w: loss(w, xs, ys), y)  # noqa: B023  # called at once
        assert float(torch.linalg.eigvalsh(bend).min()) < 0
        system = bend + (lam + damping) * torch.eye(len(y), dtype=torch.float64)
        assert (float(torch.linalg.eigvalsh(system).min()) > 0) == positive
        total += lam * torch.linalg.solve(system, right) / 2
    expected = dict(zip(names, total.split([shape.numel() for shape in shapes]), strict=True))
    agree({name: found[f"backbone.{name}"].flatten() for name in names}, expected, 1e-9)


def test_negative_curvature_is_one_line() -> None:
    with pytest.raises(BilevelError, match=r"curvature -.*lam \+ damping is 1e-06 .*raise damping"):
        IMAML(TinyConv().double(), inner_steps=1, inner_lr=0.1, lam=1e-6, cg_steps=40).meta_gradient(noise_episode(2))


@pytest.mark.parametrize("role", ["support", "query"])
def test_data_that_are_not_finite_are_named(role: str) -> None:
    """Which set of which task, by every estimator."""
    episode = noise_episode(3, dtype=torch.float32)
    part: Batch = getattr(episode, role)
    part.x[1, 2] = float("nan")
    for build in [*BUILT.values(), SOLVERS["imaml normal_cg"]]:
        with pytest.raises(DivergenceError, match=rf"{role}.x of task 1 of the batch has an entry that is not finite"):
            build(MLP(3, 64, [8])).training_step(episode, 0)


def test_arguments_out_of_range_are_one_line() -> None:
    for build, reason in (
        (lambda: IMAML(Smooth(), lam=0.0), "lam is 0.0"),
        (lambda: IMAML(Smooth(), cg_steps=0), "cg_steps is 0"),
        (lambda: IMAML(Smooth(), damping=-1.0), "damping is -1.0"),
        (lambda: BilevelFewShot(Smooth(), l2=-1.0), "l2 is -1.0"),
        (lambda: BilevelFewShot(Smooth(), estimator="bad"), "estimator is 'bad'"),  # type: ignore[arg-type]
        (lambda: BilevelFewShot(Smooth(), memory="remat"), "AID keeps no inner step"),
        (lambda: BilevelFewShot(Smooth(), head="nose"), "head is 'nose'"),
        (lambda: BilevelFewShot(Smooth(), inner_momentum=1.0), "momentum is 1.0"),
    ):
        with pytest.raises(ConfigError, match=reason):
            build()


BUILT: dict[str, Callable[[nn.Module], MetaModule]] = {
    "imaml": lambda net: IMAML(net, inner_steps=3, inner_lr=0.1, lam=4.0, cg_steps=3),
    "aid": lambda net: BilevelFewShot(net, inner_steps=3, l2=0.1, linear_steps=3),
    "itd": lambda net: BilevelFewShot(net, inner_steps=3, l2=0.1, estimator="itd"),
    "ridge": lambda net: BilevelFewShot(net, inner_steps=3, l2=0.1, linear_steps=3, head_loss="ridge"),
}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("name", BUILT)
def test_under_a_stock_trainer(name: str, precision: Any, tmp_path: Path) -> None:
    """Fit, test and predict with the default inference mode; reload from the checkpoint alone, counts included."""
    torch.manual_seed(0)
    module = BUILT[name](MLP(3, 64, [8]))
    run = L.Trainer(
        accelerator="cpu", max_steps=4, precision=precision, logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, default_root_dir=tmp_path, log_every_n_steps=1,
    )  # fmt: skip
    run.fit(module, datamodule=NoiseTasks())
    counts = module.counts.as_dict()  # type: ignore[union-attr]
    calls = {"imaml": (4, 3, 1), "aid": (4, 3, 1), "ridge": (4, 3, 1), "itd": (3, 2, 3)}[name]
    tasks = counts["gc_f"]
    assert tasks == 4 * NoiseTasks().tasks_per_batch
    assert counts == {"gc_f": tasks, "gc_g": calls[0] * tasks, "hvp": calls[1] * tasks, "jvp": calls[2] * tasks}
    if name != "itd":
        assert float(run.callback_metrics["train/inner_residual"]) > 0
        assert float(run.callback_metrics["train/dual_residual"]) > 0
    (found,) = run.test(module, datamodule=NoiseTasks(), verbose=False)
    assert 0 <= found["test/acc"] <= 1
    assert {"test/acc_ci95", "test/acc_step_0", "test/acc_step_3"} <= found.keys()
    (probabilities, *_) = run.predict(module, datamodule=NoiseTasks())  # type: ignore[misc]
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(probabilities.shape[:-1]))
    if precision == "32-true":
        run.save_checkpoint(tmp_path / "module.ckpt")
        assert torch.load(tmp_path / "module.ckpt", weights_only=True)[KEY]["oracles"] == counts
        again = type(module).load_from_checkpoint(tmp_path / "module.ckpt")
        assert again.counts.as_dict() == counts
        episode = noise_episode(1, dtype=torch.float32)
        support = Batch(episode.support.x[0], episode.support.y[0])
        with torch.inference_mode():
            torch.testing.assert_close(
                again.adapt(support)(episode.query.x[0]), module.adapt(support)(episode.query.x[0])
            )


class One(torch.utils.data.Dataset[Episode]):
    """One batch of tasks."""

    def __init__(self, episode: Episode) -> None:
        self.episode = episode

    def __len__(self) -> int:
        return 1

    def __getitem__(self, number: int) -> Episode:
        return self.episode


@pytest.mark.parametrize("name", ["imaml", "itd", "aid"])
@pytest.mark.parametrize("execution", ["sequential", "vectorized"])
def test_a_step_in_bf16_mixed_is_that_of_a_plain_loop(name: str, execution: Any, tmp_path: Path) -> None:
    """One step of SGD with lr=1 under a stock Trainer, against an unrolled loop in float64."""
    episode, net, lam = noise_episode(2, dtype=torch.float32), smooth(), 4.0
    more: dict[str, Any] = {"execution": execution, "outer_optimizer": lambda params: torch.optim.SGD(params, lr=1.0)}
    if name == "imaml":
        module: MetaModule = IMAML(smooth().float(), inner_steps=60, inner_lr=0.1, lam=lam, cg_steps=20, **more)
    else:
        steps = 7 if name == "itd" else 200
        module = BilevelFewShot(
            smooth().float(),
            inner_steps=steps,
            inner_lr=0.3,
            l2=0.2,
            estimator=name,
            linear_steps=30,
            **more,  # type: ignore[arg-type]
        )
    losses = []
    for xs, ys, xq, yq in tasks_of(Episode(*(Batch(part.x.double(), part.y) for part in episode))):
        if name == "imaml":
            x = dict(net.named_parameters())
            y = x
            for _ in range(60):
                tied = sum(((y[key] - x[key]) ** 2).sum() for key in x)
                loss = F.cross_entropy(functional_call(net, y, (xs,)), ys) + lam / 2 * tied
                grads = torch.autograd.grad(loss, list(y.values()), create_graph=True)
                y = {key: value - 0.1 * grad for (key, value), grad in zip(y.items(), grads, strict=True)}
            losses.append(F.cross_entropy(functional_call(net, y, (xq,)), yq))
        else:
            w, b = head_by_hand(net, net.body(xs), ys, False, 0.2, 0.3, steps, 0.0)
            losses.append(F.cross_entropy(net.body(xq) @ w.T + b, yq))
    wanted = dict(net.named_parameters() if name == "imaml" else net.body.named_parameters(prefix="body"))
    expected = torch.autograd.grad(torch.stack(losses).mean(), list(wanted.values()))
    before = {key: value.detach().clone() for key, value in module.backbone.named_parameters()}
    run = L.Trainer(
        accelerator="cpu", max_steps=1, precision="bf16-mixed", logger=False, limit_val_batches=0, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, default_root_dir=tmp_path,
    )  # fmt: skip
    loader = torch.utils.data.DataLoader(One(episode), batch_size=None)
    run.fit(module, loader, loader)
    after = dict(module.backbone.named_parameters())
    assert all(value.dtype is torch.float32 for value in after.values())
    found = torch.cat([(before[key] - after[key]).detach().flatten() for key in wanted]).double()
    exact = torch.cat([value.flatten() for value in expected])
    assert float((found - exact).norm()) < 0.02 * float(exact.norm())


SOLVERS: dict[str, Callable[[nn.Module], MetaModule]] = {
    "imaml normal_cg": lambda net: IMAML(net, inner_steps=3, lam=4.0, cg_steps=3, linear_solver="normal_cg"),
    **{
        f"aid {name} {loss}": lambda net, name=name, loss=loss: BilevelFewShot(  # type: ignore[misc]
            net, inner_steps=3, l2=0.1, linear_steps=3, linear_solver=name, head_loss=loss
        )
        for name in ("normal_cg", "fixed_point", "neumann")
        for loss in ("softmax", "ridge")
    },
    "itd ridge": lambda net: BilevelFewShot(net, inner_steps=3, l2=0.1, estimator="itd", head_loss="ridge"),
}


def fitted(build: Callable[[nn.Module], MetaModule], folder: Path, steps: int, ckpt: Path | None = None) -> MetaModule:
    """A run that saves every third step, in epochs of 8."""
    saver = ModelCheckpoint(
        dirpath=folder, filename="last", every_n_train_steps=3, save_top_k=1, enable_version_counter=False
    )
    torch.manual_seed(0)
    module = build(MLP(3, 64, [8]))
    run = L.Trainer(
        accelerator="cpu", max_steps=steps, logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder, callbacks=[saver], limit_val_batches=0,
    )  # fmt: skip
    run.fit(module, datamodule=NoiseTasks(), ckpt_path=ckpt, weights_only=True)
    return module


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_by_name(name: str, tmp_path: Path) -> None:
    """Two steps under a stock Trainer, which move all that is learned."""
    module = fitted(SOLVERS[name], tmp_path, 2)
    torch.manual_seed(0)
    fresh = dict(SOLVERS[name](MLP(3, 64, [8])).named_parameters())
    for key, value in module.named_parameters():
        assert bool(value.isfinite().all())
        assert torch.equal(value, fresh[key]) == ("head" in key and "imaml" not in name), key


@pytest.mark.filterwarnings("ignore:Checkpoint directory")  # that of the run which is resumed
@pytest.mark.parametrize("name", BUILT)
def test_a_resumed_run_equals_the_uninterrupted_one(name: str, tmp_path: Path) -> None:
    """Ended after step 11, in the second epoch of 8, with the last checkpoint at step 9."""
    whole = fitted(BUILT[name], tmp_path / "a", 13)
    fitted(BUILT[name], tmp_path / "b", 11)
    resumed = fitted(BUILT[name], tmp_path / "b", 13, tmp_path / "b" / "last.ckpt")
    expected = whole.state_dict()
    assert resumed.state_dict().keys() == expected.keys()
    for key, value in resumed.state_dict().items():
        assert torch.equal(value, expected[key]), key
    assert resumed.counts == whole.counts  # type: ignore[union-attr]


@pytest.mark.parametrize("name", BUILT)
def test_a_few_steps_learn(name: str, tmp_path: Path) -> None:
    """The query loss of one fixed batch goes down."""
    torch.manual_seed(0)
    module = BUILT[name](MLP(3, 64, [16]))
    episode = noise_episode(2, dtype=torch.float32)
    first = float(module.training_step(episode, 0).detach())
    optimizer = torch.optim.Adam([value for value in module.parameters() if value.requires_grad], lr=1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        loss = module.training_step(episode, 0)
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.8 * first
