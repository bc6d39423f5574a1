"""What meta-gradients cost, in the log of a module whose tasks are bilevel problems."""

from __future__ import annotations

import lightning as L
import torch

from metalearn.bilevel.counts import OracleCounts
from metalearn.inner.solvers import Costs

__all__ = ["CostLog"]


class CostLog:
    """Counts oracle calls, and logs them.

    Beside the log keys of every module: ``train/inner_residual`` and ``train/dual_residual``, means over tasks, and
    ``oracles/gc_f``, ``gc_g``, ``jvp``, ``hvp``: calls so far over all tasks and ranks.

    Attributes:
        counts: those calls.

    Args:
        counts: where they start; ``None`` for none.
    """

    def __init__(self, counts: OracleCounts | None = None) -> None:
        self.counts = counts or OracleCounts()

    def add(self, module: L.LightningModule, costs: Costs, tasks: int) -> None:
        """Add those of a batch of so many tasks."""
        values = torch.tensor(list(costs.calls.values()), device=module.device)
        if module._trainer is not None:
            values = module.trainer.strategy.reduce(values, reduce_op="sum")
        self.counts += OracleCounts(**dict(zip(costs.calls, values.tolist(), strict=True)))
        if module._trainer is None or not module.trainer.training:
            return
        for name, residuals in costs.residuals.items():
            if residuals:
                mean = torch.cat(residuals).mean()
                module.log(f"train/{name}_residual", mean, batch_size=tasks, sync_dist=True)
        for name, value in self.counts.as_dict().items():
            module.log(f"oracles/{name}", float(value), batch_size=tasks)
