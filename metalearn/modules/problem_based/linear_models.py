"""What hyper-cleaning and regularisation tuning share: a linear model inside, examples from a data module, accuracies."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from metalearn.bilevel.algorithms import Algorithm
from metalearn.bilevel.problem import BilevelProblem
from metalearn.bilevel.problems.drawn import Drawn
from metalearn.carried import check_sizes, count_elements
from metalearn.checks import check_whole
from metalearn.errors import ConfigError
from metalearn.modules.problem_based.core import BilevelCore
from metalearn.modules.problem_based.linear_scores import LinearScores
from metalearn.modules.problem_based.outcome import list_test_facts
from metalearn.reports.outcome import Facts, Stage

__all__ = ["LinearBilevel", "LinearProblem", "check_size_arguments"]


def check_size_arguments(**sizes: int | None) -> None:
    """Raise unless each size is ``None`` or a whole number above 0."""
    for name, size in sizes.items():
        if size is not None:
            check_whole(name, size, 1, remedy="leave it out for that of the data")


class LinearProblem(Protocol):
    """What :class:`LinearBilevel` needs to know of its problem."""

    @property
    def size_names(self) -> tuple[str, ...]:
        """The arguments that say how large ``x`` and ``y`` are."""

    def read_sizes(self, data: Any) -> dict[str, int]:
        """Return these sizes of a data module."""

    def make(self, sizes: dict[str, int]) -> tuple[BilevelProblem, Tensor]:
        """Make the problem without its data, and the initial ``x``."""

    def add_constants(self, problem: BilevelProblem, train: Any, val: Any, sizes: dict[str, int]) -> BilevelProblem:
        """Return the problem with what is known of its derivatives on all examples of both levels."""

    def logits(self, y: Tensor, x: Any) -> Tensor:
        """Return the linear model's outputs ``[n, classes]``."""

    def measure(self, x: Tensor, data: Any) -> dict[str, float]:
        """Return further numbers of ``x``, by name."""


class LinearBilevel(BilevelCore):
    """A bilevel problem whose sizes come from a data module with parts, or from arguments.

    Beside the log keys of :class:`~metalearn.modules.BilevelModule`: ``val/loss``, ``val/acc``, ``test/loss``, ``test/acc`` of
    the linear model at which the inner solver has ended, and ``val/calls``, all oracle calls at a validation.

    Attributes:
        results: the last value of each of these, and of what else the problem measures.
    """

    classifies = True
    checkpoint_monitor = ("val/acc", "max")

    def __init__(
        self, linear: LinearProblem, algorithm: Algorithm, seed: int, outer_optimizer: OptimizerCallable | None
    ) -> None:
        super().__init__(seed, 1, outer_optimizer)
        self.linear = linear
        self.scores = LinearScores()
        self.results: dict[str, float] = {}
        self._chosen = algorithm

    def build(self, sizes: dict[str, int]) -> None:
        """Make the problem and its parameters; done by a Trainer, or by whoever has no data module."""
        problem, x = self.linear.make(sizes)
        self.begin(problem, self._chosen, x)
        self.save_hyperparameters(sizes)

    def logits(self, y: Tensor, x: Any) -> Tensor:
        """Return the linear model's outputs ``[n, classes]``."""
        return self.linear.logits(y, x)

    @property
    def data(self) -> Any:
        """The Trainer's data module; ``None`` without a Trainer, or where it has none."""
        return None if self._trainer is None else getattr(self._trainer, "datamodule", None)

    def setup(self, stage: str) -> None:
        """Take the sizes from the data, and refuse what would change the algorithm's step."""
        data = self.data
        if not self.is_built:
            self.build(self._find_sizes(data))
        if hasattr(data, "part"):
            self._check_sizes(self.linear.read_sizes(data))
            if stage == "fit" and data.batch_size is None:  # drawn batches give no certificate
                train, val = data.part("train"), data.part("val")
                self.problem = self.linear.add_constants(self.problem, train, val, self._sizes())
        super().setup(stage)

    def _sizes(self) -> dict[str, Any]:
        return {name: self.hparams.get(name) for name in self.linear.size_names}

    def _find_sizes(self, data: Any) -> dict[str, int]:
        """Return the sizes of the arguments, and of the data where these are missing."""
        sizes = self._sizes()
        if None in sizes.values():
            if not hasattr(data, "part"):
                lacking = ", ".join(name for name, value in sizes.items() if value is None)
                raise ConfigError(
                    f"{type(self).__name__} has no {lacking}, and there is no data module to take it from; give {lacking}, or "
                    "fit with datamodule=MNISTCleaningDataModule(...) or NewsgroupsDataModule(...)"
                )
            sizes = {name: sizes[name] or size for name, size in self.linear.read_sizes(data).items()}
        return {name: int(size) for name, size in sizes.items()}

    def _check_sizes(self, sizes: dict[str, int]) -> None:
        """Raise a ConfigError where the data do not fit: other features, or more examples or classes."""
        for name, size in sizes.items():
            own = int(self.hparams[name])
            if own != size if name == "features" else own < size:
                raise ConfigError(
                    f"{name} is {own}, but the data have {size}; leave {name} out, or use the data that the module was made for"
                )

    def problem_of(self, batch: Any) -> BilevelProblem:
        """Return it with batches of each term where the data module drew them, else with all the examples of both levels."""
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
        self.scores.update(stage, self.logits(self.y, x).float(), labels)

    def on_validation_epoch_end(self) -> None:
        self.log("val/calls", float(sum(self.counts.as_dict().values())))
        self._report("val")

    def on_test_epoch_end(self) -> None:
        self._report("test")

    def _report(self, stage: str) -> None:
        """Log what a stage has measured, and keep it."""
        values = {**self.scores.finish(stage), **self.linear.measure(self.x.cpu(), self.data)}
        for name, value in values.items():
            self.log(f"{stage}/{name}", value, prog_bar=name == "acc")
            self.results[f"{stage}/{name}"] = value

    def summary_facts(self, stage: Stage) -> Facts:
        """Return what a test has measured, and what training has cost."""
        return list_test_facts(self.results) if stage == "test" else super().summary_facts(stage)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if not self.is_built:  # without a Trainer
            held = checkpoint.get("hyper_parameters", {})
            sizes = {name: held.get(name, 0) for name in self.linear.size_names}
            check_sizes(sizes, count_elements(checkpoint), "the checkpoint's hyper_parameters")
            self.build(sizes)
        super().on_load_checkpoint(checkpoint)
