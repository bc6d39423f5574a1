"""What CUDA does to record a computation once and to replay it with one call: torch's CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["CudaGraphs"]

Run = Callable[[], Sequence[Tensor]]


class CudaGraphs:
    """Records computations on GPUs.

    All graphs of a device share one pool of memory. So only what they give may be kept, and it must be copied before another
    graph is replayed. Random numbers come from the device's own generator, which is registered with every graph.
    """

    def __init__(self) -> None:
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        self._pools: dict[torch.device, Any] = {}

    def find_obstacle(self, device: torch.device) -> str | None:
        """Why nothing can be recorded there; ``None`` if it can."""
        return None if device.type == "cuda" else f"its tensors are on the {device.type}, which has no CUDA graphs"

    def read_generator(self, device: torch.device) -> Tensor:
        """The state of the device's generator."""
        return torch.cuda.get_rng_state(device)

    def set_generator(self, device: torch.device, state: Tensor) -> None:
        """Let the device's generator go on from a state."""
        torch.cuda.set_rng_state(state, device)

    def warm_up(self, device: torch.device, run: Run) -> list[Tensor]:
        """Run a computation as it is on the stream that recordings are made on, so that libraries are ready for it."""
        with torch.cuda.device(device):
            stream, current = self._stream(device), torch.cuda.current_stream()
            stream.wait_stream(current)
            with torch.cuda.stream(stream):
                outputs = run()
            current.wait_stream(stream)
            return [output.clone() for output in outputs]  # whose memory is the current stream's

    def record(self, device: torch.device, run: Run) -> tuple[list[Tensor], Callable[[], None]]:
        """Record a computation, which is not carried out.

        Returns:
            its outputs, which hold nothing yet, and what computes them anew from the inputs' memory as it is then.
        """
        graph = torch.cuda.CUDAGraph()
        generator = torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]
        before = generator.clone_state()
        with torch.cuda.device(device):
            try:
                # another thread, such as one that pins memory, may go on meanwhile
                with torch.cuda.graph(
                    graph, self._pools.get(device), self._stream(device), capture_error_mode="thread_local"
                ):
                    outputs = list(run())
            except BaseException:
                generator.graphsafe_set_state(before)  # else it would still think that it is being recorded
                raise
            self._pools.setdefault(device, graph.pool())
        return outputs, graph.replay

    def _stream(self, device: torch.device) -> torch.cuda.Stream:
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)
        return self._streams[device]
