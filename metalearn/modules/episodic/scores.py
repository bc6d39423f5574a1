"""What the tasks of one evaluation loader have scored: our metrics, one number a task, and the user's."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from metalearn.errors import ConfigError
from metalearn.inner.losses import HALVES
from metalearn.metrics import EpisodeAccuracy, EpisodeMean
from metalearn.modules.episodic.measures import Kind
from metalearn.modules.episodic.records import QueryRecords

__all__ = ["Metrics", "Scores", "read_metrics"]

Metrics = Metric | MetricCollection | list[Metric] | dict[str, Metric] | None
"""Metrics of the user's, updated with query outputs ``[m, ...]`` and targets ``[m, ...]`` of all tasks together."""


def read_metrics(metrics: Metrics) -> dict[str, Metric]:
    """Copies of the user's metrics by the names that they are logged under.

    Raises:
        ConfigError: they are no metrics, or two share a name.
    """
    if metrics is None:
        return {}
    if isinstance(metrics, Metric):
        pairs: list[tuple[Any, Any]] = [(type(metrics).__name__, metrics)]
    elif isinstance(metrics, (Mapping, MetricCollection)):
        pairs = list(metrics.items())
    elif isinstance(metrics, Sequence) and not isinstance(metrics, str):
        pairs = [(type(metric).__name__, metric) for metric in metrics]
    else:
        pairs = [("metrics", metrics)]
    by_name: dict[str, Metric] = {}
    for name, metric in pairs:
        if not isinstance(metric, Metric):
            kind = metric.__name__ + " itself" if isinstance(metric, type) else type(metric).__name__
            raise ConfigError(
                f"metrics holds a {kind}, but each must be an instance of torchmetrics.Metric; use for example "
                "torchmetrics.MeanAbsoluteError()"
            )
        if name in by_name or name in ("loss", "acc") or name.startswith(("loss_", "acc_")):
            raise ConfigError(
                f"metrics names {name!r} twice, or as the module's own, but each needs a name of its own; give a mapping of "
                "names to metrics"
            )
        by_name[name] = metric.clone()
    return by_name


class Scores:
    """What one loader's tasks have scored since :meth:`start`.

    Args:
        metrics: the user's.

    Attributes:
        seen: the tasks so far on this rank.
        kind: which metrics they have; ``None`` before the first.
        means: our metrics by name.
        records: what their queries were answered, in a test.
    """

    def __init__(self, metrics: Mapping[str, Metric]) -> None:
        self._metrics = {name: metric.clone() for name, metric in metrics.items()}
        self.start()

    def start(self) -> None:
        """Forget everything."""
        self.seen = 0
        self.kind: Kind | None = None
        self.means: dict[str, EpisodeMean] = {}
        self.records = QueryRecords()
        for metric in self._metrics.values():
            metric.reset()

    def mean(self, name: str, device: torch.device) -> EpisodeMean:
        """Our metric of this name, made where it is asked for first: an accuracy if its name begins so."""
        if name not in self.means:
            made = EpisodeAccuracy() if name.startswith("acc") else EpisodeMean()
            self.means[name] = made.to(device)
        return self.means[name]

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Update the user's metrics with outputs ``[B, n, ...]`` and targets ``[B, n, ...]``.

        Raises:
            ConfigError: a metric cannot take them.
        """
        outputs, targets = outputs.flatten(0, 1), targets.flatten(0, 1)
        outputs = outputs.float() if outputs.dtype in HALVES else outputs
        for name, metric in self._metrics.items():
            try:
                metric.to(outputs.device).update(outputs, targets)
            except (RuntimeError, ValueError, TypeError, IndexError) as error:
                reason = " ".join(str(error).split())[:240]
                raise ConfigError(
                    f"metrics: {name} cannot take outputs of shape {list(outputs.shape)} and targets of shape "
                    f"{list(targets.shape)}: {reason}; build it for these (num_classes, ignore_index, task)"
                ) from error

    def compute(self, device: torch.device) -> dict[str, float]:
        """The user's metrics over all ranks, a number each; one of several numbers gets a name for each of them.

        Raises:
            ConfigError: one gives neither a number nor a list of them, or cannot be computed.
        """
        values: dict[str, float] = {}
        for name, metric in self._metrics.items():
            try:
                with warnings.catch_warnings():  # a rank without tasks takes part in gathering
                    warnings.filterwarnings("ignore", message="The ``compute`` method of metric")
                    value = metric.to(device).compute()
            except (RuntimeError, ValueError, TypeError, IndexError) as error:
                reason = " ".join(str(error).split())[:240]
                raise ConfigError(
                    f"metrics: {name} cannot be computed ({reason}); leave it out, or use another"
                ) from error
            for key, part in value.items() if isinstance(value, Mapping) else [("", value)]:
                _spread(values, f"{name}_{key}" if key else name, torch.as_tensor(part).detach())
        return values


def _spread(values: dict[str, float], name: str, value: Tensor) -> None:
    if value.numel() == 1:
        values[name] = float(value)
    elif value.ndim == 1:
        values.update({f"{name}_{index}": number for index, number in enumerate(value.tolist())})
    else:
        raise ConfigError(
            f"metrics: {name} gives a tensor of shape {list(value.shape)}, but only numbers can be logged; reduce it, or compute "
            "it from predict"
        )
