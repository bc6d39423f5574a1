"""ANIL over networks that do more than end in their head: the meta-gradient is that of a plain loop over the network itself."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrizations, prune

from metalearn import ANIL, MAML, Batch, BilevelFewShot, ConfigError, Episode
from metalearn.inner import NormPolicy
from tests.modules.episodic.head_networks import (
    Attending,
    Bilinear,
    ChangedByData,
    ChangedInPlace,
    Checkpointed,
    Cosine,
    Functional,
    HeadReadsBody,
    Keyword,
    LogSoftmax,
    MultiCrop,
    Net,
    ReadsHead,
    ReadsHeadDetached,
    Scaled,
    Tied,
    Told,
    Twice,
    TwoBranches,
    by_index,
    parametrized,
    writing,
)
from tests.modules.episodic.test_meta_gradient import largest_error
from tests.networks import PlainWeightNorm, TinyConv, noise_episode

ALONE: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "linear": (Net, "head"),
    "by_index": (by_index, "2"),
    "deep": (lambda: Net(nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))), "head"),
    "part_of_a_head": (lambda: Net(nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))), "head.2"),
    "attending": (Attending, "head"),
    "cosine": (lambda: Net(Cosine()), "head"),
    "weight_norm": (lambda: Net(parametrizations.weight_norm(nn.Linear(5, 3))), "head"),
    "parametrized": (parametrized, "head"),
    "checkpointed": (Checkpointed, "head"),
    "writing": (writing, "head"),
}
WHOLE: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "scaled": (Scaled, "head", "something follows it"),
    "log_softmax": (LogSoftmax, "head", "something follows it"),
    "two_branches": (TwoBranches, "head", "something follows it"),
    "in_the_middle": (lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3), nn.Linear(3, 3)), "2",
                      "something follows it"),
    "in_place": (ChangedInPlace, "head", "changed in place"),
    "past_the_counter": (ChangedByData, "head", "changed in place"),
    "keyword": (Keyword, "head", "with keywords"),
    "bilinear": (Bilinear, "head", "more than one tensor"),
    "twice": (Twice, "head", "called 2 times"),
    "crops": (MultiCrop, "head", "called 2 times"),
    "functional": (Functional, "head", "called 0 times"),
    "tied": (Tied, "head", "shares first.weight"),
    "tied_with_bias": (lambda: Tied(bias=True), "head", "shares first.weight"),
    "reads_head": (ReadsHead, "head", "depends on its own tensors"),
    "reads_values": (ReadsHeadDetached, "head", "depends on its own tensors"),
    "told": (Told, "head", "depends on more than what it is called with"),
    "reads_body": (HeadReadsBody, "head", "tensors of other layers"),
}  # fmt: skip


def head_loop(net: nn.Module, head: str, episode: Episode, steps: int, lr: float) -> tuple[dict[str, Tensor], Tensor]:
    """Inner steps on the tensors of ``head`` by passes of the whole network; the meta-gradient, and the first task's outputs."""
    outer = dict(net.named_parameters())
    own = {id(value) for value in net.get_submodule(head).parameters()}
    moving = [name for name, value in outer.items() if id(value) in own]
    losses, outputs = [], []
    for xs, ys, xq, yq in zip(*episode.support, *episode.query, strict=True):
        params = dict(outer)
        for _ in range(steps):
            loss = F.cross_entropy(functional_call(net, params, (xs,)), ys)
            grads = torch.autograd.grad(loss, [params[name] for name in moving], create_graph=True)
            params |= {name: params[name] - lr * grad for name, grad in zip(moving, grads, strict=True)}
        outputs.append(functional_call(net, params, (xq,)))
        losses.append(F.cross_entropy(outputs[-1], yq))
    grads = torch.autograd.grad(torch.stack(losses).mean(), list(outer.values()))
    return {f"backbone.{name}": grad for name, grad in zip(outer, grads, strict=True)}, outputs[0].detach()


def check(build: Callable[[], nn.Module], head: str, **options: Any) -> ANIL:
    torch.manual_seed(0)
    net, episode = build().double(), noise_episode(shape=(4,))
    stock = copy.deepcopy(net)
    if isinstance(stock, Checkpointed):
        stock.saves = False  # torch would compute again with the parameters that the module holds by then
    with PlainWeightNorm():
        expected, outputs = head_loop(stock, head, episode, 3, 0.4)
    module = ANIL(net, inner_steps=3, inner_lr=0.4, head=head, **options)
    assert largest_error(module.meta_gradient(episode), expected) < 1e-9
    adapted = module.adapt(Batch(episode.support.x[0], episode.support.y[0]))
    torch.testing.assert_close(adapted(episode.query.x[0]), outputs)
    return module


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # torch's, where it batches by a loop
@pytest.mark.parametrize("execution", ["sequential", "vectorized"])
@pytest.mark.parametrize("name", ALONE)
def test_features_are_computed_once_where_the_head_is_all_that_counts(
    name: str, execution: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        check(*ALONE[name], execution=execution)
    assert "the whole network is run" not in caplog.text


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # torch's, where it batches by a loop
@pytest.mark.parametrize("execution", ["sequential", "vectorized"])
@pytest.mark.parametrize("name", WHOLE)
def test_else_the_whole_network_is_run_and_one_line_says_why(
    name: str, execution: str, caplog: pytest.LogCaptureFixture
) -> None:
    build, head, reason = WHOLE[name]
    with caplog.at_level("INFO"):
        module = check(build, head, execution=execution)
        module.meta_gradient(noise_episode(shape=(4,)))
    (line,) = [record.getMessage() for record in caplog.records if "whole network" in record.getMessage()]
    assert reason in line
    assert f"head {head!r}" in line


class OnlyInEvaluation(Net):
    """Gives probabilities in evaluation, as networks made for serving do."""

    def forward(self, x: Tensor) -> Tensor:
        found = super().forward(x)
        return found if self.training else found.softmax(-1)


def test_what_follows_the_head_in_evaluation_alone_is_applied_there() -> None:
    torch.manual_seed(0)
    net, episode = OnlyInEvaluation().double(), noise_episode(shape=(4,))
    stock = copy.deepcopy(net)
    module = ANIL(net, inner_steps=2, inner_lr=0.4)
    expected, _ = head_loop(stock, "head", episode, 2, 0.4)
    assert largest_error(module.meta_gradient(episode), expected) < 1e-9
    _, outputs = head_loop(stock.eval(), "head", episode, 2, 0.4)
    adapted = module.adapt(Batch(episode.support.x[0], episode.support.y[0]))
    torch.testing.assert_close(adapted(episode.query.x[0]), outputs)


class Undecided(Net):
    def forward(self, x: Tensor) -> Tensor:
        found = super().forward(x)
        return found if float(x.detach().mean()) < 10 else 2 * found


def test_a_way_that_depends_on_the_data_is_refused_in_one_line() -> None:
    module = ANIL(Undecided().double(), inner_steps=1, execution="sequential")
    episode = noise_episode(shape=(4,))
    module.meta_gradient(episode)
    later = Episode(episode.support, Batch(episode.query.x + 100, episode.query.y))
    with pytest.raises(ConfigError, match="something follows it; let forward take the same way for all examples"):
        module.meta_gradient(later)


@pytest.mark.parametrize(
    "build",
    [
        lambda: ANIL(Scaled(), head_solver="ridge"),
        lambda: BilevelFewShot(Scaled(), head_loss="ridge"),
    ],
)
def test_a_closed_form_needs_the_head_alone(build: Callable[[], ANIL]) -> None:
    with pytest.raises(
        ConfigError, match="needs a network whose output is that of its head 'head'.*something follows it"
    ):
        build().meta_gradient(noise_episode(shape=(4,), dtype=torch.float32))


def test_bilevel_few_shot_solves_through_what_follows_the_head() -> None:
    """ITD from a head at 0, against a plain loop with the penalty written out."""
    torch.manual_seed(0)
    net, episode = Scaled().double(), noise_episode(shape=(4,), tasks=1)
    module = BilevelFewShot(net, l2=0.1, estimator="itd", inner_steps=3, inner_lr=0.2)
    outer = {name: value for name, value in net.named_parameters() if name != "head.weight"}
    weight = torch.zeros(3, 5, dtype=torch.float64, requires_grad=True)
    start = weight
    for _ in range(3):
        loss = F.cross_entropy(
            functional_call(net, {"head.weight": weight}, (episode.support.x[0],)), episode.support.y[0]
        )
        (grad,) = torch.autograd.grad(loss + 0.05 * weight.square().sum(), [weight], create_graph=True)
        weight = weight - 0.2 * grad
    loss = F.cross_entropy(functional_call(net, {"head.weight": weight}, (episode.query.x[0],)), episode.query.y[0])
    expected = torch.autograd.grad(loss, list(outer.values()))
    found = module.meta_gradient(episode)
    assert start.grad is None
    for name, grad in zip(outer, expected, strict=True):
        torch.testing.assert_close(found[f"backbone.{name}"], grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("norm", ["transductive", "support", "running", "per_step"])
def test_normalisation_is_that_of_its_policy_whichever_way_it_is_run(norm: NormPolicy) -> None:
    """Features once, or the whole network at each step."""

    class After(TinyConv):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 1.0

    torch.manual_seed(0)
    net, episode = TinyConv().double(), noise_episode()
    after = After().double()
    after.load_state_dict(net.state_dict())
    once, whole = (ANIL(each, inner_steps=2, inner_lr=0.4, norm=norm) for each in (net, after))
    expected = once.meta_gradient(episode)
    assert largest_error(whole.meta_gradient(episode), expected) < 1e-9


@pytest.mark.parametrize("kind", [MAML, ANIL])
def test_a_module_that_has_done_nothing_yet_takes_more_classes(kind: type[MAML | ANIL]) -> None:
    """Every row of the head begins as the mean of the trained ones, so that logits are alike before the first step."""
    torch.manual_seed(0)
    support = noise_episode(ways=5, shape=(4,), tasks=1).support
    adapted = kind(Net().double(), inner_steps=1)
    before = adapted.adapt(Batch(support.x[0], support.y[0]), steps=0, ways=5)(support.x[0])
    assert before.shape == (10, 5)
    assert float(before.std(1).max()) < 1e-12
    after = adapted.adapt(Batch(support.x[0], support.y[0]), ways=5)(support.x[0])
    assert float(after.std(1).min()) > 1e-3


class ScaledByClass(Net):
    def __init__(self) -> None:
        super().__init__()
        self.scales = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.scales * super().forward(x)


def pruned() -> nn.Module:
    net = Net()
    prune.l1_unstructured(net.head, "weight", 0.5)
    return net


def frozen_weight() -> nn.Module:
    net = Net()
    net.head.weight.requires_grad_(False)
    return net


@pytest.mark.parametrize(
    ("build", "why"),
    [
        (Tied, "shares a tensor with another layer"),
        (pruned, "weight_orig in the place of a weight"),
        (frozen_weight, "has a frozen tensor"),
        (ScaledByClass, "because of what follows the head"),
    ],
)
def test_a_head_that_cannot_be_widened_is_told(build: Callable[[], nn.Module], why: str) -> None:
    support = noise_episode(ways=4, shape=(4,), tasks=1).support
    with pytest.raises(ConfigError, match=why):
        MAML(build().double(), inner_steps=1).adapt(Batch(support.x[0], support.y[0]), ways=4)


@pytest.mark.parametrize("build", [Tied, lambda: Net(parametrizations.weight_norm(nn.Linear(5, 3)))])
def test_a_head_that_cannot_be_0_is_told(build: Callable[[], nn.Module]) -> None:
    with pytest.raises(ConfigError, match="BilevelFewShot solves for the head 'head' from 0, but it"):
        BilevelFewShot(build())
