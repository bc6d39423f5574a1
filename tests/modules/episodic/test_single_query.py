"""One query alone, where statistics are those of the query set: against plain operations on the adapted tensors."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn import ANIL, MAML
from metalearn.episode import Batch

DOUBLE = torch.float64


class Small(nn.Module):
    """Convolution, batch normalisation, a second one over features, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3)
        self.flat, self.last = nn.Linear(48, 4), nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).relu().flatten(1)
        return self.head(self.last(self.flat(x)).relu())


def plain(params: dict[str, Tensor], support: Tensor, query: Tensor) -> Tensor:
    """The outputs for a query, each normalisation by the mean and the variance of what the support set is there."""

    def normalised(name: str, x: Tensor, by: Tensor) -> Tensor:
        axes = [0, *range(2, x.ndim)]
        shape = (1, -1, *(1,) * (x.ndim - 2))
        mean, var = by.mean(axes).view(shape), by.var(axes, correction=0).view(shape)
        return (x - mean) / (var + 1e-5).sqrt() * params[f"{name}.weight"].view(shape) + params[f"{name}.bias"].view(
            shape
        )

    both = [F.conv2d(x, params["conv.weight"], params["conv.bias"]) for x in (support, query)]
    both = [normalised("norm", x, both[0]).relu().flatten(1) for x in both]
    both = [F.linear(x, params["flat.weight"], params["flat.bias"]) for x in both]
    features = normalised("last", both[1], both[0]).relu()
    return F.linear(features, params["head.weight"], params["head.bias"])


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "metalearn.shipping.statistics"]


@pytest.mark.parametrize("algorithm", [MAML, ANIL])
def test_a_single_query_is_normalised_by_the_support_set(algorithm: Any, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(3)
    module = algorithm(Small().to(DOUBLE), inner_steps=2, inner_lr=0.3)
    support = Batch(torch.randn(6, 1, 6, 6, dtype=DOUBLE), torch.arange(6) % 3)
    adapted, queries = module.adapt(support), torch.randn(4, 1, 6, 6, dtype=DOUBLE)
    with caplog.at_level(logging.WARNING, logger="metalearn"):
        together = adapted(queries)
        assert not told(caplog)
        for k in range(4):
            expected = plain(adapted.params, support.x, queries[k : k + 1])
            torch.testing.assert_close(adapted(queries[k : k + 1]), expected, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(
                adapted.probabilities(queries[k : k + 1]), expected.softmax(1), rtol=1e-9, atol=1e-9
            )
        module.adapt(support)(queries[:1])
    (line,) = told(caplog)
    assert "a single query has no batch statistics of its own, so it is normalised by those of the support" in line
    torch.testing.assert_close(together, plain(adapted.params, queries, queries), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("norm", ["support", "running", None])
def test_other_policies_and_networks_are_as_before(norm: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Their prediction of a query does not depend on the others."""
    torch.manual_seed(3)
    network = Small() if norm else nn.Sequential(nn.Flatten(), nn.Linear(36, 4), nn.LayerNorm(4), nn.Linear(4, 3))
    module = MAML(network.to(DOUBLE), inner_steps=1, inner_lr=0.1, **({"norm": norm} if norm else {}))
    adapted = module.adapt(Batch(torch.randn(6, 1, 6, 6, dtype=DOUBLE), torch.arange(6) % 3))
    queries = torch.randn(3, 1, 6, 6, dtype=DOUBLE)
    with caplog.at_level(logging.WARNING, logger="metalearn"):
        torch.testing.assert_close(adapted(queries[1:2]), adapted(queries)[1:2], rtol=1e-12, atol=1e-12)
    assert not told(caplog)
