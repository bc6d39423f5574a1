"""The classes that a checkpoint may name. Whatever else it names is neither looked up nor imported."""

from __future__ import annotations

import importlib
import reprlib
from collections.abc import Mapping
from typing import Any

__all__ = [
    "ADAPTERS",
    "DATA_MODULES",
    "LAYERS",
    "LOSSES",
    "MODULES",
    "NETWORKS",
    "RULES",
    "Homes",
    "find_class",
    "is_torch_optimizer",
    "short",
]

Homes = Mapping[str, tuple[str, ...]]
"""The modules in which a class of that name is defined."""


def _homes(package: str, **names: str) -> dict[str, tuple[str, ...]]:
    return {name: (f"{package}.{module}" if module else package,) for name, module in names.items()}


MODULES: Homes = _homes(
    "metalearn.modules", ALFA="alfa", ANIL="anil", Baseline="baseline", BilevelFewShot="bilevel_few_shot",
    HyperCleaning="hyper_cleaning", IMAML="imaml", MAML="maml", MeTAL="metal", Pooled="pooled", ProtoNet="protonet",
    RegularizationTuning="regularization_tuning", Reptile="reptile",
)  # fmt: skip
DATA_MODULES: Homes = _homes(
    "metalearn.datamodules", ArrayEpisodes="arrays", CIFARFSDataModule="cifar", CUB200DataModule="cub",
    FC100DataModule="cifar", GlyphsDataModule="glyphs", ImageCompletionEpisodes="completion",
    ImageFolderEpisodes="folder", MiniImageNetDataModule="miniimagenet",
    MNISTCleaningDataModule="mnist_cleaning", NewsgroupsDataModule="newsgroups",
    NewsgroupTopicsDataModule="topics", OmniglotDataModule="omniglot",
    SinusoidDataModule="sinusoid", TieredImageNetDataModule="tiered",
)  # fmt: skip
NETWORKS: Homes = {
    **_homes(
        "metalearn.backbones", Conv4="conv4", HuggingFace="huggingface_networks", LSTMClassifier="lstm", MLP="mlp",
        ResNet12="resnet12", Timm="timm_networks", Torchvision="torchvision_networks", TransformerClassifier="transformer",
    ),
    **_homes(
        "torchvision.models", AlexNet="alexnet", DenseNet="densenet", GoogLeNet="googlenet", Inception3="inception",
        MaxVit="maxvit", MNASNet="mnasnet", MobileNetV2="mobilenetv2", ResNet="resnet", ShuffleNetV2="shufflenetv2",
        SqueezeNet="squeezenet", SwinTransformer="swin_transformer", VisionTransformer="vision_transformer",
    ),
    **_homes("torch.nn", Linear="modules.linear"),
}  # fmt: skip
"""Networks that plain arguments describe. None of their constructors fetches weights, and none is asked to read any."""
LAYERS: Homes = {
    **_homes("torchvision.models", BasicBlock="resnet", Bottleneck="resnet", PatchMerging="swin_transformer",
             PatchMergingV2="swin_transformer", SwinTransformerBlock="swin_transformer",
             SwinTransformerBlockV2="swin_transformer"),
    "InvertedResidual": ("torchvision.models.mobilenetv2", "torchvision.models.shufflenetv2"),
    **_homes("torch.nn", BatchNorm1d="modules.batchnorm", BatchNorm2d="modules.batchnorm", ELU="modules.activation",
             GELU="modules.activation", Hardswish="modules.activation", InstanceNorm2d="modules.instancenorm",
             LayerNorm="modules.normalization", LeakyReLU="modules.activation", ReLU="modules.activation",
             ReLU6="modules.activation", SiLU="modules.activation"),
}  # fmt: skip
"""Classes that those networks take as arguments, such as the block of a ResNet."""
LOSSES: Homes = _homes("metalearn.inner", GaussianNLL="bands", Quantiles="bands") | _homes(
    "torch.nn", BCEWithLogitsLoss="modules.loss", CrossEntropyLoss="modules.loss", HuberLoss="modules.loss",
    L1Loss="modules.loss", MSELoss="modules.loss", MultiLabelSoftMarginLoss="modules.loss", MultiMarginLoss="modules.loss",
    NLLLoss="modules.loss", SmoothL1Loss="modules.loss",
)  # fmt: skip
ADAPTERS: Homes = _homes(
    "metalearn.inner.adapters", Context="context", LoRA="lora", PrototypeHead="heads", SharedHead="heads"
)
RULES: Homes = _homes("metalearn.inner", SGD="rules", Momentum="rules", Adam="rules", AdamW="rules")


FORMER = {"metalearn.modules.few_shot": "metalearn.modules.bilevel_few_shot"}
"""Where classes stood in earlier versions, whose checkpoints name them so."""


def find_class(spelled: str, homes: Homes) -> type[Any] | None:
    """The class of a closed list that a name means, by whichever of its public paths, or ``None``.

    Only modules of the list are imported, never what the name says.
    """
    package, _, name = spelled.rpartition(".")
    package = FORMER.get(package, package)
    for home in homes.get(name, ()):
        if not package or home == package or home.startswith(package + "."):
            kind: type[Any] = getattr(importlib.import_module(home), name)
            return kind
    return None


def is_torch_optimizer(spelled: object) -> bool:
    """Whether a name is one that only ``torch.optim`` can have; none is looked up, since older versions may lack it."""
    if not isinstance(spelled, str) or len(spelled) > 100:
        return False
    first, *rest = spelled.removeprefix("torch.optim.").split(".")
    return spelled.startswith("torch.optim.") and all(part.isidentifier() for part in (first, *rest))


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80


def short(value: object) -> str:
    """A value of anyone's as a line shows it."""
    text = " ".join(_SHORT.repr(value).split())
    return text if len(text) <= 120 else text[:117] + "..."
