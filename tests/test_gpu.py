"""What runs on a CPU runs on a GPU: the same gradients, float32 and bf16, adapted models, text networks, the command line."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import metalearn
from metalearn import (
    MAML,
    MLP,
    AdaptedModel,
    Batch,
    Context,
    Conv4,
    DivergenceError,
    Episode,
    LoRA,
    LSTMClassifier,
    PrototypeHead,
    ResNet12,
    ShapeError,
    SharedHead,
    TransformerClassifier,
)
from metalearn.cli import main
from metalearn.inner.kernels.conv_choice import CHOICE
from metalearn.inner.kernels.paths import PATHS
from tests.algorithms import ALGORITHMS
from tests.modules.episodic.test_evaluation import NoiseTasks
from tests.modules.test_every_algorithm import network
from tests.networks import TinyConv, noise_episode

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that CUDA runs on")
every = pytest.mark.parametrize("name", ALGORITHMS)
ADAPTERS = {
    "none": None,
    "lora": LoRA(rank=2),
    "context": Context(size=3, layers="head"),
    "shared": SharedHead(),
    "prototypes": PrototypeHead(),
}


def to_gpu(episode: Episode) -> Episode:
    return Episode(*(Batch(role.x.cuda(), role.y.cuda()) for role in episode))


def trainer(folder: Path, **options: object) -> L.Trainer:
    return L.Trainer(
        accelerator="gpu", devices=1, max_steps=2, limit_val_batches=1, limit_test_batches=2, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder, **options,
    )  # type: ignore[arg-type] # fmt: skip


@every
@pytest.mark.parametrize("execution", ["sequential", "vectorized"])
def test_the_meta_gradient_is_that_of_a_plain_loop(name: str, execution: str) -> None:
    algorithm, net, episode = ALGORITHMS[name], network(), noise_episode(2)
    expected = algorithm.meta_gradient(copy.deepcopy(net), episode)
    module = algorithm.make(net, execution=execution).double().cuda()
    found = module.meta_gradient(to_gpu(episode))
    for key, value in expected.items():
        torch.testing.assert_close(found[key].cpu(), value, rtol=algorithm.error, atol=algorithm.error)


@every
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_run_learns_and_evaluates_in_every_precision(name: str, precision: str, tmp_path: Path) -> None:
    algorithm, data = ALGORITHMS[name], NoiseTasks()
    module = algorithm.make_cheap(TinyConv())
    run = trainer(tmp_path, precision=precision)
    run.fit(module, datamodule=data)
    (result,) = run.test(module, datamodule=data, verbose=False)
    assert all(math.isfinite(result[key]) for key in ("test/acc", "test/acc_ci95", "test/loss"))
    assert run.predict(module, datamodule=data)


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapted_model_is_made_saved_and_moved(name: str, tmp_path: Path) -> None:
    """On the GPU and on the CPU it answers alike, alone, for several users at once, and from its file."""
    module = MAML(TinyConv(), inner_steps=2, inner_lr=0.1, adapter=ADAPTERS[name]).double()
    episode = noise_episode(3)
    support, query = Batch(episode.support.x[0], episode.support.y[0]), episode.query.x[0]
    expected = module.adapt(support)(query)
    module.cuda()
    on_gpu = to_gpu(episode)
    adapted = module.adapt(Batch(on_gpu.support.x[0], on_gpu.support.y[0]))
    torch.testing.assert_close(adapted(query.cuda()).cpu(), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(adapted.independent()(query[:1].cuda()).cpu(), adapted.cpu().independent()(query[:1]))
    many = module.adapt_many(on_gpu.support)
    torch.testing.assert_close(many[0](query.cuda()).cpu(), expected, rtol=1e-9, atol=1e-9)
    alone = adapted.independent()(query)
    again = AdaptedModel.load(adapted.save(tmp_path / "adapted.safetensors"), module.cpu())
    torch.testing.assert_close(again(query), alone, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("execution", ["auto", "sequential"])
@pytest.mark.parametrize("make", [LSTMClassifier, TransformerClassifier])
def test_text_networks_have_second_derivatives(make: type[nn.Module], execution: str) -> None:
    torch.manual_seed(0)
    network = make(vocabulary=20, ways=3).double()  # type: ignore[call-arg]
    words = torch.randint(1, 20, (2, 6, 7))
    words[:, ::2, 5:] = 0
    labels = torch.arange(3).repeat(2, 2)
    episode = Episode(Batch(words, labels), Batch(words.flip(1), labels.flip(1)))
    module = MAML(network, inner_steps=2, inner_lr=0.1, execution=execution).double()
    expected = module.meta_gradient(episode)
    found = module.cuda().meta_gradient(to_gpu(episode))
    for key, value in expected.items():
        torch.testing.assert_close(found[key].cpu(), value, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("memory", ["store", "remat", "mixed"])
@pytest.mark.parametrize("make", [Conv4, ResNet12])
def test_image_networks_agree_with_the_cpu(make: type[nn.Module], memory: str) -> None:
    torch.manual_seed(0)
    options = {"hidden": 8, "image_size": 28} if make is Conv4 else {"widths": (4, 4, 8, 8)}
    network = make(in_channels=1, ways=5, **options)  # type: ignore[call-arg]
    images, labels = torch.randn(2, 10, 1, 28, 28).double(), torch.arange(5).repeat(2, 2)
    episode = Episode(Batch(images, labels), Batch(images + 0.1, labels))
    module = MAML(network.double(), inner_steps=2, inner_lr=0.1, memory=memory)  # type: ignore[arg-type]
    expected = module.meta_gradient(episode)
    found = module.cuda().meta_gradient(to_gpu(episode))
    for key, value in expected.items():
        torch.testing.assert_close(found[key].cpu(), value, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("path", [None, *PATHS])
@pytest.mark.parametrize("groups", [1, 2])
def test_every_way_of_convolutions_agrees_with_the_cpu(path: str | None, groups: int) -> None:
    """Of ``None`` the fastest is taken, which is timed here."""
    torch.manual_seed(0)
    body = nn.Sequential(
        nn.Conv2d(2, 8, 3, 2, 1, groups=groups), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten()
    )
    network = nn.Sequential(body, nn.Linear(8 * 6 * 6, 3)).double()
    images, labels = torch.randn(3, 6, 2, 16, 16).double(), torch.arange(3).repeat(3, 2)
    episode = Episode(Batch(images, labels), Batch(images + 0.1, labels))
    module = MAML(network, inner_steps=2, inner_lr=0.1)
    expected = module.meta_gradient(episode)
    with CHOICE.forcing(path):
        found = module.cuda().meta_gradient(to_gpu(episode))
    for key, value in expected.items():
        torch.testing.assert_close(found[key].cpu(), value, rtol=1e-9, atol=1e-9)
    if path is None:
        assert "products, each timed once, the fastest are" in str(CHOICE.describe())


RECORDED = {
    "maml": {}, "learned": {"inner_lr": "learn_per_step"}, "remat": {"memory": "remat"}, "adam": {"inner_optimizer": "adam"},
    "sequential": {"execution": "sequential"}, "support": {"norm": "support"},
}  # fmt: skip


@pytest.mark.parametrize("name", RECORDED)
def test_a_recorded_step_is_the_step_itself(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """The third call is the first replay: with other weights, and of other tasks."""
    torch.manual_seed(0)
    options: dict[str, object] = {"inner_steps": 2, "inner_lr": 0.1, **RECORDED[name]}
    on_cpu = MAML(TinyConv().double(), **options).double()  # type: ignore[arg-type]
    module = MAML(copy.deepcopy(on_cpu.backbone), compile="graph", **options).double().cuda()  # type: ignore[arg-type]
    with caplog.at_level("INFO"):
        for seed in range(4):
            episode = noise_episode(2, seed=seed)
            expected, found = on_cpu.meta_gradient(episode), module.meta_gradient(to_gpu(episode))
            for key, value in expected.items():
                torch.testing.assert_close(found[key].cpu(), value, rtol=1e-9, atol=1e-9)
            with torch.no_grad():
                for other in (on_cpu, module):
                    for value in other.parameters():
                        value.mul_(0.9)
    (line,) = [line for line in caplog.messages if line.startswith("compile:")]
    assert "recorded as one CUDA graph in" in line


def test_recorded_dropout_draws_what_the_step_itself_draws(caplog: pytest.LogCaptureFixture) -> None:
    losses = []
    for compile in (False, "graph"):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 3))
        module = MAML(network, inner_steps=2, inner_lr=0.1, compile=compile).double().cuda()  # type: ignore[arg-type]
        episode = to_gpu(noise_episode(2, shape=(3,)))
        with caplog.at_level("INFO"):
            module.meta_gradient(episode)
            torch.cuda.manual_seed(1)
            losses.append([float(module.meta_loss(episode).loss.detach()) for _ in range(5)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)
    assert len(set(losses[1])) == 5
    assert any("recorded as one CUDA graph in" in line for line in caplog.messages)


@pytest.mark.parametrize("at", [0, 3])
@pytest.mark.parametrize("compile", [False, "graph"])
def test_a_spoiled_step_leaves_weights_as_they_were(at: int, compile: object, tmp_path: Path) -> None:
    """Its numbers are read a step later; an out of range label, too, is one line and no assertion of the device."""
    for spoil, error in (("data", DivergenceError), ("label", ShapeError)):
        episodes = [noise_episode(2, seed=seed, dtype=torch.float32) for seed in range(5)]
        if spoil == "data":
            episodes[at].query.x[1, 2] = math.nan
        else:
            episodes[at].query.y[1, 2] = 3
        module = MAML(TinyConv(), inner_steps=1, inner_lr=0.1, compile=compile)  # type: ignore[arg-type]
        weights = [copy.deepcopy(module.state_dict())]

        class Keep(L.Callback):
            kept = weights

            def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: object) -> None:
                self.kept.append({name: value.detach().cpu().clone() for name, value in module.state_dict().items()})

        loader = DataLoader(episodes, batch_size=None)  # type: ignore[arg-type]
        run = L.Trainer(
            accelerator="gpu", devices=1, max_steps=5, limit_val_batches=1, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path, num_sanity_val_steps=0,
            callbacks=[Keep()],
        )  # fmt: skip
        with pytest.raises(error):
            run.fit(module, loader, loader)
        for name, value in module.state_dict().items():
            assert torch.equal(value.cpu(), weights[at][name])


def test_a_checkpoint_of_the_gpu_is_loaded_on_the_cpu_and_back(tmp_path: Path) -> None:
    module = MAML(MLP(outputs=3, inputs=4), inner_lr=0.1).cuda()
    run = trainer(tmp_path)
    run.strategy.connect(module)
    run.save_checkpoint(tmp_path / "module.ckpt")
    assert next(metalearn.load(tmp_path / "module.ckpt").parameters()).device.type == "cpu"


def test_the_command_line_trains_and_tests_on_the_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    few = ["--data.train_tasks", "32", "--data.val_tasks", "8", "--data.test_tasks", "8"]
    gpu = ["--trainer.accelerator", "gpu", "--trainer.devices", "1", "--trainer.precision", "bf16-mixed"]
    main(["fit", "--trainer.max_steps", "2", *few, *gpu])
    (last,) = Path("runs").rglob("last.ckpt")
    main(["test", "--ckpt_path", str(last), *few, *gpu])
