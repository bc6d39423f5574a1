"""The gradient of a part of a meta-batch, recorded once as a graph of CUDA kernels and replayed from then on.

A step of many small kernels is bound by the calls that launch them. A recorded step is launched by one call. Its inputs are
copied to where the recording reads them, and its outputs are copied from where it writes them. Python is not run again, so
that a recording holds only as long as nothing has changed that Python would have looked at.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from metalearn.episode import Episode
from metalearn.inner.adaptation import Adaptation
from metalearn.inner.execution.cuda_graphs import CudaGraphs
from metalearn.inner.execution.differentiate import Part, differentiate
from metalearn.inner.execution.flat_part import FlatPart, explain, find_obstacle, list_places
from metalearn.inner.execution.recorder import Recorder, compare
from metalearn.inner.execution.schedule import Schedule
from metalearn.inner.grad_mode import evaluation_gradients
from metalearn.inner.rules import Params

__all__ = ["RecordedPart"]

MOST_RECORDINGS = 8
"""Shapes of a run that are recorded; others run as they are."""
MOST_MET = 256
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-2}
"""By which a first replay may differ from the step that it stands for, relative to its norm: some kernels add in any order."""


class _Recording:
    """A recorded step.

    Args:
        places: where what else it reads lies.
        inputs: where it reads them.
        outputs: where it writes.
        replay: computes the outputs.
    """

    def __init__(self, places: Any, inputs: list[Tensor], outputs: list[Tensor], replay: Callable[[], None]) -> None:
        self.places = places
        self._inputs, self._outputs, self._replay = inputs, outputs, replay

    def __call__(self, values: Sequence[Tensor]) -> list[Tensor]:
        """The outputs for these inputs, in memory of their own."""
        _copy_all(self._inputs, values)
        self._replay()
        fresh = [torch.empty_like(output) for output in self._outputs]
        _copy_all(fresh, self._outputs)
        return fresh


class RecordedPart(Recorder):
    """Stands in for :func:`metalearn.inner.execution.differentiate.differentiate`; the same arguments, the same result.

    A step runs as it is the first time that it is met, is recorded the second time, and is replayed from then on. The first
    replay is held against the step itself. Whatever stands against it is said in one line, and the step runs as it is.
    """

    def _begin(self) -> None:
        self._graphs = CudaGraphs()
        self._recordings: dict[Any, _Recording] = {}
        self._met: set[int] = set()

    def __call__(
        self,
        adaptation: Adaptation,
        params: Params,
        extra: Sequence[Tensor],
        episode: Episode,
        schedule: Schedule,
        queries: int | None = None,
    ) -> Part:
        if not self._may_record(adaptation, episode.support.x.device):
            return differentiate(adaptation, params, extra, episode, schedule, queries)
        part = FlatPart(adaptation, params, extra, episode, schedule, queries)
        places = list_places(adaptation, params)
        recording = self._recordings.get(part.key)
        if recording is not None and recording.places == places:
            with torch.no_grad():
                return part.join(recording(part.values))
        if not self._is_met_again(part.key, places):
            return differentiate(adaptation, params, extra, episode, schedule, queries)
        with evaluation_gradients(), torch.no_grad():
            outputs = self._record(part, places)
        return part.join(outputs)

    def _may_record(self, adaptation: Adaptation, device: torch.device) -> bool:
        """Whether nothing stands against recording a step; what does is said once."""
        if not self.works:
            return False
        obstacle = self._graphs.find_obstacle(device) or find_obstacle(adaptation)
        if obstacle is not None:
            self._tell_once(f"the step is not recorded, because {obstacle}; it runs as it is")
        return obstacle is None

    def _is_met_again(self, key: Any, places: Any) -> bool:
        """Whether a step was met before, and there is room for its recording."""
        met = hash((key, places))
        if met not in self._met:
            if len(self._met) >= MOST_MET:
                self._met.clear()
            self._met.add(met)
            return False
        # those of a network that has changed are never replayed again
        self._recordings = {other: recording for other, recording in self._recordings.items() if other[0] is key[0]}
        if key not in self._recordings and len(self._recordings) >= MOST_RECORDINGS:
            self._tell_once(
                f"{MOST_RECORDINGS} kinds of steps are recorded, of different shapes, say; others run as they are"
            )
            return False
        return True

    def _record(self, part: FlatPart, places: Any) -> list[Tensor]:
        """The outputs of the step itself, which is recorded meanwhile."""
        begun = time.perf_counter()
        device = part.values[0].device
        inputs = [torch.empty_like(value) for value in part.values]
        _copy_all(inputs, part.values)
        function = part.make_function()

        def run() -> Sequence[Tensor]:
            return function(*inputs)

        before = self._graphs.read_generator(device)
        expected = self._graphs.warm_up(device, run)
        after = self._graphs.read_generator(device)
        if not all(bool(value.isfinite().all()) for value in expected):
            return expected  # nothing can be compared
        try:
            recording = _Recording(places, inputs, *self._graphs.record(device, run))
            self._graphs.set_generator(device, before)
            replayed = recording(part.values)
        except Exception as error:  # whatever CUDA and torch raise: the step as it is does not need a recording
            # the end of a recording raises an error of its own over what broke it
            self._give_up(f"the step is not recorded, because {explain(error.__context__ or error)}; it runs as it is")
            return expected
        finally:
            self._graphs.set_generator(device, after)
        difference = _compare(replayed, expected)
        if not difference <= TOLERANCES[torch.float64 if expected[0].dtype == torch.float64 else torch.float32]:
            self._give_up(f"the recorded step is not used, because it differs from the step itself by {difference:.1g}")
            return expected
        self._recordings[part.key] = recording
        self._tell(
            f"{len(part.values[-1])} tasks of {list(part.values[-4].shape[1:])} recorded as one CUDA graph in "
            f"{time.perf_counter() - begun:.1f} s"
        )
        return expected


def _copy_all(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Copy tensors onto others, those of one type by one call."""
    by_type: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
    for target, source in zip(targets, sources, strict=True):
        pairs = by_type.setdefault(target.dtype, ([], []))
        pairs[0].append(target)
        pairs[1].append(source)
    for pair in by_type.values():
        torch._foreach_copy_(*pair)


def _compare(values: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """The largest difference of the loss, the logits, and the gradients together, since some of these vanish."""
    return max(compare(values[group], exact[group]) for group in (slice(0, 1), slice(1, 2), slice(2, None)))
