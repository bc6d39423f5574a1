"""MAML whose inner loss is learned, and depends on the task."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import nn

from metalearn.checks import check_whole, quote_value
from metalearn.errors import ConfigError
from metalearn.inner import Learner, MemoryMode, NormPolicy, UpdateRule
from metalearn.inner.inner_loop import Compilation, ExecutionName, InnerLoop, optional, setting
from metalearn.inner.losses import LossFunction
from metalearn.inner.solvers import LearnedLossSteps
from metalearn.inner.step_sizes import InnerLR
from metalearn.inner.task_types import TaskType
from metalearn.modules.alfa import make_generated_steps
from metalearn.modules.episodic.base import MetaModule
from metalearn.modules.episodic.gradient_steps import make_gradient_steps
from metalearn.modules.episodic.scores import Metrics
from metalearn.modules.training.outer import Scheduler

__all__ = ["LearnedLossLoop", "MeTAL"]


@dataclass(frozen=True)
class LearnedLossLoop(InnerLoop):
    """The options of :class:`MeTAL`."""

    generates_steps: bool = setting(
        False,
        "generate step sizes and decays from the task as well, as :class:`ALFA` does. They start at ``inner_lr``, a number.",
    )

    outputs: int | None = setting(
        None,
        "how many outputs of the network the learned loss reads; ``None`` for those of its last linear layer.",
        optional(partial(check_whole, least=1)),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.generates_steps:
            return
        if not isinstance(self.inner_lr, (int, float)):
            raise ConfigError(
                f"inner_lr is {quote_value(self.inner_lr)} with generates_steps, but generated step sizes start at one number; "
                "use inner_lr=0.01, or generates_steps=False"
            )
        for name in ("inner_optimizer", "inner_weight_decay", "inner_clip_norm"):
            if getattr(self, name) != getattr(InnerLoop, name):
                raise ConfigError(
                    f"{name} is {quote_value(getattr(self, name))} with generates_steps, but generated steps have sizes and "
                    f"decays alone; leave {name} out, or use generates_steps=False"
                )


class MeTAL(MetaModule):
    """MAML with a learned loss, which a small network fits to the task (Baik et al. 2021).

    A step is ``w_{j+1} = w_j - inner_lr * grad (l_S + m_j)(w_j)``, with the support loss ``l_S``. The learned loss ``m_j`` is the
    mean over the support set of what an MLP makes of ``l_S``, the mean of each tensor of ``w_j``, and an example's outputs and
    target (one-hot for a label). A second MLP scales and shifts the first by ``l_S`` and those means. Each step has its own
    two. Their gradients are second derivatives, so there is no first-order form.

    The paper's learned loss has a second part, on the query inputs. It is left out here: a module adapts before it sees queries.
    The learned loss starts at 0, so that training starts as that of MAML. With ``generates_steps`` the steps are those of ALFA,
    which was best in the paper.

    Args:
        backbone: any network ``[n, ...] -> [n, ways]``. Its batch normalisation is that of one task, as ``norm`` says.

    Raises:
        ConfigError: an argument is out of range, or the outputs of the network cannot be counted.

    Example:
        >>> import torch
        >>> from metalearn import Batch, MLP, MeTAL
        >>> module = MeTAL(MLP(outputs=5, inputs=8), inner_steps=3, inner_lr=0.1)
        >>> adapted = module.adapt(Batch(torch.randn(10, 8), torch.arange(5).repeat(2)))
        >>> adapted(torch.randn(4, 8)).shape
        torch.Size([4, 5])
    """

    options_class = LearnedLossLoop

    def __init__(
        self,
        backbone: nn.Module,
        inner_steps: int = 5,
        inner_lr: InnerLR = 0.4,
        eval_inner_steps: int | None = None,
        loss: LossFunction = "cross_entropy",
        generates_steps: bool = False,
        outputs: int | None = None,
        inner_optimizer: str | UpdateRule = "sgd",
        execution: ExecutionName = "auto",
        memory: MemoryMode = "store",
        norm: NormPolicy = "transductive",
        initial_inner_lr: float = 0.1,
        outer_optimizer: OptimizerCallable = lambda params: torch.optim.Adam(params, lr=1e-3),
        outer_scheduler: Scheduler = None,
        inner_weight_decay: float = 0.0,
        inner_clip_norm: float | None = None,
        multi_step_loss: int | None = None,
        tasks_at_once: int | None = None,
        memory_limit: float | None = None,
        compile: Compilation = False,
        kernels: bool = True,
        metrics: Metrics = None,
        task: TaskType | None = None,
    ) -> None:
        super().__init__(
            backbone,
            LearnedLossLoop.of(locals()),
            solver=make_learned_loss,
            outer_optimizer=outer_optimizer,
            outer_scheduler=outer_scheduler,
            metrics=metrics,
        )


def make_learned_loss(options: InnerLoop, learner: Learner) -> LearnedLossSteps:
    """The solver of :class:`MeTAL`."""
    generates = isinstance(options, LearnedLossLoop) and options.generates_steps
    steps = make_generated_steps(options, learner) if generates else make_gradient_steps(options, learner)
    return LearnedLossSteps(options, steps, learner, getattr(options, "outputs", None))
