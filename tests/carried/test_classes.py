"""The closed lists: every class of ours that a run can name is on them, and nothing else can be named."""

from __future__ import annotations

import sys
from typing import get_origin

import lightning as L
import pytest
import torch
from torch import nn

import metalearn.backbones
import metalearn.datamodules
import metalearn.inner
import metalearn.modules
from metalearn import CheckpointError
from metalearn.carried import build_network, class_path
from metalearn.carried.classes import DATA_MODULES, LAYERS, LOSSES, MODULES, NETWORKS, RULES, find_class
from metalearn.inner import BandLoss
from metalearn.inner.rules import CLASSES

PYTHON_ALONE = {"MetaModule", "BilevelModule", "FunctionEpisodes", "FeatureEpisodes", "TokenEpisodes"}
"""Made of objects that no configuration describes."""
BASES = {"BilevelDataModule", "ClassEpisodes", "EpisodicDataModule", "ImageEpisodes"}


def public(package: object, kind: type) -> set[str]:
    """Names of the classes of `kind`. Python 3.10 calls `Callable[...]` a type, which it is not."""
    found = ((name, getattr(package, name)) for name in package.__all__)  # type: ignore[attr-defined]
    return {
        name
        for name, value in found
        if get_origin(value) is None and isinstance(value, type) and issubclass(value, kind)
    }


def test_every_class_of_ours_is_on_a_list() -> None:
    assert public(metalearn.modules, L.LightningModule) - PYTHON_ALONE == set(MODULES)
    assert public(metalearn.datamodules, L.LightningDataModule) - PYTHON_ALONE - BASES == set(DATA_MODULES)
    assert public(metalearn.backbones, nn.Module) <= set(NETWORKS)
    assert set(CLASSES) == set(RULES)
    assert public(metalearn.inner, BandLoss) - {"BandLoss"} <= set(LOSSES)


@pytest.mark.parametrize(
    ("homes", "kind"),
    [(MODULES, L.LightningModule), (DATA_MODULES, L.LightningDataModule), (NETWORKS, nn.Module), (LAYERS, nn.Module),
     (LOSSES, object), (RULES, object)],
)  # fmt: skip
def test_every_name_is_found_by_all_its_paths(homes: dict[str, tuple[str, ...]], kind: type) -> None:
    for name, places in homes.items():
        for place in places:
            found = find_class(f"{place}.{name}", homes)
            assert isinstance(found, type)
            assert issubclass(found, kind)
            parts = place.split(".")
            for depth in range(1, len(parts) + 1):
                assert find_class(".".join([*parts[:depth], name]), {name: (place,)}) is found


def test_checkpoints_name_classes_so_that_files_may_move() -> None:
    assert class_path(metalearn.MAML) == "metalearn.MAML"
    assert class_path(metalearn.datamodules.CUB200DataModule) == "metalearn.datamodules.CUB200DataModule"
    assert class_path(nn.Linear) == "torch.nn.Linear"
    assert class_path(Own.Network) == f"{__name__}.Own.Network"
    for homes in (MODULES, NETWORKS):
        for name, (place,) in homes.items():
            kind = find_class(f"{place}.{name}", homes)
            assert kind is not None
            assert find_class(class_path(kind), homes) is kind


class Own:
    class Network(nn.Linear):
        pass


def test_names_of_earlier_versions_are_found() -> None:
    former = ("modules.maml.MAML", "modules.few_shot.BilevelFewShot", "modules.hyper_cleaning.HyperCleaning")
    assert [find_class(f"metalearn.{name}", MODULES) for name in former] == [
        metalearn.MAML, metalearn.BilevelFewShot, metalearn.HyperCleaning,
    ]  # fmt: skip
    assert find_class("metalearn.backbones.conv4.Conv4", NETWORKS) is metalearn.Conv4


@pytest.mark.parametrize(
    "spelled",
    ["", ".", "..", "Conv4.", ".Conv4.x", "os.system", "evil.Conv4", "metalearn.evil.Conv4",
     "torchvision.models.resnet18", "torchvision.models.get_model", "torchvision.models.resnet.load_state_dict_from_url",
     "torchvision.models.quantization.ResNet", "builtins.eval", "metalearn..Conv4", "metalearn.cli.main", "a" * 100_000],
)  # fmt: skip
def test_other_names_are_neither_found_nor_imported(spelled: str) -> None:
    before = set(sys.modules)
    assert all(find_class(spelled, homes) is None for homes in (MODULES, DATA_MODULES, NETWORKS, LAYERS, LOSSES, RULES))
    assert set(sys.modules) == before


BLOCKS = {"block": "torchvision.models.resnet.BasicBlock", "layers": [1, 1, 1, 1], "num_classes": 5}
BUILT = {
    "Conv4": {"class_path": "metalearn.Conv4", "init_args": {"ways": 5, "hidden": 8}},
    "MLP": {"class_path": "MLP", "init_args": {"outputs": 5, "hidden": [3, 4]}},
    "ResNet": {"class_path": "torchvision.models.ResNet", "init_args": BLOCKS},
    "ResNet with another norm": {
        "class_path": "torchvision.models.resnet.ResNet",
        "init_args": {**BLOCKS, "norm_layer": {"class_path": "torch.nn.InstanceNorm2d", "init_args": {"affine": True}}},
    },
    "SqueezeNet": {"class_path": "torchvision.models.SqueezeNet", "init_args": {"version": "1_1", "num_classes": 5}},
    "ViT": {
        "class_path": "torchvision.models.VisionTransformer",
        "init_args": {"image_size": 8, "patch_size": 4, "num_layers": 1, "num_heads": 2, "hidden_dim": 8, "mlp_dim": 8},
    },
    "Linear": {"class_path": "torch.nn.Linear", "init_args": {"in_features": 3, "out_features": 2}},
}  # fmt: skip


@pytest.mark.parametrize("name", BUILT)
def test_networks_are_built_once_their_weights_are_there(name: str) -> None:
    network = build_network(BUILT[name], 20_000_000, "the backbone")
    size = sum(value.numel() for value in network.parameters())
    assert all(value.device.type == "cpu" and not value.is_meta for value in network.parameters())
    assert build_network(BUILT[name], size, "the backbone") is not None
    with pytest.raises(CheckpointError, match=f"describes a network of {size:,} weights, but there are {size - 1:,}"):
        build_network(BUILT[name], size - 1, "the backbone")


def test_laying_a_network_out_draws_no_numbers() -> None:
    torch.manual_seed(0)
    network = build_network(BUILT["Conv4"], 10**6, "the backbone")
    torch.manual_seed(0)
    assert torch.equal(network.head.weight, metalearn.Conv4(5, hidden=8).head.weight)  # type: ignore[union-attr]


REFUSED = {
    "names the class": {"class_path": "torchvision.models.resnet18", "init_args": {}},
    "has no such argument": {"class_path": "MLP", "init_args": {"weights": "DEFAULT"}},
    "too many layers": {"class_path": "torchvision.models.ResNet", "init_args": {**BLOCKS, "layers": [10**8, 1, 1, 1]}},
    "no value that it takes": {"class_path": "MLP", "init_args": {"hidden": "x"}},
    "cannot be built": {"class_path": "torch.nn.Linear", "init_args": {"in_features": -3, "out_features": 2}},
    "more than 1,024": {"class_path": "metalearn.Conv4", "init_args": {"image_size": 200_000}},
}  # fmt: skip


@pytest.mark.parametrize("reason", REFUSED)
def test_networks_that_are_not_built(reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason):
        build_network(REFUSED[reason], 10**9, "the backbone")
