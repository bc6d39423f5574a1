"""A file that holds all parameters of a network of ours needs no checkpoint; nothing that it says is trusted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metalearn import (
    ANIL,
    MAML,
    MLP,
    AdaptedModel,
    CheckpointError,
    Conv4,
    LoRA,
    LSTMClassifier,
    MetaModule,
    PrototypeHead,
    SharedHead,
    Torchvision,
)
from tests.shipping.test_files import rewritten

IMAGES, TOKENS = (1, 16, 16), (6,)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, Any]]] = {
    "transductive": (lambda: Conv4(3, hidden=4, image_size=16), IMAGES, {}),
    "support": (lambda: Conv4(3, hidden=4, image_size=16), IMAGES, {"norm": "support"}),
    "running": (lambda: Conv4(3, hidden=4, image_size=16), IMAGES, {"norm": "running"}),
    "per_step": (lambda: Conv4(3, hidden=4, image_size=16), IMAGES, {"norm": "per_step"}),
    "prototypes": (lambda: Conv4(3, hidden=4, image_size=16), IMAGES, {"adapter": PrototypeHead()}),
    "mlp": (lambda: MLP(3, 8), (8,), {}),
    "lstm": (lambda: LSTMClassifier(ways=3, vocabulary=9, embedding=4, hidden=4), TOKENS, {}),
    "torchvision": (lambda: Torchvision("shufflenet_v2_x0_5", ways=3), (3, 32, 32), {"norm": "running"}),
}  # fmt: skip


def draw(shape: tuple[int, ...], ways: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    whole = torch.randint(0, 9, (2 * ways, *shape), generator=generator)
    x = whole if shape == TOKENS else torch.randn(2 * ways, *shape, generator=generator)
    return x, torch.arange(2 * ways) % ways


def adapt(name: str, ways: int = 3) -> tuple[MetaModule, AdaptedModel, Tensor]:
    torch.manual_seed(0)
    build, shape, options = NETWORKS[name]
    module = MAML(build(), inner_steps=1, inner_lr=0.1, **options)
    return module, module.adapt(draw(shape, ways), ways=ways), draw(shape, seed=1)[0]


def test_the_start_of_a_shared_head_stays_with_the_module(tmp_path: Path) -> None:
    """The file holds the network whole, and not the row that all classes start from."""
    module = MAML(Conv4(3, hidden=4, image_size=16), inner_steps=1, inner_lr=0.1, adapter=SharedHead())
    adapted, queries = module.adapt(draw(IMAGES)), draw(IMAGES, seed=1)[0]
    path = adapted.save(tmp_path / "x")
    for loaded in (AdaptedModel.load(path), AdaptedModel.load(path, module)):
        assert torch.equal(loaded(queries), adapted.independent()(queries))


@pytest.mark.parametrize("name", list(NETWORKS))
def test_it_answers_without_the_module(name: str, tmp_path: Path) -> None:
    module, adapted, queries = adapt(name)
    adapted.names = ["cat", "dog", "hen"]
    path = adapted.save(tmp_path / "x")
    with torch.no_grad():
        for value in module.parameters():
            value.add_(1)
    loaded = AdaptedModel.load(path)
    expected = adapted.independent()
    assert torch.equal(loaded(queries), expected(queries))
    assert torch.equal(loaded(queries[:1]), expected(queries[:1]))
    assert (loaded.names, loaded.examples) == (["cat", "dog", "hen"], 6)
    state = expected.state_dict()
    assert loaded.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in loaded.state_dict().items())
    again = AdaptedModel.load(loaded.save(tmp_path / "again"))
    assert torch.equal(again(queries), expected(queries))


def test_the_module_may_stand_beside_it(tmp_path: Path) -> None:
    for name in ("transductive", "torchvision"):
        module, adapted, queries = adapt(name)
        path = adapted.save(tmp_path / "x")
        again = AdaptedModel.load(AdaptedModel.load(path).save(tmp_path / "again"), module)
        assert torch.equal(again(queries), adapted.independent()(queries))
        with torch.no_grad():
            next(module.parameters()).add_(1)
        with pytest.raises(CheckpointError, match="another meta-model"):
            AdaptedModel.load(path, module)


@pytest.mark.parametrize("ways", [2, 5])
def test_other_ways_are_kept(ways: int, tmp_path: Path) -> None:
    _, adapted, queries = adapt("transductive", ways)
    loaded = AdaptedModel.load(adapted.save(tmp_path / "x"))
    assert loaded(queries).shape == (6, ways)
    assert torch.equal(loaded(queries), adapted.independent()(queries))


def test_a_transductive_model_stays_one_where_that_is_asked_for(tmp_path: Path) -> None:
    _, adapted, queries = adapt("transductive")
    loaded = AdaptedModel.load(adapted.save(tmp_path / "x", independent=False))
    torch.testing.assert_close(loaded(queries), adapted(queries), rtol=1e-4, atol=1e-5)


def test_what_is_not_whole_needs_the_module(tmp_path: Path) -> None:
    """A part that adapts, a frozen tensor, a network of a user's own, or one of ours that was changed since it was built."""

    class Own(Conv4):
        pass

    network = Conv4(3, hidden=4, image_size=16)
    changed, frozen = Conv4(3, hidden=4, image_size=16), Conv4(3, hidden=4, image_size=16)
    changed.body[4] = nn.Sequential(nn.Flatten(), nn.Tanh())
    frozen.head.bias.requires_grad_(False)
    for module in (
        ANIL(network, inner_steps=1), MAML(network, adapter=LoRA(1), inner_steps=1), MAML(frozen, inner_steps=1),
        MAML(Own(3, hidden=4, image_size=16), inner_steps=1), MAML(changed, inner_steps=1),
    ):  # fmt: skip
        path = module.adapt(draw(IMAGES)).save(tmp_path / "x")
        with pytest.raises(
            CheckpointError, match=r"does not hold a whole network, but \d+ tensors of a .*; name"
        ) as caught:
            AdaptedModel.load(path)
        assert "\n" not in str(caught.value)
        AdaptedModel.load(path, module)


CHANGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "another class": lambda d: d["backbone"].update(class_path="os.system"),
    "an own class": lambda d: d["backbone"].update(class_path="tests.algorithms.Smooth"),
    "a larger network": lambda d: d["backbone"]["init_args"].update(hidden=4000),
    "other sizes": lambda d: d["backbone"]["init_args"].update(hidden=3),
    "an argument of none": lambda d: d["backbone"]["init_args"].update(evil=1),
    "another network": lambda d: d.update(backbone={"class_path": "metalearn.MLP", "init_args": {"outputs": 2}}),
    "no description": lambda d: d.update(backbone=[1]),
    "an empty one": lambda d: d.update(backbone={}),
    "statistics": lambda d: d.update(image_statistics={"detail": ["x"]}),
    "examples": lambda d: d.update(examples=-1),
}  # fmt: skip


@pytest.mark.parametrize("change", list(CHANGES))
def test_a_description_of_anyones_is_one_line(change: str, tmp_path: Path) -> None:
    _, adapted, _ = adapt("transductive")
    path = rewritten(adapted.save(tmp_path / "x"), CHANGES[change])
    with pytest.raises(CheckpointError) as caught:
        AdaptedModel.load(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
