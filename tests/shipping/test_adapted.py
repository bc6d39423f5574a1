"""An adapted model as a module of torch, and what it answers to queries that come one by one."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from metalearn import MAML, AdaptedModel
from tests.shipping.made import MODULES, STEPS, Normed, Twice, draw, draw_queries, make

DOUBLE = torch.float64


def normalise(x: Tensor, by: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """Batch normalisation of images by the mean and variance of others."""
    mean, var = by.mean((0, 2, 3), keepdim=True), by.var((0, 2, 3), correction=0, keepdim=True)
    y = (x - mean) / (var + 1e-5).sqrt()
    return y if weight is None or bias is None else y * weight.view(1, -1, 1, 1) + bias.view(1, -1, 1, 1)


def plain(params: dict[str, Tensor], support: Tensor, x: Tensor, twice: bool) -> Tensor:
    """The network's outputs, normalised by the support set, of torch's own operations."""
    affine = params["norm.weight"], params["norm.bias"]
    s, x = (F.conv2d(each, params["conv.weight"], params["conv.bias"]) for each in (support, x))
    s, x = normalise(s, s, *affine).relu(), normalise(x, s, *affine).relu()
    if twice:
        s, x = normalise(s + 1, s + 1, *affine), normalise(x + 1, s + 1, *affine)
        x = normalise(x, s)
    x = F.linear(x.flatten(1), params["body.1.weight"], params["body.1.bias"]).tanh()
    return F.linear(x, params["head.weight"], params["head.bias"])


@pytest.mark.parametrize("name", ["maml", "support", "twice", "anil", "ridge"])
def test_an_independent_model_normalises_by_the_support_set(name: str) -> None:
    support, queries = draw(dtype=DOUBLE), draw_queries(dtype=DOUBLE)
    adapted = make(name, DOUBLE).adapt(support)
    independent = adapted.independent()
    expected = plain(dict(adapted.params), support.x, queries, name == "twice")
    torch.testing.assert_close(independent(queries), expected, rtol=1e-10, atol=1e-10)
    for row in range(len(queries)):
        torch.testing.assert_close(independent(queries[row : row + 1]), expected[row : row + 1], rtol=1e-10, atol=1e-10)
    assert independent.independent() is independent


@pytest.mark.parametrize("name", ["support", "running", "per_step", "group", "cosine", "anil_per_step"])
def test_where_answers_are_independent_already_they_stay(name: str) -> None:
    adapted, queries = make(name, DOUBLE).adapt(draw(dtype=DOUBLE)), draw_queries(dtype=DOUBLE)
    torch.testing.assert_close(adapted.independent()(queries), adapted(queries), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", ["maml", "support", "running", "anil", "group"])
def test_the_network_itself_takes_the_state_dict(name: str) -> None:
    module, queries = make(name), draw_queries()
    independent = module.adapt(draw()).independent()
    network = copy.deepcopy(module.backbone)
    network.load_state_dict(independent.state_dict())
    torch.testing.assert_close(network.eval()(queries), independent(queries), rtol=1e-4, atol=1e-5)


def test_parameters_are_what_adapted() -> None:
    for name, count in (("maml", 8), ("anil", 2), ("ridge", 2)):
        adapted = make(name).adapt(draw())
        assert len(list(adapted.parameters())) == count
        assert not any(value.requires_grad for value in adapted.parameters())
        assert adapted.state_dict().keys() == Normed().state_dict().keys()
        assert adapted.params.keys() == dict(Normed().named_parameters()).keys()
        assert not adapted.training
    module = MAML(Normed(), **STEPS)
    module.backbone.conv.requires_grad_(False)  # type: ignore[union-attr, operator]
    assert len(list(module.adapt(draw()).parameters())) == 6


@pytest.mark.parametrize("name", list(MODULES))
def test_it_is_a_snapshot_that_can_be_copied(name: str) -> None:
    module, queries = make(name), draw_queries()
    adapted = module.adapt(draw())
    expected = adapted(queries)
    copies = [copy.deepcopy(adapted), pickle.loads(pickle.dumps(adapted))]
    with torch.no_grad():
        for value in [*module.parameters(), *module.buffers()]:
            value.copy_(value + 1)
    for model in (adapted, *copies):
        assert torch.equal(model(queries), expected)
        assert torch.equal(model.train()(queries), expected)


def test_a_state_dict_makes_one_model_the_other() -> None:
    module, queries = make("maml"), draw_queries()
    first, second = module.adapt(draw()), module.adapt(draw(seed=1))
    assert not torch.equal(first(queries), second(queries))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(queries), second(queries))


def test_models_that_share_tensors_do_not_write_to_each_other() -> None:
    module, queries = make("anil"), draw_queries()
    first, second = module.adapt_many(draw(2))
    expected = first(queries)
    assert first.params["conv.weight"] is second.params["conv.weight"]
    second.load_state_dict({name: value + 1 for name, value in second.state_dict().items()})
    assert torch.equal(first(queries), expected)


def test_it_is_cast_as_any_module() -> None:
    module, queries = make("maml"), draw_queries()
    for adapted in (module.adapt(draw()), module.adapt(draw()).independent()):
        expected = adapted(queries)
        doubled = copy.deepcopy(adapted).double()
        assert doubled(queries).dtype == DOUBLE
        torch.testing.assert_close(doubled(queries).float(), expected, rtol=1e-3, atol=1e-4)
        half = copy.deepcopy(adapted).to(torch.bfloat16)(queries)
        assert half.dtype == torch.bfloat16
        torch.testing.assert_close(half.float(), expected, rtol=0.1, atol=0.1)


def test_a_graph_is_kept_only_where_it_is_asked_for() -> None:
    adapted, queries = make("group", DOUBLE).adapt(draw(dtype=DOUBLE)), draw_queries(dtype=DOUBLE)
    assert not adapted(queries).requires_grad
    x = queries.clone().requires_grad_()
    (of_x,) = torch.autograd.grad(adapted(x).sum(), x)
    params = {name: value.detach().requires_grad_() for name, value in adapted.params.items()}
    network = Normed(lambda channels: torch.nn.GroupNorm(2, channels)).double()
    y = queries.clone().requires_grad_()
    (expected,) = torch.autograd.grad(functional_call(network, params, (y,)).sum(), y)
    torch.testing.assert_close(of_x, expected, rtol=1e-10, atol=1e-12)
    adapted.requires_grad_(True)
    assert adapted(queries).requires_grad
    with torch.no_grad():
        assert not adapted(queries).requires_grad


def test_names_of_layers_may_be_those_of_methods() -> None:
    class Odd(Normed):
        def __init__(self) -> None:
            super().__init__()
            self.params = self.save = torch.nn.Linear(3, 3)  # tied
            self.names = torch.nn.BatchNorm1d(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.params(self.names(self.save(super().forward(x))))

    module = MAML(Odd(), **STEPS)
    adapted = module.adapt(draw())
    assert isinstance(adapted, AdaptedModel)
    network = Odd()
    network.load_state_dict(adapted.independent().state_dict())
    torch.testing.assert_close(
        network.eval()(draw_queries()), adapted.independent()(draw_queries()), rtol=1e-4, atol=1e-5
    )


def test_a_network_that_normalises_twice_has_statistics_of_each_call() -> None:
    adapted = MAML(Twice(), **STEPS).adapt(draw()).independent()
    more = adapted.state_dict().keys() - Twice().state_dict().keys()
    assert sorted(more) == [
        "batch_norm.running_mean_0", "batch_norm.running_var_0", "norm.running_mean_1", "norm.running_var_1"
    ]  # fmt: skip


@pytest.mark.parametrize("ways", [None, 2, 4])
@pytest.mark.parametrize("name", ["maml", "anil", "ridge", "per_step"])
def test_many_tasks_at_once_are_as_one_by_one(name: str, ways: int | None) -> None:
    for dtype, error in ((torch.float32, 1e-5), (DOUBLE, 1e-12)):
        module, queries = make(name, dtype), draw_queries(dtype=dtype)
        support = draw(5, ways=ways or 3, dtype=dtype)
        many = module.adapt_many(support, ways=ways)
        for x, y, adapted in zip(*support, many, strict=True):
            single = module.adapt((x, y), ways=ways)
            torch.testing.assert_close(adapted(queries), single(queries), rtol=error, atol=error)
            assert adapted(queries).shape == (5, ways or 3)
