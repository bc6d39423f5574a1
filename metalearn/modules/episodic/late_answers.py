"""Numbers of a device that Python reads once the device has them, and updates that the device itself leaves out.

A device works through what it was told while Python tells it more. A question to its numbers makes Python wait until all is
done, and then the device wait for Python. So a number is asked for a step later.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["LateNumber", "UpdateGuard", "answers_at_once"]


def answers_at_once(device: torch.device) -> bool:
    """Whether a question to the numbers of a device costs nothing: of a CPU, which is done before Python goes on."""
    return device.type == "cpu"


class LateNumber:
    """A scalar that is on its way to the host.

    Args:
        value: a scalar of any device.
    """

    def __init__(self, value: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        self._value = value.detach()
        if value.is_cuda:
            self._value = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
            self._value.copy_(value.detach(), non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(value.device))

    def read(self) -> float:
        """The number, once it is there."""
        if self._event is not None:
            self._event.synchronize()
        return float(self._value)


class UpdateGuard:
    """Lets the device itself leave out an update that is not sound: gradients become 0 before it, weights are put back after."""

    def __init__(self) -> None:
        self._kept: tuple[Tensor, list[Tensor], list[Tensor]] | None = None
        self._watched: weakref.WeakSet[torch.optim.Optimizer] = weakref.WeakSet()

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]

    def watches(self, optimizer: Any) -> bool:
        """Whether the updates of an optimiser can be guarded."""
        if not isinstance(optimizer, torch.optim.Optimizer):
            return False
        return all(grad.layout == torch.strided for _, grad in _list_updated(optimizer))

    @torch.no_grad()
    def begin(self, optimizer: torch.optim.Optimizer, sound: Tensor) -> None:
        """Guard the update that follows.

        Args:
            optimizer: is about to make it.
            sound: a boolean on the device, whether it may be made.
        """
        if optimizer not in self._watched:
            optimizer.register_step_post_hook(self._finish)
            self._watched.add(optimizer)
        pairs = _list_updated(optimizer)
        if not pairs:
            return
        weights, grads = [value for value, _ in pairs], [grad for _, grad in pairs]
        if self._kept is None:  # else this optimiser asks for several gradients before it steps
            self._kept = sound, weights, [value.clone() for value in weights]
        else:
            self._kept = self._kept[0] & sound, *self._kept[1:]
        _choose(sound, grads, None)

    @torch.no_grad()
    def _finish(self, *_: Any) -> None:
        """Put weights back if the update was not sound."""
        if self._kept is not None:
            _choose(*self._kept)
            self._kept = None


def _list_updated(optimizer: torch.optim.Optimizer) -> list[tuple[Tensor, Tensor]]:
    """The parameters that an optimiser would move now, with their gradients."""
    values = (value for group in optimizer.param_groups for value in group["params"])
    return [(value.detach(), value.grad) for value in values if value.grad is not None]


def _choose(sound: Tensor, tensors: Sequence[Tensor], others: Sequence[Tensor] | None) -> None:
    """Overwrite tensors by others, or by 0, unless all is sound; those of a type and device in a few calls."""
    groups: dict[tuple[torch.dtype, torch.device], list[int]] = {}
    for index, tensor in enumerate(tensors):
        groups.setdefault((tensor.dtype, tensor.device), []).append(index)
    for (_, device), places in groups.items():
        chosen = [tensors[place] for place in places]
        flat = torch.cat([tensor.reshape(-1) for tensor in chosen])
        other = flat.new_zeros(()) if others is None else torch.cat([others[place].reshape(-1) for place in places])
        kept = torch.where(sound.to(device), flat, other).split([tensor.numel() for tensor in chosen])
        torch._foreach_copy_(chosen, [part.view_as(tensor) for part, tensor in zip(kept, chosen, strict=True)])
