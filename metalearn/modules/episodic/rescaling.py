"""Other inner step sizes for a module that is there, everywhere that says them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import yaml

from metalearn.errors import ConfigError
from metalearn.inner.step_sizes import InnerStepSizes
from metalearn.modules.episodic.runner import InnerRunner

__all__ = ["rescale_steps"]


def rescale_steps(module: Any, runner: InnerRunner, factor: float) -> None:
    """Multiply the inner step sizes of a module, its options, its hyper-parameters and its run's configuration.

    Raises:
        ConfigError: the solver has no step sizes, or the factor is out of range.
    """
    sizes: InnerStepSizes | None = module.step_sizes
    if sizes is None:
        raise ConfigError(
            f"{runner.name} has no step sizes of its own, but they are to be multiplied by {factor:g}; use a module that takes "
            "steps of given or learned sizes, such as MAML"
        )
    sizes.rescale(factor)
    options = runner.options
    changes: dict[str, Any] = {"inner_lr": sizes.inner_lr}
    if isinstance(sizes.inner_lr, str):
        changes = {"initial_inner_lr": options.initial_inner_lr * factor}
    runner.options = replace(options, **changes)
    module.hparams.update({name: value for name, value in changes.items() if name in module.hparams})
    if module.run_config is not None:
        config = yaml.safe_load(module.run_config)
        config["model"].setdefault("init_args", {}).update(changes)
        module.run_config = yaml.safe_dump(config)
