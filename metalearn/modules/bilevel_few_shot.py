"""Few-shot learning as a bilevel problem: a shared body, and one head for each task."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from metalearn.bilevel.adaptation import ImplicitMethod, ImplicitSolver, half_squared_error
from metalearn.checks import check_choice, check_number
from metalearn.errors import ConfigError
from metalearn.inner import MEMORY_MODES, HeadLearner, Learner, MemoryMode, NormPolicy
from metalearn.inner.inner_loop import ExecutionName, InnerLoop, check_steps, setting
from metalearn.inner.losses import LossFunction
from metalearn.inner.parts import HEAD_TEXT, choose_head
from metalearn.inner.support_gradient import SupportGradient
from metalearn.inner.task_types import TaskType
from metalearn.modules.episodic.base import MetaModule
from metalearn.modules.episodic.scores import Metrics
from metalearn.modules.problem_based.names import LINEAR_SOLVERS, LinearSolverName, make_inner_solver
from metalearn.modules.training.outer import Scheduler

__all__ = ["BilevelFewShot", "HeadProblem"]

HeadLoss = Literal["softmax", "ridge"]
Estimator = Literal["aid", "itd"]


@dataclass(frozen=True)
class HeadProblem(InnerLoop):
    """The options of :class:`BilevelFewShot`."""

    inner_steps: int = setting(20, "how many inner steps a task takes in training.", check_steps)
    inner_lr: float = setting(
        0.1,
        "the size of these steps, below 2 over the curvature.",
        partial(check_number, remedy="use 0.1", above=0),
    )
    memory: MemoryMode = setting(
        "store",
        'what ITD keeps of the inner steps. ``"store"`` keeps their graph, and ``"remat"`` the iterates. ``"mixed"`` keeps '
        "least, by forward-over-reverse products.",
        partial(check_choice, choices=MEMORY_MODES),
    )
    head: str = setting("head", HEAD_TEXT)
    head_loss: HeadLoss = setting(
        "softmax",
        'the loss of the support set. ``"softmax"`` is the loss of the query set. ``"ridge"`` is half the squared error to the '
        "one-hot labels, where a learned scale multiplies the outputs.",
        partial(check_choice, choices=get_args(HeadLoss)),
    )
    l2: float = setting(
        0.01,
        "the weight of ``|w|^2 / 2``, which makes the inner problem strongly convex.",
        partial(check_number, remedy="use 0.01", above=0),
    )
    estimator: Estimator = setting(
        "aid",
        'how the hypergradient is computed. ``"aid"`` is the implicit derivative, ``"itd"`` the one through the inner steps.',
        partial(check_choice, choices=get_args(Estimator)),
    )
    inner_momentum: float = setting(
        0.0,
        "the momentum of Nesterov's method; 0 for gradient descent.",
        partial(check_number, remedy="use 0.9, or 0.0 for gradient descent", least=0, below=1),
    )
    linear_solver: LinearSolverName = setting(
        "cg",
        'how ``H v = grad_w l_Q`` is solved. ``"fixed_point"`` and ``"neumann"`` take steps of ``inner_lr``.',
        partial(check_choice, choices=get_args(LinearSolverName)),
    )
    linear_steps: int = setting(10, "how many iterations the linear solver takes.", check_steps)
    initial_scale: float = setting(
        5.0, "the value at which the scale of a ridge head starts.", partial(check_number, remedy="use 5.0", above=0)
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.estimator == "aid" and self.memory != "store":
            raise ConfigError(
                f"memory is {self.memory!r} with estimator='aid', but AID keeps no inner step; use memory='store', or "
                "estimator='itd'"
            )


class BilevelFewShot(MetaModule):
    """Few-shot learning as a bilevel problem: a shared body, and one head for each task (arXiv 2108.00330, section 2.5).

    Each task solves ``y* = argmin_w l_S(w, z_S) + l2 |w|^2 / 2`` for its own head ``w`` on the features ``z = body(images)``.
    The body's hypergradient is the derivative of ``l_Q(y*, z_Q)`` through ``z_Q`` plus, by way of ``y*``, through ``z_S``:
    ``-J v`` with ``H v = grad_w l_Q`` (``estimator="aid"``) or through the inner steps (``"itd"``). Features are computed once
    for all tasks, whose heads are one batched problem. The head is not meta-learned: it starts at 0.

    Logs the oracle calls and residuals that :class:`IMAML` logs.

    Args:
        backbone: any network ``[n, ...] -> [n, ways]`` with a head. The head is set to 0, and stays there.

    Raises:
        ConfigError: an argument is out of range, or the backbone has no such head.

    Example:
        >>> import torch
        >>> from metalearn import MLP, Batch, BilevelFewShot
        >>> module = BilevelFewShot(MLP(outputs=5, inputs=8), l2=0.1)
        >>> adapted = module.adapt(Batch(torch.randn(10, 8), torch.arange(5).repeat(2)))
        >>> adapted(torch.randn(4, 8)).shape
        torch.Size([4, 5])
    """

    options_class = HeadProblem

    def __init__(
        self,
        backbone: nn.Module,
        head: str = "head",
        head_loss: HeadLoss = "softmax",
        l2: float = 0.01,
        estimator: Estimator = "aid",
        inner_steps: int = 20,
        inner_lr: float = 0.1,
        inner_momentum: float = 0.0,
        linear_solver: LinearSolverName = "cg",
        linear_steps: int = 10,
        initial_scale: float = 5.0,
        eval_inner_steps: int | None = None,
        loss: LossFunction = "cross_entropy",
        execution: ExecutionName = "auto",
        memory: MemoryMode = "store",
        norm: NormPolicy = "transductive",
        outer_optimizer: OptimizerCallable = lambda params: torch.optim.Adam(params, lr=1e-3),
        outer_scheduler: Scheduler = None,
        support_chunk: int | None = None,
        tasks_at_once: int | None = None,
        memory_limit: float | None = None,
        kernels: bool = True,
        metrics: Metrics = None,
        task: TaskType | None = None,
    ) -> None:
        options = HeadProblem.of(locals())
        super().__init__(
            backbone,
            options,
            learner=partial(HeadLearner, head=head, needed_by="head_loss='ridge'" if head_loss == "ridge" else None),
            solver=make_head_solver,
            outer_optimizer=outer_optimizer,
            outer_scheduler=outer_scheduler,
            metrics=metrics,
        )
        self.head_loss, self.l2, self.estimator = head_loss, l2, estimator
        name = choose_head(self.backbone, head)
        layer = self.backbone.get_submodule(name)
        check_zeroed(self.backbone, layer, name)
        with torch.no_grad():
            for value in layer.parameters():
                value.zero_()


def make_head_solver(options: InnerLoop, learner: Learner) -> ImplicitSolver:
    """The solver of :class:`BilevelFewShot`."""
    assert isinstance(options, HeadProblem)
    squares = options.head_loss == "ridge"
    make_linear = LINEAR_SOLVERS[options.linear_solver]
    method = ImplicitMethod(
        make_inner_solver(options.inner_lr, options.inner_momentum, options.inner_steps),
        penalty=options.l2,
        linear=make_linear(options.linear_steps, options.inner_lr) if options.estimator == "aid" else None,
        gradient=SupportGradient(options.memory, options.support_chunk),
        inner_loss=half_squared_error if squares else None,
    )
    advice = f"l2 is {options.l2:g}: raise it, or lower inner_lr={options.inner_lr:g}"
    return ImplicitSolver(method, advice, options.initial_scale if squares else None)


def check_zeroed(network: nn.Module, layer: nn.Module, name: str) -> None:
    """Raise unless all tensors of the head may be 0."""
    own, inside = {id(value) for value in layer.parameters()}, set(layer.modules())
    outside = (value for other in network.modules() if other not in inside for value in other.parameters(recurse=False))
    if any(id(value) in own for value in outside):
        why = "it shares a tensor with another layer"
    elif any(is_parametrized(part) or hasattr(part, "weight_g") for part in inside):
        why = "its weight is computed from others"
    else:
        return
    raise ConfigError(
        f"BilevelFewShot solves for the head {name!r} from 0, but {why}; give the network a head of its own, or use ANIL"
    )
