"""The calls of CUDA's graphs in their order, with a stand-in for ``torch.cuda``: no line of them is first run on a GPU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from metalearn.inner.execution import cuda_graphs
from metalearn.inner.execution.cuda_graphs import CudaGraphs
from metalearn.inner.generators import read_generators

GPU = torch.device("cuda", 0)


class Stream:
    """Notes who waits for whom."""

    def __init__(self, name: Any = "side") -> None:
        self.name = name

    def wait_stream(self, other: Stream) -> None:
        CALLS.append(f"{self.name} waits for {other.name}")


class Graph:
    def pool(self) -> str:
        return "pool"

    def replay(self) -> None:
        CALLS.append("replay")


class Generator:
    def clone_state(self) -> str:
        return "state"

    def graphsafe_set_state(self, state: str) -> None:
        CALLS.append(f"back to {state}")


class Cuda:
    """What of ``torch.cuda`` is used."""

    CUDAGraph = Graph
    default_generators = (Generator(),)

    @staticmethod
    def Stream(device: torch.device) -> Stream:
        return Stream()

    @staticmethod
    def current_stream() -> Stream:
        return Stream("current")

    @staticmethod
    def current_device() -> int:
        return 0

    @staticmethod
    def device(device: torch.device) -> Any:
        return contextlib.nullcontext()

    @staticmethod
    def stream(stream: Stream) -> Any:
        return contextlib.nullcontext()

    @staticmethod
    @contextlib.contextmanager
    def graph(graph: Graph, pool: Any, stream: Stream, capture_error_mode: str) -> Iterator[None]:
        CALLS.append(f"begin {pool} {stream.name} {capture_error_mode}")
        yield
        CALLS.append("end")

    @staticmethod
    def get_rng_state(device: torch.device) -> Tensor:
        return torch.ones(1)

    @staticmethod
    def set_rng_state(state: Tensor, device: torch.device) -> None:
        CALLS.append(f"set {float(state)}")


CALLS: list[str] = []


@pytest.fixture(autouse=True)
def cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    CALLS.clear()

    class Torch:
        cuda = Cuda

    monkeypatch.setattr(cuda_graphs, "torch", Torch)


def run() -> list[Tensor]:
    CALLS.append("run")
    return [torch.ones(2)]


def test_warm_then_record_then_replay() -> None:
    graphs = CudaGraphs()
    warm = graphs.warm_up(GPU, run)
    outputs, replay = graphs.record(GPU, run)
    replay()
    assert [value.tolist() for value in (*warm, *outputs)] == [[1.0, 1.0]] * 2
    assert CALLS == [
        "side waits for current", "run", "current waits for side", "begin None side thread_local", "run", "end", "replay",
    ]  # fmt: skip
    CALLS.clear()
    graphs.record(torch.device("cuda"), run)
    assert CALLS[0] == "begin None side thread_local"  # a device of another name
    CALLS.clear()
    graphs.record(GPU, run)
    assert CALLS[0] == "begin pool side thread_local"
    graphs.set_generator(GPU, graphs.read_generator(GPU))
    assert CALLS[-1] == "set 1.0"


def test_what_breaks_a_recording_leaves_the_generator_usable() -> None:
    def fail() -> list[Tensor]:
        raise RuntimeError("not permitted")

    with pytest.raises(RuntimeError, match="not permitted"):
        CudaGraphs().record(GPU, fail)
    assert CALLS[-1] == "back to state"


@pytest.mark.parametrize("recording", [False, True])
def test_the_generator_of_a_gpu_is_not_read_while_it_records(recording: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch raises there."""
    monkeypatch.setattr("torch.cuda.is_current_stream_capturing", lambda: recording)
    monkeypatch.setattr("torch.cuda.get_rng_state", lambda device: torch.ones(1))
    like: Any = SimpleNamespace(is_cuda=True, device=GPU)
    assert (read_generators(like)[1] is None) is recording


def test_only_cuda_has_graphs() -> None:
    assert CudaGraphs().find_obstacle(GPU) is None
    assert CudaGraphs().find_obstacle(torch.device("cpu")) == "its tensors are on the cpu, which has no CUDA graphs"
