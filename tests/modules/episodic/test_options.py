"""Each option of the inner loop is said once: arguments, hyper-parameters, checks and help follow from its field."""

from __future__ import annotations

import inspect
import typing
from collections import OrderedDict
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.cli import LightningArgumentParser
from torch import nn
from torch.utils.data import DataLoader

from metalearn import (
    ALFA,
    ANIL,
    IMAML,
    MAML,
    Baseline,
    Batch,
    BilevelFewShot,
    ConfigError,
    Episode,
    MeTAL,
    MetaModule,
    Pooled,
    ProtoNet,
    Reptile,
)
from metalearn.checks import check_number
from metalearn.docstrings import read_arguments
from metalearn.inner import Momentum
from metalearn.inner.inner_loop import InnerLoop, setting
from metalearn.modules.anil import HeadLoop
from metalearn.modules.episodic.joining import join_options
from metalearn.modules.imaml import ImplicitLoop
from metalearn.modules.maml import PartLoop
from tests.algorithms import KINDS
from tests.modules.episodic.test_evaluation import trainer
from tests.networks import noise_episode

OUTER = {"backbone", "outer_optimizer", "outer_scheduler", "metrics"}
GRADIENT_STEPS = {
    "first_order", "inner_optimizer", "initial_inner_lr", "inner_weight_decay", "inner_clip_norm", "multi_step_loss",
    "compile",
}  # fmt: skip
NO_STEPS = {"inner_steps", "inner_lr", "eval_inner_steps", "memory", "support_chunk", "task"}
LEFT_OUT: dict[type, set[str]] = {
    ALFA: {"inner_optimizer", "initial_inner_lr", "inner_weight_decay", "inner_clip_norm"},
    IMAML: GRADIENT_STEPS | {"memory"},
    BilevelFewShot: GRADIENT_STEPS,
    ProtoNet: GRADIENT_STEPS - {"compile"} | NO_STEPS,
    Baseline: GRADIENT_STEPS | NO_STEPS,
    MeTAL: {"first_order", "support_chunk"},
    Reptile: {"first_order", "memory", "initial_inner_lr", "multi_step_loss"},
}
"""The options that an algorithm has no use for."""


def network() -> nn.Module:
    """Points of four numbers in three classes."""
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


@dataclass(frozen=True)
class NoisyLoop(InnerLoop):
    """One option more."""

    input_noise: float = setting(
        0.5,
        "the deviation of the noise that the support set gets.",
        partial(check_number, remedy="use 0.5", least=0.0),
    )


def add_noise(episode: Episode, options: Any) -> Episode:
    """The option's use."""
    (x, y), query = episode
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x)
    return Episode(Batch(x + options.input_noise * noise, y), query)


class Noisy(MetaModule):
    """MAML whose support inputs get noise in training."""

    options_class = NoisyLoop

    def __init__(self, backbone: nn.Module, inner_steps: int = 2, input_noise: float = 0.5) -> None:
        super().__init__(backbone, NoisyLoop.of(locals()))

    def meta_loss(self, episode: Any, ways: int | None = None) -> Any:
        return super().meta_loss(add_noise(episode, self.options), ways)


@pytest.mark.parametrize("kind", KINDS)
def test_a_signature_is_that_of_the_options(kind: type[MetaModule]) -> None:
    """The signatures are written out for type checkers and editors; this holds them to the fields."""
    parameters = inspect.signature(kind).parameters
    hints = typing.get_type_hints(kind.__init__)
    of_fields = typing.get_type_hints(kind.options_class)
    for field in fields(kind.options_class):
        if field.name in LEFT_OUT.get(kind, set()):
            assert field.name not in parameters
            continue
        assert hints[field.name] == of_fields[field.name], field.name
        assert parameters[field.name].default == field.default, field.name
    assert parameters.keys() - {field.name for field in fields(kind.options_class)} == OUTER
    assert all(parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD for parameter in parameters.values())


@pytest.mark.parametrize("kind", KINDS)
def test_every_argument_has_a_text_of_its_own(kind: type[MetaModule], capsys: pytest.CaptureFixture[str]) -> None:
    texts = read_arguments(kind.__doc__ or "")
    assert list(texts) == list(inspect.signature(kind).parameters)
    assert not [name for name, text in texts.items() if not text or text.startswith("see ")]
    summary = (kind.__doc__ or "").splitlines()[0]
    assert summary.endswith(".")
    printed = print_help(kind, capsys)
    assert summary.rstrip(".") in printed
    for text in texts.values():
        assert " ".join(text.split())[:60] in printed


def print_help(kind: type[MetaModule], capsys: pytest.CaptureFixture[str]) -> str:
    """What ``--model.help`` prints, on one line."""
    parser = LightningArgumentParser()
    parser.add_subclass_arguments(MetaModule, "model")
    with pytest.raises(SystemExit):
        parser.parse_args([f"--model.help={kind.__module__}.{kind.__qualname__}"])
    return " ".join(capsys.readouterr().out.split())


def test_an_option_made_on_the_spot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One field and its use: an argument, a hyper-parameter, a part of checkpoints, checked, and in the help."""
    assert inspect.signature(Noisy).parameters["input_noise"].default == 0.5
    assert "the deviation of the noise that the support set gets." in print_help(Noisy, capsys)
    with pytest.raises(ConfigError, match=r"input_noise is -1.*use 0.5"):
        Noisy(network(), input_noise=-1)
    module = Noisy(network(), input_noise=0.25)
    assert module.hparams["input_noise"] == 0.25
    episode = noise_episode(4, shape=(4,), dtype=torch.float32)
    with_noise = float(module.meta_loss(episode).loss.detach())
    module.set_options(input_noise=0.0)
    assert float(module.meta_loss(episode).loss.detach()) != with_noise

    run = trainer(tmp_path, max_steps=1, limit_val_batches=0)
    module.set_options(input_noise=0.25)
    loader: Any = DataLoader([episode], batch_size=None)  # type: ignore[arg-type]
    run.fit(module, loader, loader)
    run.save_checkpoint(tmp_path / "noisy.ckpt")
    again = Noisy.load_from_checkpoint(tmp_path / "noisy.ckpt", backbone=network())
    assert again.options.input_noise == 0.25
    assert (
        Noisy.load_from_checkpoint(tmp_path / "noisy.ckpt", backbone=network(), input_noise=0.5).options.input_noise
        == 0.5
    )


@dataclass(frozen=True)
class NoisyPartLoop(PartLoop):
    """One option more than MAML's."""

    input_noise: float = setting(
        0.5,
        "the deviation of the noise that the support set gets.",
        partial(check_number, remedy="use 0.5", least=0.0),
    )


class NoisyMAML(MAML):
    """An option more than MAML's, and no constructor."""

    options_class = NoisyPartLoop

    def meta_loss(self, episode: Any, ways: int | None = None) -> Any:
        return super().meta_loss(add_noise(episode, self.options), ways)


class NoisyPooled(Pooled):
    """A constructor that spells out what it changes alone."""

    options_class = NoisyLoop

    @join_options(NoisyLoop)
    def __init__(self, backbone: nn.Module, inner_steps: int = 3) -> None:
        super().__init__(backbone, inner_steps=inner_steps)


@pytest.mark.parametrize("kind", [NoisyMAML, NoisyPooled])
def test_an_option_joins_the_arguments(kind: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One field is all that an option needs to be an argument."""
    parameter = inspect.signature(kind).parameters["input_noise"]
    assert (parameter.default, parameter.annotation) == (0.5, float)
    assert "the deviation of the noise that the support set gets." in print_help(kind, capsys)
    with pytest.raises(ConfigError, match=r"input_noise is -1.*use 0.5"):
        kind(network(), input_noise=-1)
    with pytest.raises(TypeError, match="input_noize"):
        kind(network(), input_noize=1)
    module = kind(network(), inner_steps=2, input_noise=0.25)
    assert dict(kind(network()).hparams)["input_noise"] == 0.5
    assert dict(module.hparams).keys() == {field.name for field in fields(kind.options_class)}
    run = trainer(tmp_path, max_steps=1, limit_val_batches=0)
    loader: Any = DataLoader([noise_episode(4, shape=(4,), dtype=torch.float32)], batch_size=None)  # type: ignore[arg-type]
    run.fit(module, loader, loader)
    run.save_checkpoint(tmp_path / "noisy.ckpt")
    again = kind.load_from_checkpoint(tmp_path / "noisy.ckpt", backbone=network())
    assert (again.options.input_noise, again.inner_steps) == (0.25, 2)


@dataclass(frozen=True)
class NoisyHeadLoop(HeadLoop):
    """One option more than ANIL's."""

    input_noise: float = setting(0.5, "the deviation of the noise.")


class Tagged:
    """A mixin that passes on what it does not know."""

    def __init__(self, *args: Any, tag: str = "", **kwargs: Any) -> None:
        self.tag = tag
        super().__init__(*args, **kwargs)


class TaggedANIL(Tagged, ANIL):
    """Takes the arguments of both, and an option of its own."""

    options_class = NoisyHeadLoop


class OpenANIL(ANIL):
    """A constructor that passes on the rest."""

    options_class = NoisyHeadLoop

    @join_options(NoisyHeadLoop)
    def __init__(self, backbone: nn.Module, *, tag: str = "", **kwargs: Any) -> None:
        super().__init__(backbone, **kwargs)
        self.tag = tag


@pytest.mark.parametrize("kind", [TaggedANIL, OpenANIL])
def test_an_option_joins_a_constructor_that_passes_on_the_rest(kind: Any) -> None:
    module = kind(
        nn.Sequential(OrderedDict(body=nn.Linear(4, 5), top=nn.Linear(5, 3))), head="top", tag="mine", input_noise=0.25
    )
    assert (module.tag, module.options.head, module.options.input_noise) == ("mine", "top", 0.25)


def test_an_inherited_constructor_takes_no_more_than_the_new_option() -> None:
    """What an algorithm has no use for, its subclass has none for either."""

    @dataclass(frozen=True)
    class NoisyImplicitLoop(ImplicitLoop):
        input_noise: float = setting(0.5, "the deviation of the noise.")

    class NoisyIMAML(IMAML):
        options_class = NoisyImplicitLoop

    assert inspect.signature(NoisyIMAML).parameters.keys() - inspect.signature(IMAML).parameters.keys() == {
        "input_noise"
    }


def test_options_that_lack_those_of_the_algorithm_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"NoisyLoop, but it must derive from PartLoop.*NoisyLoop\(MAML.options_class\)"
    ):

        class Foreign(MAML):
            options_class = NoisyLoop


def test_a_joined_option_is_used() -> None:
    episode = noise_episode(4, shape=(4,))
    net = network().double()
    plain = float(MAML(net).meta_loss(episode).loss.detach())
    assert float(NoisyMAML(net, input_noise=0.0).meta_loss(episode).loss.detach()) == plain
    noisy = float(NoisyMAML(net, input_noise=0.5).meta_loss(episode).loss.detach())
    assert noisy == float(MAML(net).meta_loss(add_noise(episode, NoisyLoop(input_noise=0.5))).loss.detach()) != plain


def test_hyper_parameters_are_the_options_in_plain_types() -> None:
    module = MAML(
        network(), inner_lr=(0.1, 0.2), inner_steps=2, inner_optimizer=Momentum(0.5), loss=nn.CrossEntropyLoss()
    )  # type: ignore[arg-type]
    saved = dict(module.hparams)
    assert saved.keys() == {field.name for field in fields(PartLoop)} - {"loss"}
    assert saved["inner_lr"] == [0.1, 0.2]
    assert saved["inner_optimizer"] == {"class_path": "Momentum", "init_args": {"momentum": 0.5, "nesterov": False}}
    assert dict(IMAML(network()).hparams).keys() == {field.name for field in fields(IMAML.options_class)}


def test_an_option_is_an_attribute_that_is_checked() -> None:
    module = MAML(network(), inner_steps=3)
    assert module.eval_inner_steps == 3
    module.eval_inner_steps = 7
    assert (module.inner_steps, module.eval_inner_steps, module.options.eval_inner_steps) == (3, 7, 7)
    with pytest.raises(ConfigError, match="inner_steps is 0"):
        module.inner_steps = 0
    assert module.hparams["eval_inner_steps"] is None  # as the module was made
