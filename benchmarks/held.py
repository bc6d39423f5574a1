"""What a step of ours holds at its peak: tensors by the operator that made them, and the line that called it."""

from __future__ import annotations

import itertools
import json
import math
import tempfile
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from systems import SYSTEMS, build
from torch.profiler import ProfilerActivity, profile
from works import WORKS

__all__ = ["show_held"]

SHOWN = 0.01
"""Of the peak: what is smaller is summed up."""

Event = dict[str, Any]


def show_held(name: str, threads: int, system: str = "ours: auto") -> None:
    """Print what one of ``threads`` threads holds at the peak of a step, by the allocator's own events.

    Args:
        name: of the work.
        threads: among which its tasks are shared; the profiler follows one.
        system: whose step.
    """
    work = replace(WORKS[name], tasks=math.ceil(WORKS[name].tasks / threads))
    torch.set_num_threads(1)
    running = build(next(each for each in SYSTEMS if each.name == system), work, "cpu", torch.float32)
    running.step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, with_stack=True) as profiler:
        running.step()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    held = _find_held(events)
    total = sum(event["args"]["Bytes"] for event in held)
    print(f"\n### {work.title}: {total / 2**20:.1f} MiB at the peak of {system}, one thread\n")
    print(f"| {'MiB':>6} | tensors | {'operator':44} | {'called by':52} |")
    print(f"|{'-' * 7}:|--------:|{'-' * 46}|{'-' * 54}|")
    rows: dict[tuple[str, str], list[int]] = defaultdict(list)
    spans = _find_spans(events)
    for event in held:
        rows[_name_maker(event, spans)].append(event["args"]["Bytes"])
    left = 0
    for (operator, line), sizes in sorted(rows.items(), key=lambda row: -sum(row[1])):
        if sum(sizes) < SHOWN * total:
            left += sum(sizes)
            continue
        print(f"| {sum(sizes) / 2**20:6.1f} | {len(sizes):7} | {operator:44} | {line:52} |")
    print(f"| {left / 2**20:6.1f} | {'':7} | {'all others':44} | {'':52} |", flush=True)


def _find_held(events: list[Event]) -> list[Event]:
    """The allocations that are alive when most is."""
    changes = sorted((e for e in events if e.get("name") == "[memory]"), key=lambda e: e["args"]["Ev Idx"])
    totals = list(itertools.accumulate(change["args"]["Bytes"] for change in changes))
    peak = max(range(len(totals)), key=totals.__getitem__)
    alive: dict[int, Event] = {}
    for change in changes[: peak + 1]:
        if change["args"]["Bytes"] > 0:
            alive[change["args"]["Addr"]] = change
        else:
            alive.pop(change["args"]["Addr"], None)
    return list(alive.values())


def _find_spans(events: list[Event]) -> dict[int, list[Event]]:
    """Operators and Python calls of each thread, in the order of their beginnings."""
    spans: dict[int, list[Event]] = defaultdict(list)
    for event in events:
        if event.get("ph") == "X" and event.get("cat") in ("cpu_op", "python_function"):
            spans[event["tid"]].append(event)
    return {thread: sorted(of_thread, key=lambda span: float(span["ts"])) for thread, of_thread in spans.items()}


def _name_maker(event: Event, spans: dict[int, list[Event]]) -> tuple[str, str]:
    """The operators around an allocation, and the innermost lines of ours."""
    at = event["ts"]
    around = [span for span in spans[event["tid"]] if span["ts"] <= at <= span["ts"] + span["dur"]]
    operators = [span["name"].removeprefix("aten::") for span in around if span["cat"] == "cpu_op"]
    operators = [name for name in operators if not name.startswith(("autograd::", "empty", "resize", "_foreach"))]
    lines = [span["name"] for span in around if span["cat"] == "python_function" and "metalearn/inner" in span["name"]]
    chain = [name for name, _ in itertools.groupby(operators)][-3:]
    return " > ".join(chain)[-44:], " | ".join(line.split("metalearn/inner/")[-1] for line in lines[-2:])[-52:]
