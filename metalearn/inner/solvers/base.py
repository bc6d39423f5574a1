"""What every solver of a task's inner problem is."""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from metalearn.inner.adaptation import InnerMethod, Settings
from metalearn.inner.rules import Params

__all__ = ["Costs", "TaskSolver"]


class Costs(NamedTuple):
    """What the meta-gradient of one batch cost, and how well its systems were solved.

    Attributes:
        calls: gradients, Jacobian- and Hessian-vector products by kind, over all tasks.
        residuals: by what they are of, each ``[b]`` for some of the tasks.
    """

    calls: dict[str, int]
    residuals: dict[str, list[Tensor]]


class TaskSolver(nn.Module):
    """Solves the inner problem of a task, and owns whatever it learns for that.

    The tasks themselves are adapted by its :meth:`method`, which is frozen, so that it may run in threads, under
    ``torch.func.vmap`` and compiled. What the solver has learned reaches it as ``settings``.

    Attributes:
        comes_first: whether its parameters stand before the network's in a module, as they do in older checkpoints, whose
            optimisers know parameters by their place.

    Example:
        >>> from metalearn import MAML, MLP
        >>> from metalearn.inner import TaskSolver
        >>> module = MAML(MLP(), inner_lr="learn", loss="mse")
        >>> isinstance(module.solver, TaskSolver), len(module.solver.learned())
        (True, 1)
    """

    comes_first: ClassVar[bool] = False

    @abstractmethod
    def method(self) -> InnerMethod:
        """How a task is adapted."""

    def probed_method(self) -> InnerMethod:
        """What stands for :meth:`method` where noise shows which ways of running it are exact."""
        return self.method()

    def warn_of_steps(self, taken: int) -> str | None:
        """A line about evaluation with ``taken`` inner steps; ``None`` where nothing speaks against them."""
        return None

    @abstractmethod
    def settings(self, tensors: Params) -> Settings:
        """What the method takes besides the network's tensors, with its graph to the solver's parameters.

        Args:
            tensors: that the inner loop moves now, by name.
        """

    def follow(self, tensors: Mapping[str, Tensor]) -> None:
        """Take note of the tensors that may adapt, after layers were replaced; the outer optimiser is made afterwards."""
        return

    def learned(self) -> list[Tensor]:
        """The parameters that the meta-gradient reaches now."""
        return [value for value in self.parameters() if value.requires_grad]

    def watching(self) -> contextlib.AbstractContextManager[None]:
        """Within this context the solver takes note of what the meta-gradient of one batch costs."""
        return contextlib.nullcontext()

    def costs(self) -> Costs | None:
        """Of the batch that :meth:`watching` was last entered for; ``None`` from a solver that does not count."""
        return None
