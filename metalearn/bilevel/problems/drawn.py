"""A stream of the batches that a loader has drawn for one outer step."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from metalearn.bilevel.streams import Draw
from metalearn.errors import BilevelError

__all__ = ["Drawn"]

Examples = tuple[Tensor, Tensor, Tensor]
"""``(index [n] int64, x [n, features], y [n] int64)``, such as :class:`metalearn.datamodules.Examples`."""


class Drawn:
    """A stream of the batches that a loader has drawn for one step, each used for one draw.

    The draws of a term take its batches in the order in which they first come; a draw that comes again, as in MRBO and
    VRBO at their second point, gets the same batch.

    Example:
        >>> import torch
        >>> from metalearn.bilevel import Draw, Drawn
        >>> two = torch.arange(8).reshape(2, 4), torch.rand(2, 4, 3), torch.zeros(2, 4)
        >>> stream = Drawn({"inner": two, "outer": two, "hessian": two, "jacobian": two})
        >>> index, x, y = stream(Draw(seed=0, step=0, term="hessian", number=0))
        >>> index
        tensor([0, 1, 2, 3])
    """

    def __init__(self, batches: Any) -> None:
        """Take the batches.

        Args:
            batches: for each term (attribute or key) ``(index, x, y)``, each with a leading axis of the batches; as
                :class:`metalearn.datamodules.TermBatches`.
        """
        self._batches = batches._asdict() if hasattr(batches, "_asdict") else dict(batches)
        self._places: dict[tuple[str, int, int], int] = {}

    def __call__(self, draw: Draw) -> Examples:
        batches, size = self._batches[draw.term], self.samples(draw)
        key = (draw.term, draw.step, draw.number)
        if key not in self._places:
            place = sum(other[0] == draw.term for other in self._places)
            if place >= len(batches[0]):
                raise BilevelError(
                    f"the estimator draws {place + 1} batches of the term {draw.term!r} in a step, but the data have drawn "
                    f"{len(batches[0])}; raise the data module's draws={{{draw.term!r}: ...}}"
                )
            self._places[key] = place
        index, x, y = (tensor[self._places[key], :size] for tensor in batches)
        return index, x, y

    def samples(self, draw: Draw) -> int:
        """Examples of the batch."""
        drawn = int(self._batches[draw.term][0].shape[1])
        return drawn if draw.size is None else min(draw.size, drawn)
