"""Any optimiser of ``torch.optim`` as the inner one, by way of higher's differentiable optimisers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metalearn.errors import ConfigError
from metalearn.inner.rules import Params, UpdateRule

__all__ = ["HigherRule"]


@dataclass(frozen=True)
class HigherRule(UpdateRule):
    """The differentiable form that ``higher`` (Grefenstette et al. 2019) has of a class of ``torch.optim``.

    Its state lives in higher's optimiser, one for every task: it runs sequentially, and keeps the graph of all steps. Where
    higher itself doubts a gradient, as that of RMSprop, it warns.

    Args:
        optimizer: the full name of the class, such as ``"torch.optim.Adagrad"``; its arguments are torch's defaults, but for
            the step size.

    Raises:
        ConfigError: there is no such class, higher has no form of it, or higher is not installed.

    Example:
        >>> from metalearn.compat.higher import HigherRule
        >>> HigherRule("torch.optim.Adagrad").describe()
        {'class_path': 'HigherRule', 'init_args': {'optimizer': 'torch.optim.Adagrad'}}
    """

    optimizer: str

    batches = False

    def __post_init__(self) -> None:
        kind = getattr(torch.optim, self.optimizer.removeprefix("torch.optim."), None)
        if not isinstance(kind, type) or not issubclass(kind, torch.optim.Optimizer):
            raise ConfigError(
                f"inner_optimizer is {self.optimizer!r}, but torch.optim has no such optimiser; use 'torch.optim.Adagrad'"
            )
        self.start({"probe": torch.zeros(1)})

    def with_decay(self, rate: float) -> UpdateRule:
        """Itself: the optimisers that higher knows add their decay to the gradient, but for one.

        Raises:
            ConfigError: it is AdamW.
        """
        if self.optimizer.endswith(".AdamW"):
            raise ConfigError(
                f"inner_weight_decay is {rate}, but the decay of {self.optimizer} is not part of the gradient; use "
                "inner_optimizer='adamw', which takes it"
            )
        return self

    def describe(self) -> dict[str, Any]:
        return {"class_path": "HigherRule", "init_args": {"optimizer": self.optimizer}}

    def start(self, params: Params) -> Any:
        try:
            import higher
        except ImportError as error:
            raise ConfigError(
                f"inner_optimizer is {self.optimizer!r}, which needs the package higher; "
                "pip install 'metalearn-lightning[higher]', or use sgd, momentum, nesterov, adam or adamw"
            ) from error
        kind = getattr(torch.optim, self.optimizer.removeprefix("torch.optim."))
        own = [value.detach().clone().requires_grad_() for value in params.values()]
        try:
            return higher.get_diff_optim(kind([{"params": [value]} for value in own], lr=1.0), own)
        except (ValueError, TypeError) as error:
            raise ConfigError(
                f"inner_optimizer is {self.optimizer!r}, but higher has no differentiable form of it ({error}); use "
                "'torch.optim.Adagrad', or sgd, momentum, nesterov, adam or adamw"
            ) from error

    def step(
        self, params: Params, grads: Params, state: Any, step_sizes: Mapping[str, Tensor | float]
    ) -> tuple[Params, Any]:
        for group, name in zip(state.param_groups, params, strict=True):
            group["lr"] = step_sizes[name]
        known = list(grads.values())
        # higher takes the gradient of a loss itself: this one is handed over in the place of ours
        stand_in = torch.stack([value.sum() for value in params.values()]).sum()
        updated = state.step(stand_in, params=list(params.values()), grad_callback=lambda _: known)
        return dict(zip(params, updated, strict=True)), state
