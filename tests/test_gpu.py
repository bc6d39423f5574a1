"""What runs on a CPU runs on a GPU: the same gradients, float32 and bf16, adapted models, text networks, the command line."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import lightning as L
import pytest
import torch
from torch import nn

import metalearn
from metalearn import (
    MAML,
    MLP,
    AdaptedModel,
    Batch,
    Context,
    Conv4,
    Episode,
    LoRA,
    LSTMClassifier,
    PrototypeHead,
    ResNet12,
    SharedHead,
    TransformerClassifier,
)
from metalearn.cli import main
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
