"""What hyper-cleaning and regularisation tuning share: a linear model inside, examples from a data module, accuracies."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torchmetrics import MeanMetric

from metalearn.bilevel.algorithms import Algorithm
from metalearn.bilevel.problem import BilevelProblem
from metalearn.bilevel.problems.drawn import Drawn
from metalearn.carried import check_sizes, count_elements
from metalearn.errors import ConfigError
from metalearn.modules.bilevel import BilevelCore
from metalearn.modules.problem_based.outcome import list_test_facts
from metalearn.reports.outcome import Facts, Stage

__all__ = ["LinearBilevel"]


class LinearBilevel(BilevelCore):
    """A bilevel problem whose sizes come from a data module with parts, or from arguments.

    Beside the log keys of :class:`~metalearn.modules.BilevelModule`: ``val/loss``, ``val/acc``, ``test/loss``, ``test/acc`` of
    the linear model at which the inner solver has ended, and ``val/calls``, all oracle calls at a validation.
    """

    classifies = True
    checkpoint_monitor = ("val/acc", "max")

    def __init__(self, algorithm: Algorithm, seed: int, outer_optimizer: OptimizerCallable | None) -> None:
        super().__init__(seed, 1, outer_optimizer)
        self._chosen = algorithm
        self.metrics = nn.ModuleDict(
            {f"{stage}_{name}": MeanMetric() for stage in ("val", "test") for name in ("loss", "acc")}
        )
        self.results: dict[str, float] = {}

    def sizes(self, data: Any) -> dict[str, int]:
        """The arguments that say how large ``x`` and ``y`` are, from the data."""
        raise NotImplementedError(f"{type(self).__name__} must say its sizes")

    def make_problem(self, sizes: dict[str, int]) -> tuple[BilevelProblem, Tensor]:
        """The problem without its data, and the initial ``x``."""
        raise NotImplementedError(f"{type(self).__name__} must make its problem")

    def with_constants(self, problem: BilevelProblem, train: Any, val: Any) -> BilevelProblem:
        """The problem with what the examples of both levels tell of its curvature, for ``train/certificate``."""
        return problem

    def logits(self, y: Tensor, x: Any) -> Tensor:
        """The linear model's outputs ``[n, classes]``."""
        raise NotImplementedError

    def build(self, sizes: dict[str, int]) -> None:
        """Make the problem and its parameters; done by a Trainer, or by whoever has no data module."""
        problem, x = self.make_problem(sizes)
        self.begin(problem, self._chosen, x)
        self.save_hyperparameters(sizes)

    def setup(self, stage: str) -> None:
        """Take the sizes from the data, and refuse what would change the algorithm's step."""
        if not hasattr(self, "outer"):
            self._build_from_data()
        data: Any = getattr(self.trainer, "datamodule", None)
        if hasattr(data, "part"):
            self._check_sizes(self.sizes(data))
            if stage == "fit" and data.batch_size is None:  # of drawn batches there is no certificate
                self.problem = self.with_constants(self.problem, data.part("train"), data.part("val"))
        super().setup(stage)

    def _build_from_data(self) -> None:
        given = {name: self.hparams.get(name) for name in self.size_names}
        if None in given.values():
            data = getattr(self.trainer, "datamodule", None)
            if not hasattr(data, "part"):
                lacking = ", ".join(name for name, value in given.items() if value is None)
                raise ConfigError(
                    f"{type(self).__name__} has no {lacking}, and there is no data module to take it from; give {lacking}, or "
                    "fit with datamodule=MNISTCleaningDataModule(...) or NewsgroupsDataModule(...)"
                )
            given = {name: given[name] or size for name, size in self.sizes(data).items()}
        self.build({name: int(size) for name, size in given.items() if size is not None})

    def _check_sizes(self, found: dict[str, int]) -> None:
        """Raise a ConfigError where the data do not fit: other features, or more examples or classes."""
        for name, size in found.items():
            own = int(self.hparams[name])
            if own != size if name == "features" else own < size:
                raise ConfigError(
                    f"{name} is {own}, but the data have {size}; leave {name} out, or use the data that the module was made for"
                )

    @property
    def size_names(self) -> tuple[str, ...]:
        """The names of the arguments that say sizes."""
        raise NotImplementedError

    def problem_of(self, batch: Any) -> BilevelProblem:
        """With batches of each term where the data module drew them, else with all the examples of both levels."""
        if isinstance(batch, tuple) and len(batch) == 4:
            return dataclasses.replace(self.problem, stream=Drawn(batch))
        return super().problem_of(batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._measure("val", batch)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._measure("test", batch)

    @torch.no_grad()
    def _measure(self, stage: str, batch: Any) -> None:
        _, x, labels = batch
        logits = self.logits(self.y, x).float()
        self._metric(stage, "loss").update(F.cross_entropy(logits, labels), len(labels))
        self._metric(stage, "acc").update((logits.argmax(-1) == labels).float().mean(), len(labels))

    def _metric(self, stage: str, name: str) -> Any:
        return self.metrics[f"{stage}_{name}"]

    def on_validation_epoch_end(self) -> None:
        self.log("val/calls", float(sum(self.counts.as_dict().values())))
        self._report("val")

    def on_test_epoch_end(self) -> None:
        self._report("test")

    def _report(self, stage: str) -> None:
        found = {f"{stage}/{name}": float(self._metric(stage, name).compute()) for name in ("loss", "acc")}
        for name in ("loss", "acc"):
            self._metric(stage, name).reset()
        found |= {f"{stage}/{name}": value for name, value in self.more_results().items()}
        for name, value in found.items():
            self.log(name, value, prog_bar=name.endswith("acc"))
        self.results.update(found)

    def summary_facts(self, stage: Stage) -> Facts:
        """What a test has measured, and what training has cost."""
        return list_test_facts(self.results) if stage == "test" else super().summary_facts(stage)

    def more_results(self) -> dict[str, float]:
        """Further numbers of the current ``x``."""
        return {}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if not hasattr(self, "outer"):  # without a Trainer
            held = checkpoint.get("hyper_parameters", {})
            sizes = {name: held.get(name, 0) for name in self.size_names}
            check_sizes(sizes, count_elements(checkpoint), "the checkpoint's hyper_parameters")
            self.build(sizes)
        super().on_load_checkpoint(checkpoint)
