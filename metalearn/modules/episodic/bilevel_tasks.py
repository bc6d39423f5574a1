"""What the modules share whose tasks are bilevel problems: costs and residuals in the log and in checkpoints."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from metalearn.bilevel.adaptation import BilevelAdaptation, Report
from metalearn.bilevel.counts import OracleCounts
from metalearn.bilevel.solvers.indefinite import NormalCG
from metalearn.carried import read_entry
from metalearn.episode import Episode
from metalearn.errors import BilevelError
from metalearn.inner import Adaptation, MetaLoss
from metalearn.modules.episodic.base import MetaModule
from metalearn.modules.training.checkpoint import KEY

__all__ = ["BilevelTasks"]


class BilevelTasks(MetaModule):
    """A :class:`MetaModule` whose inner loop is a :class:`~metalearn.bilevel.adaptation.BilevelAdaptation`.

    Beside the log keys of every module: ``train/inner_residual`` and ``train/dual_residual``, means over tasks, and
    ``oracles/gc_f``, ``gc_g``, ``jvp``, ``hvp``: calls so far over all tasks and ranks.

    Attributes:
        counts: those calls.
    """

    counts: OracleCounts
    advice: str = "use more inner steps, or a larger penalty"

    def probed_adaptation(self) -> Adaptation:
        adaptation = self._adaptation
        assert isinstance(adaptation, BilevelAdaptation)
        # on noise, after two steps, curvature of any sign says nothing of the run
        linear = None if adaptation.linear is None else NormalCG(iterations=2)
        return replace(adaptation, linear=linear, report=Report())

    def meta_loss(self, episode: Episode, ways: int | None = None) -> MetaLoss:
        """See :meth:`MetaModule.meta_loss`.

        Raises:
            BilevelError: the linear solver met negative curvature, or its residual has grown.
        """
        adaptation = self._adaptation
        assert isinstance(adaptation, BilevelAdaptation)
        adaptation.report.clear()
        try:
            found = super().meta_loss(episode, ways)
        except BilevelError as error:
            raise BilevelError(f"the inner problem of a task cannot be solved: {error} ({self.advice})") from error
        self._tell(adaptation, len(episode.support.x))
        return found

    def _tell(self, adaptation: BilevelAdaptation, tasks: int) -> None:
        report = adaptation.report
        values = torch.tensor(list(report.counts.as_dict().values()), device=self.device)
        if self._trainer is not None:
            values = self.trainer.strategy.reduce(values, reduce_op="sum")
        self.counts += OracleCounts(*values.tolist())
        if self._trainer is None or not self.trainer.training:
            return
        for name, found in (("inner", report.inner), ("dual", report.dual)):
            if found:
                self.log(f"train/{name}_residual", torch.cat(found).mean(), batch_size=tasks, sync_dist=True)
        for name, value in self.counts.as_dict().items():
            self.log(f"oracles/{name}", float(value), batch_size=tasks)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint[KEY]["oracles"] = self.counts.as_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.counts = OracleCounts(**(read_entry(checkpoint).oracles or {}))
