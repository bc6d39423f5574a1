"""Reptile: the initialisation follows the adapted weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import nn

from metalearn.episode import Batch, Episode
from metalearn.errors import ConfigError
from metalearn.inner import Learner, MetaLoss, NormPolicy, UpdateRule
from metalearn.inner.inner_loop import Compilation, ExecutionName, InnerLoop, setting
from metalearn.inner.losses import LossFunction
from metalearn.inner.solvers import ReptileSolver
from metalearn.inner.step_sizes import REMEDY, check_inner_lr
from metalearn.inner.task_types import TaskType
from metalearn.modules.episodic.base import MetaModule
from metalearn.modules.episodic.gradient_steps import make_gradient_steps
from metalearn.modules.episodic.scores import Metrics
from metalearn.modules.training.outer import Scheduler

__all__ = ["Reptile", "ReptileLoop"]

FixedLR = float | list[float] | dict[str, float]


def check_fixed(name: str, value: object) -> None:
    """Raise unless ``value`` says step sizes that are not learned."""
    if isinstance(value, str):
        raise ConfigError(
            f"{name} is {value!r}, but Reptile has no gradient by which step sizes could be learned; {REMEDY}, or use MAML"
        )
    check_inner_lr(name, value)


@dataclass(frozen=True)
class ReptileLoop(InnerLoop):
    """The options of :class:`Reptile`."""

    inner_lr: FixedLR = setting(
        0.4,
        "the step size, a number > 0. A list has one for each step, a mapping one for each beginning of a tensor's name.",
        check_fixed,
    )
    first_order: bool = setting(True, "Reptile takes no second derivative.")
    joins_queries: bool = setting(
        True,
        "adapt to support and query sets together in training, as the paper does; ``False`` for the support set alone. "
        "Evaluation adapts to the support set.",
    )


class Reptile(MetaModule):
    """Reptile: move the initial weights towards those that tasks adapt to (Nichol et al. 2018).

    With ``w_{j+1} = w_j - inner_lr * grad l(w_j)``, the gradient that the outer optimiser gets is ``w - w_N``, the mean over
    tasks. ``torch.optim.SGD`` of size ``e`` makes ``w + e * (w_N - w)`` of it, the paper's batched version. Inner steps take
    all examples of a task at once, where the paper draws small batches of them.

    ``train/loss`` is the loss of the query set after the inner steps. Where these have seen the query set too, it says how well
    it is fitted.

    Args:
        backbone: any network ``[n, ...] -> [n, ways]``. Its batch normalisation is that of one task, as ``norm`` says.

    Raises:
        ConfigError: an argument is out of range, or the loss would have to be trained.

    Example:
        >>> import torch
        >>> from metalearn import Batch, MLP, Reptile
        >>> module = Reptile(MLP(outputs=5, inputs=8), inner_steps=5, inner_lr=0.1)
        >>> adapted = module.adapt(Batch(torch.randn(10, 8), torch.arange(5).repeat(2)))
        >>> adapted(torch.randn(4, 8)).shape
        torch.Size([4, 5])
    """

    options_class = ReptileLoop

    def __init__(
        self,
        backbone: nn.Module,
        inner_steps: int = 5,
        inner_lr: FixedLR = 0.4,
        joins_queries: bool = True,
        eval_inner_steps: int | None = None,
        loss: LossFunction = "cross_entropy",
        inner_optimizer: str | UpdateRule = "sgd",
        execution: ExecutionName = "auto",
        norm: NormPolicy = "transductive",
        outer_optimizer: OptimizerCallable = lambda params: torch.optim.Adam(params, lr=1e-3),
        outer_scheduler: Scheduler = None,
        inner_weight_decay: float = 0.0,
        inner_clip_norm: float | None = None,
        support_chunk: int | None = None,
        tasks_at_once: int | None = None,
        memory_limit: float | None = None,
        compile: Compilation = False,
        kernels: bool = True,
        metrics: Metrics = None,
        task: TaskType | None = None,
    ) -> None:
        if isinstance(loss, nn.Module) and any(value.requires_grad for value in loss.parameters()):
            raise ConfigError(
                f"loss is a {type(loss).__name__} with parameters, but Reptile has no gradient to train them by; use "
                "loss.requires_grad_(False), or MAML"
            )
        super().__init__(
            backbone,
            ReptileLoop.of(locals()),
            solver=make_reptile_solver,
            outer_optimizer=outer_optimizer,
            outer_scheduler=outer_scheduler,
            metrics=metrics,
        )

    def meta_loss(self, episode: Episode, ways: int | None = None) -> MetaLoss:
        """The mean query loss after adaptation, whose gradient by the weights is the mean of ``w - w_N``."""
        support, query = episode
        options = self.options
        if isinstance(options, ReptileLoop) and options.joins_queries:
            support = Batch(*(torch.cat(parts, 1) for parts in zip(support, query, strict=True)))
        return super().meta_loss(Episode(support, query), ways)


def make_reptile_solver(options: InnerLoop, learner: Learner) -> ReptileSolver:
    """The solver of :class:`Reptile`."""
    return ReptileSolver(make_gradient_steps(options, learner))
