"""The network of a trained module, as the start of another: fine-tuning, and heads on features that are trained already."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from metalearn.carried import read_checkpoint
from metalearn.carried.files import is_extra_state
from metalearn.errors import CheckpointError, ConfigError
from metalearn.inner.parts import find_head

__all__ = ["lacks_statistics", "start_from"]

log = logging.getLogger("lightning.pytorch.shipping")  # below Lightning's, which shows what is said of a run

PLACE = "backbone."
"""How the names of a network's tensors begin in a checkpoint of a module."""
OF_STEPS = (".step_mean", ".step_var")
"""How the names of statistics of single inner steps end; older checkpoints have them among the network's."""
SHOWN = 3
"""Names of tensors that a message lists."""


def start_from(network: nn.Module, checkpoint: str | Path) -> None:
    """Give a network the weights that the network of a checkpoint has. Nothing in the file is run.

    The checkpoint may be of any algorithm: of ``Pooled`` or ``Baseline`` for a pretrained network, or of ``MAML``. The rest of it
    is left out: step sizes, statistics of inner steps, the optimiser. A head with another number of outputs is left out, too.

    Args:
        network: is changed; it has the layers of the checkpoint's.
        checkpoint: a file, or the name of a shipped one: ``metalearn list checkpoints`` shows these.

    Raises:
        CheckpointError: the file cannot be read, holds no network, or one of another architecture. The network is as it was then.

    Example:
        >>> from metalearn import Baseline, Conv4, start_from
        >>> network = Conv4(in_channels=1, ways=20, hidden=64, image_size=28, downsample="stride")
        >>> start_from(network, "maml_glyphs_5w1s")  # of 5 ways: the head stays
        >>> module = Baseline(network, norm="transductive")
    """
    state = read_checkpoint(checkpoint)["state_dict"]
    held = {
        name.removeprefix(PLACE): value
        for name, value in state.items()
        if name.startswith(PLACE) and not name.endswith(OF_STEPS) and not is_extra_state(name)
    }
    if not held:
        raise CheckpointError(
            f"checkpoint {checkpoint} holds no network: none of its tensors is called {PLACE}...; use that of a module with a "
            "backbone, such as MAML"
        )
    own = {name: value for name, value in network.state_dict().items() if not is_extra_state(name)}
    head = _find_other_head(network, own, held)
    _check(network, own, held, head, checkpoint)
    network.load_state_dict({name: value for name, value in held.items() if name not in head}, strict=False)
    note = f"; the head is left out, whose {head[0]} is {list(held[head[0]].shape)} there" if head else ""
    log.info("start_from %s: %d tensors of the network are read%s", checkpoint, len(held) - len(head), note)


def lacks_statistics(network: nn.Module) -> bool:
    """Whether a normalisation has seen no batch, so that its running statistics say nothing."""
    return any(
        isinstance(counter, Tensor) and int(counter) == 0 and isinstance(getattr(layer, "running_mean", None), Tensor)
        for layer in network.modules()
        for counter in [getattr(layer, "num_batches_tracked", None)]
    )


def _find_other_head(network: nn.Module, own: Mapping[str, Tensor], held: Mapping[str, Tensor]) -> list[str]:
    """The names of the head's tensors, if the checkpoint's have other shapes."""
    try:
        head = find_head(network)
    except ConfigError:
        return []
    names = [name for name in own.keys() & held.keys() if head and name.startswith(f"{head}.")]
    return sorted(names, reverse=True) if any(own[name].shape != held[name].shape for name in names) else []


def _check(
    network: nn.Module, own: Mapping[str, Tensor], held: Mapping[str, Tensor], head: Iterable[str], path: str | Path
) -> None:
    """Raise unless the tensors are those of this network, and finite."""
    other = f"checkpoint {path} holds another network than this {type(network).__name__}"
    missing, more = sorted(own.keys() - held.keys()), sorted(held.keys() - own.keys())
    if missing or more:
        parts = [(_list(missing), "missing in it"), (_list(more), "in it alone")]
        difference = ", and ".join(f"{names} {where}" for names, where in parts if names)
        raise CheckpointError(f"{other}: {difference}; build the network as the checkpoint's")
    for name in sorted(own.keys() - set(head)):
        mine, theirs = own[name], held[name]
        if mine.shape != theirs.shape or mine.is_floating_point() != theirs.is_floating_point():
            raise CheckpointError(
                f"{other}: {name} is {_spell(theirs)} there and "
                f"{_spell(mine)} here; build the network as the checkpoint's (hidden, image_size, in_channels)"
            )
        if theirs.is_floating_point() and not bool(torch.isfinite(theirs).all()):
            raise CheckpointError(
                f"checkpoint {path} has values in {name} that are not finite; use an earlier one of the run"
            )


def _list(names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(name[:80] for name in names[:SHOWN]) + more + (" are" if len(names) > 1 else " is")


def _spell(value: Tensor) -> str:
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
