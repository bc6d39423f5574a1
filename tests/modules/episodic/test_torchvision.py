"""Every family of torchvision's classifiers, small: fitted, tested, adapted, saved, loaded and adapted again."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.models import (
    VGG,
    ConvNeXt,
    DenseNet,
    EfficientNet,
    GoogLeNet,
    MobileNetV2,
    MobileNetV3,
    RegNet,
    ResNet,
    ShuffleNetV2,
    SqueezeNet,
    SwinTransformer,
    VisionTransformer,
)  # fmt: skip
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.efficientnet import MBConvConfig
from torchvision.models.mobilenetv3 import InvertedResidualConfig
from torchvision.models.regnet import BlockParams
from torchvision.models.resnet import BasicBlock
from torchvision.models.vgg import make_layers

from metalearn import MAML, Batch, ConfigError, Episode, ShapeError

pytestmark = pytest.mark.long


class SmallVGG(VGG):
    """Without the hundred million weights of its classifier."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.features = make_layers([4, "M", 8, "M"], batch_norm=True)
        self.avgpool = nn.AdaptiveAvgPool2d((2, 2))
        self.classifier = nn.Sequential(nn.Linear(32, 8), nn.ReLU(True), nn.Dropout(), nn.Linear(8, 3))


def without(net: nn.Module, *names: str, **others: nn.Module) -> nn.Module:
    """A network without some of its larger layers."""
    for name in names:
        setattr(net, name, nn.Identity())
    for name, layer in others.items():
        setattr(net, name, layer)
    return net


def mobilenet_v3() -> nn.Module:
    rows = [(8, 3, 16, 8, True, "RE", 2, 1), (8, 3, 16, 8, True, "HS", 1, 1)]
    return MobileNetV3([InvertedResidualConfig(*row, 1.0) for row in rows], last_channel=16, num_classes=3)


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "resnet": lambda: without(ResNet(BasicBlock, [1, 1, 1, 1]), "layer3", "layer4", fc=nn.Linear(128, 3)),
    "mobilenet_v2": lambda: MobileNetV2(3, 0.1, [[1, 8, 1, 1], [6, 8, 1, 2]], 4),
    "efficientnet": lambda: EfficientNet(
        [MBConvConfig(1, 3, 1, 8, 8, 1), MBConvConfig(4, 3, 2, 8, 16, 2)], 0.2, num_classes=3, last_channel=16
    ),
    "densenet": lambda: DenseNet(4, (2, 2), 8, 2, num_classes=3),
    "convnext": lambda: ConvNeXt([CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)], 0.1, num_classes=3),
    "vgg": SmallVGG,
    "vit": lambda: VisionTransformer(32, 16, 2, 2, 16, 32, num_classes=3),
    "swin": lambda: SwinTransformer([4, 4], 8, [2, 1], [1, 2], [4, 4], stochastic_depth_prob=0.1, num_classes=3),
    "regnet": lambda: RegNet(
        BlockParams.from_init_params(2, 8, 8.0, 2.0, 4),
        num_classes=3,
        stem_width=8,
        norm_layer=partial(nn.BatchNorm2d, eps=1e-3),
    ),
    "shufflenet": lambda: ShuffleNetV2([2, 1, 1], [8, 8, 16, 32, 32], num_classes=3),
    "squeezenet": lambda: SqueezeNet("1_1", num_classes=3),
    "googlenet": lambda: without(
        GoogLeNet(3, aux_logits=False, init_weights=False), "inception4b", "inception4c", "inception5a"
    ),
}


class Noise(Dataset[Episode]):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Episode:
        generator = torch.Generator().manual_seed(index)
        y = torch.arange(3)
        return Episode(*(Batch(torch.randn(3, 3, 32, 32, generator=generator), y) for _ in range(2)))


def walk(build: Callable[[], nn.Module], folder: Path, first_order: bool = False) -> MAML:
    torch.manual_seed(0)
    net = build()
    keys = set(net.state_dict())
    tasks = DataLoader(Noise(), batch_size=1)
    module = MAML(net, inner_steps=1, inner_lr=0.01, first_order=first_order)
    support, query = Noise()[1]
    run = L.Trainer(
        max_steps=2, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        accelerator="cpu", num_sanity_val_steps=0, default_root_dir=folder,
    )  # fmt: skip
    run.fit(module, tasks, tasks)
    (found,) = run.test(module, tasks, verbose=False)
    assert 0 <= found["test/acc"] <= 1
    outputs = module.adapt(support)(query.x)
    assert outputs.shape == (3, 3)
    run.save_checkpoint(folder / "walk.ckpt")
    again = MAML.load_from_checkpoint(folder / "walk.ckpt", backbone=build())
    torch.testing.assert_close(again.adapt(support)(query.x), outputs)
    assert set(net.state_dict()) == keys
    return module


@pytest.mark.filterwarnings("ignore:The .* does not have many workers:UserWarning")
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_trained_tested_adapted_saved_and_loaded(name: str, tmp_path: Path) -> None:
    module = walk(FAMILIES[name], tmp_path)
    assert module.choice is not None
    assert not module.choice.as_given


def test_before_a_fit_a_network_adapts_as_after_one() -> None:
    """ReLUs that write in place meet outputs of our operators: whoever asks first, the same way of running is chosen."""
    torch.manual_seed(0)
    net = FAMILIES["resnet"]().double()
    support, query = (Batch(x.double(), y) for x, y in Noise()[0])
    before = copy.deepcopy(net.state_dict())
    outputs = MAML(net, inner_steps=2, inner_lr=0.01).adapt(support)(query.x)
    loop = {name: value.detach().clone().requires_grad_() for name, value in net.named_parameters()}
    stock = copy.deepcopy(net).train()  # batch statistics
    for _ in range(2):
        loss = nn.functional.cross_entropy(torch.func.functional_call(stock, loop, (support.x,)), support.y)
        grads = torch.autograd.grad(loss, list(loop.values()))
        loop = {
            name: (value - 0.01 * grad).detach().requires_grad_()
            for (name, value), grad in zip(loop.items(), grads, strict=True)
        }
    expected = torch.func.functional_call(stock, loop, (query.x,))
    torch.testing.assert_close(outputs, expected, rtol=1e-7, atol=1e-9)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.filterwarnings("ignore:The .* does not have many workers:UserWarning")
def test_what_has_no_second_derivative_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"layer 'features.*no second derivative of hard.*use first_order=True"
    ) as told:
        walk(mobilenet_v3, tmp_path)
    assert "\n" not in str(told.value)
    walk(mobilenet_v3, tmp_path, first_order=True)


class WithAuxiliary(nn.Module):
    """Gives its auxiliary outputs in training, as GoogLeNet does."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * 32 * 32, 3)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        y = self.linear(x.flatten(1))
        return (y, y) if self.training else y


def test_auxiliary_outputs_are_refused_in_one_line() -> None:
    support, query = Noise()[0]
    module = MAML(WithAuxiliary(), inner_steps=1, inner_lr=0.01)
    assert module.adapt(support)(query.x).shape == (3, 3)
    episode = Episode(*(Batch(role.x[None], role.y[None]) for role in (support, query)))
    with pytest.raises(ShapeError, match="returns a tuple, but the loss needs one tensor"):
        module.training_step(episode, 0)
