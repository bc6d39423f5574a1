"""The outer optimiser of a module, and its schedule."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from lightning.pytorch.utilities import rank_zero_info
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from metalearn.errors import ConfigError
from metalearn.inner.solvers import TaskSolver
from metalearn.modules.training.outer import NEVER, make_optimizer, read_schedule

__all__ = ["OuterLoop", "list_trained", "register_parts"]


class OuterLoop:
    """Makes and steps them. The module says what makes them, by ``outer_optimizer``, ``outer_scheduler``, ``learning_rate``."""

    def __init__(self) -> None:
        self._end: float | None = None

    def start(self) -> None:
        """Forget where the last run ended."""
        self._end = None

    def configure(self, module: Any) -> Any:
        """The optimiser over all parameters that are trainable now, and its schedule, as Lightning takes them."""
        trainable: list[Any] = list(list_trained(module).values())
        if not trainable:
            rank_zero_info(
                f"{type(module).__name__}: no parameter is trainable, so nothing is trained until a callback unfreezes some"
            )
            trainable = [{"params": []}]
        optimizer = make_optimizer(module.outer_optimizer, iter(trainable), module.learning_rate)
        if module.outer_scheduler is None:
            return optimizer
        if module.outer_scheduler == "cosine":
            scheduler: Any = LambdaLR(optimizer, partial(self.anneal, module))
        else:
            scheduler = module.outer_scheduler(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": read_schedule(scheduler, optimizer, module._trainer)}

    def anneal(self, module: Any, step: int) -> float:
        """The share of the learning rate at an outer step, annealed to 0 at the end of the run (Loshchilov and Hutter 2017).

        The end is asked for only once training runs: ``estimated_stepping_batches`` builds the training loader, and a loader
        that is built before the loops are restored never gets its position back.
        """
        if step == 0:
            return 1.0
        if self._end is None:
            self._end = module.trainer.estimated_stepping_batches
        if not math.isfinite(self._end):
            raise ConfigError(
                "outer_scheduler is 'cosine', but the run has no end to anneal to; set trainer.max_steps or max_epochs"
            )
        return 0.5 * (1.0 + math.cos(math.pi * min(step / self._end, 1.0)))

    def step_after_validation(self, module: Any) -> None:
        """Step what watches a validation metric, where Lightning would wait for the end of the epoch."""
        trainer = module.trainer
        for config in trainer.lr_scheduler_configs:
            if config.frequency == NEVER and config.monitor is not None:
                metrics = trainer.callback_metrics
                if config.monitor not in metrics:
                    raise ConfigError(
                        f"outer_scheduler watches {config.monitor!r}, but there are {', '.join(sorted(metrics)) or 'none'}; "
                        "use one of these as monitor"
                    )
                module.lr_scheduler_step(config.scheduler, metrics[config.monitor])


def list_trained(module: Any) -> dict[str, nn.Parameter]:
    """The parameters of a module that are trainable now and that its learner trains, by name."""
    learner, beginning = module.adaptation.learner, "backbone."
    return {
        name: value
        for name, value in module.named_parameters()
        if value.requires_grad and (not name.startswith(beginning) or learner.trains(name.removeprefix(beginning)))
    }


def register_parts(
    module: Any,
    backbone: nn.Module,
    statistics: nn.Module | None,
    loss: Any,
    solver: TaskSolver,
    adapter: nn.Module | None,
) -> None:
    """Own what is moved, cast, trained and saved, in the order in which optimisers of older checkpoints know it."""
    if solver.comes_first:
        module.solver = solver
    module.backbone = backbone
    module.norm_statistics = statistics
    if isinstance(loss, nn.Module):
        module.loss = loss
    module.solver = solver
    module.adapter = adapter
