"""A network for more classes than it was trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from metalearn.errors import ConfigError
from metalearn.inner.learner import Learner
from metalearn.inner.rules import Params

__all__ = ["check_widened", "widen_head"]


def widen_head(
    learner: Learner, outputs: int, ways: int, params: Params, sizes: Sequence[Mapping[str, Tensor | float]]
) -> tuple[Params, list[dict[str, Tensor | float]]]:
    """Give the head one row for each of ``ways`` classes, all alike: the mean of the trained rows.

    Labels are numbered at random in every task, so the trained rows stand for no classes and their mean loses nothing that could
    be known of a new task (Ye and Chao 2022, UNICORN-MAML, train such a head from the start).

    Args:
        learner: its backbone's last linear layer with ``outputs`` outputs is the head.
        outputs: how many classes the network tells apart.
        ways: how many it shall.
        params: tensors by their names in the backbone.
        sizes: for each step, the step size of each tensor; one per element is widened as well.

    Returns:
        both, with those of the head widened.

    Raises:
        ConfigError: there is no such layer.
    """
    heads = [
        (name, layer)
        for name, layer in learner.backbone.named_modules()
        if type(layer) is nn.Linear and layer.out_features == outputs
    ]
    if not heads:
        raise ConfigError(
            f"the task has {ways} classes, but {type(learner.backbone).__name__} tells {outputs} apart and has "
            f"no torch.nn.Linear with {outputs} outputs that could be widened; use at most {outputs} classes, or train with more"
        )
    name, layer = heads[-1]
    _check_head(learner, name, layer, params, ways)
    shapes = {f"{name}.{part}": value.shape for part, value in layer.named_parameters(recurse=False)}

    rows = {key: _widen(value, ways) if key in shapes else value for key, value in params.items()}
    widened = [
        {
            key: _widen(size, ways) if isinstance(size, Tensor) and size.shape == shapes.get(key) else size
            for key, size in step.items()
        }
        for step in sizes
    ]
    return rows, widened


def check_widened(learner: Learner, params: Params, support: Tensor, ways: int) -> None:
    """Raise unless the widened network runs and has ``ways`` outputs.

    Args:
        learner: in its running modes.
        params: with a widened head.
        support: the encoded support set.
        ways: how many outputs there should be.

    Raises:
        ConfigError: it does not, for what follows the head is made for as many outputs as before.
    """
    try:
        shape: list[int | str] = [*learner.support_logits(params, support).shape]
    except RuntimeError as error:
        shape = [str(error).strip().splitlines()[0][:120]]
    if not shape or shape[-1] != ways:
        raise ConfigError(
            f"the task has {ways} classes, but {type(learner.backbone).__name__} does not give as many outputs when its head is "
            f"widened ({', '.join(map(str, shape))}), because of what follows the head; train with {ways} classes"
        )


def _check_head(learner: Learner, name: str, layer: nn.Linear, params: Params, ways: int) -> None:
    """Raise unless the layer is a plain one, whose tensors are its own and adapt."""
    network = learner.backbone
    own = {id(value) for value in layer.parameters()}
    shared = any(
        id(value) in own
        for other in network.modules()
        if other is not layer
        for value in other.parameters(recurse=False)
    )
    parts = [part for part, _ in layer.named_parameters(recurse=False)]
    why = "shares a tensor with another layer" if shared else None
    if why is None and not {"weight", "bias"} >= set(parts):
        why = f"has {', '.join(parts)} in the place of a weight"
    if why is None and any(f"{name}.{part}" not in params for part in parts):
        why = "has a frozen tensor"
    if why is None and not learner.adapts(f"{name}.weight"):
        why = "does not adapt, so that its rows would stay alike"
    if why is not None:
        raise ConfigError(
            f"the task has {ways} classes, and the head {name!r} would have to be widened from {layer.out_features}, but it "
            f"{why}; use at most {layer.out_features} classes, or train with {ways}"
        )


def _widen(value: Tensor, ways: int) -> Tensor:
    return value.mean(0, keepdim=True).expand(ways, *value.shape[1:]).clone()
