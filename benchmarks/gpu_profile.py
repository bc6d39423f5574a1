"""What a step is made of: kernels and launches as a profiler sees them, the device's peaks, and operators counted without one."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from measure import synchronize
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import flop_registry

from metalearn.inner.execution.differentiate import Part
from metalearn.inner.execution.flat_part import FlatPart

__all__ = ["count_operators", "find_peaks", "profile_step"]

LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx", "cudaMemcpyAsync",
            "cudaMemsetAsync", "cudaGraphLaunch")  # fmt: skip


def profile_step(step: Callable[[], object], device: str, rows: int = 12) -> dict[str, Any]:
    """Launches, kernels, the device's busy time, and the kernels (on a CPU, operators) that take most of it."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    for _ in range(2):  # the profiler's own buffers must be there too
        with profile(activities=activities) as profiler:
            begun = time.perf_counter()
            step()
            synchronize(device)
            seconds = time.perf_counter() - begun
    events = profiler.key_averages()
    if device == "cuda":
        kernels = [event for event in events if event.device_type == torch.autograd.DeviceType.CUDA]
        times = {event.key: event.self_device_time_total for event in kernels}
    else:
        kernels = [event for event in events if event.self_cpu_time_total > 0]
        times = {event.key: event.self_cpu_time_total for event in kernels}
    counts = {event.key: event.count for event in kernels}
    total = sum(times.values())
    top = sorted(times, key=lambda key: -times[key])[:rows]
    return {
        "wall_ms": 1000 * seconds,
        "busy_ms": total / 1000,
        "kernels": sum(counts.values()),
        "launches": sum(event.count for event in events if event.key in LAUNCHES),
        "top": [{"name": key[:80], "share": times[key] / total if total else 0.0, "calls": counts[key]} for key in top],
    }


def find_peaks(device: str, size: int, rounds: int = 5) -> dict[str, float]:
    """TFLOP/s of square products, TB/s of a copy, and microseconds of a small kernel's launch."""
    peaks = {}
    for name, dtype, tf32 in (
        ("fp32", torch.float32, False),
        ("tf32", torch.float32, True),
        ("bf16", torch.bfloat16, False),
    ):
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = tf32
        a, b = torch.randn(2, size, size, device=device).to(dtype)
        peaks[f"{name} TFLOP/s"] = 2 * size**3 / _time(lambda a=a, b=b: a @ b, device, rounds) / 1e12
        torch.backends.cuda.matmul.allow_tf32 = before
    x = torch.randn(8 * size * size, device=device)
    y = torch.empty_like(x)
    peaks["TB/s"] = 2 * x.numel() * 4 / _time(lambda: y.copy_(x), device, rounds) / 1e12
    small = torch.zeros(8, device=device)

    def launch() -> None:
        for _ in range(1000):
            small.add_(1)

    peaks["us a launch"] = 1000 * _time(launch, device, rounds)
    return peaks


def _time(run: Callable[[], object], device: str, rounds: int) -> float:
    """Seconds of the best of a few rounds."""
    seconds = []
    for _ in range(rounds + 1):
        synchronize(device)
        begun = time.perf_counter()
        run()
        synchronize(device)
        seconds.append(time.perf_counter() - begun)
    return min(seconds[1:])


def count_operators(module: Any, episode: Any) -> dict[str, float]:
    """Operators, FLOPs and bytes of a step that is run for all tasks at once, on tensors that hold nothing.

    Every operator that is no view is one kernel or more; it reads its inputs once and writes its outputs once. So the bytes are
    those of a run without any reuse in caches.
    """
    counts: dict[str, float] = {}

    def stand_in(adaptation: Any, params: Any, extra: Any, episode: Any, schedule: Any, queries: Any = None) -> Part:
        part = FlatPart(adaptation, params, extra, episode, schedule, None)
        graph = make_fx(part.make_function(), tracing_mode="fake", _allow_non_fake_inputs=True)(*part.values)
        counts.update(_count(graph.graph.nodes))
        logits = torch.zeros(*episode.query.y.shape, 1)
        return Part(torch.zeros(()), logits, tuple(torch.zeros_like(value) for value in (*params.values(), *extra)))

    module._runner.compiled = stand_in  # the place of what compiles or records
    module.meta_loss(episode)
    return counts


def _count(nodes: Any) -> dict[str, float]:
    operators = flops = moved = 0.0
    names: dict[str, int] = {}
    for node in nodes:
        if node.op != "call_function" or not hasattr(node.target, "_schema"):
            continue
        schema = node.target._schema
        aliases = any(result.alias_info is not None and not result.alias_info.is_write for result in schema.returns)
        if aliases or node.target._opname in ("detach", "_unsafe_view", "empty", "empty_like", "new_empty"):
            continue
        operators += 1
        names[node.target._opname] = names.get(node.target._opname, 0) + 1
        inputs = [value.meta["val"] for value in node.all_input_nodes if isinstance(value.meta.get("val"), Tensor)]
        outputs = node.meta.get("val")
        outputs = outputs if isinstance(outputs, (tuple, list)) else [outputs]
        moved += sum(x.numel() * x.element_size() for x in (*inputs, *outputs) if isinstance(x, Tensor))
        count = flop_registry.get(node.target.overloadpacket)
        if count is not None:
            args, kwargs = torch.utils._pytree.tree_map(
                lambda value: value.meta["val"] if isinstance(value, torch.fx.Node) else value, (node.args, node.kwargs)
            )
            flops += count(*args, **kwargs, out_val=node.meta["val"])
    top = dict(sorted(names.items(), key=lambda item: -item[1])[:8])
    return {
        "operators": operators,
        "GFLOP": flops / 1e9,
        "GB": moved / 1e9,
        **{f"calls of {k}": v for k, v in top.items()},
    }
