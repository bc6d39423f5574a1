"""What loading costs: its share of a training step, and the memory of several workers beside that of one.

The share is the time that a training loop waits for its next batch, against that of the step, of some shipped configs. Memory is
the proportional set size of the whole process tree (Linux): pages that processes share count once.

python benchmarks/loading.py --omniglot DIR --miniimagenet DIR
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from machine import describe
from measure import run_apart, synchronize
from shipped import make_data, make_network, read_config

from metalearn import ANIL, MAML
from metalearn.cli.allocator import keep_buffers

CONFIGS = ["maml_omniglot_5w1s", "anil_omniglot_5w1s", "maml_miniimagenet_5w1s", "anil_miniimagenet_5w1s"]


def build(name: str, roots: dict[str, str | None], workers: int) -> tuple[Any, Any] | None:
    """The module and the data of a shipped config; ``None`` without its data."""
    config = read_config(name)
    root = roots["miniimagenet" if "miniimagenet" in name else "omniglot"]
    if root is None:
        return None
    arguments = config["model"]["init_args"]
    inner = {key: value for key, value in arguments.items() if key != "backbone" and not key.startswith("outer_")}
    module = {"MAML": MAML, "ANIL": ANIL}[config["model"]["class_path"]](make_network(config), **inner)
    return module, make_data(config, root, num_workers=workers)


def share(name: str, roots: dict[str, str | None], workers: int, steps: int, device: str) -> str:
    """The median seconds of loading, the transfer to the device included, and of a step."""
    built = build(name, roots, workers)
    if built is None:
        return "no data"
    module, data = built[0].to(device), built[1]
    optimizer = torch.optim.Adam(module.parameters(), 1e-3)
    batches = iter(data.train_dataloader())
    loads, works = [], []
    for turn in range(steps + 2):
        begun = time.perf_counter()
        batch = move_data_to_device(next(batches), torch.device(device))
        synchronize(device)
        loaded = time.perf_counter()
        loss = module.training_step(batch, turn)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        synchronize(device)
        if turn > 1:  # the first choose the execution
            loads.append(loaded - begun)
            works.append(time.perf_counter() - loaded)
    load, work = statistics.median(loads), statistics.median(works)
    return f"{1000 * load:10.1f} ms {1000 * work:10.1f} ms {100 * load / (load + work):8.2f} %"


def resident() -> int:
    """Bytes of this process and all below it, shared pages divided among those that share them."""
    total, todo = 0, [os.getpid()]
    while todo:
        pid = todo.pop()
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += 1024 * int(line.split()[1])
        todo += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    return total


def print_resident(name: str, roots: dict[str, str | None], workers: int) -> None:
    """Load 200 batches by so many workers, and print the median memory of all processes meanwhile."""
    torch.set_num_threads(1)
    built = build(name, roots, workers)
    assert built is not None
    batches = iter(built[1].train_dataloader())
    sizes = []
    for turn in range(200):
        next(batches)
        if turn % 20 == 19:
            sizes.append(resident())
    print(statistics.median(sizes))


def memory(name: str, arguments: list[str]) -> None:
    """Print the memory with 1, 2 and 4 workers, each in a fresh process, whose workers are forked."""
    base = None
    for workers in (1, 2, 4):
        size = float(run_apart(__file__, *arguments, "--resident", f"{name}:{workers}"))
        base = base or size
        print(f"{name:28}{workers:3d} workers {size / 2**20:10.0f} MiB {size / base:8.2f} of one", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--omniglot", help="the folder of Omniglot's archives")
    parser.add_argument("--miniimagenet", help="miniImageNet, or data in its format")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="cpu or cuda, of the steps")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--resident", help="CONFIG:WORKERS: print the memory of these workers alone")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_buffers()  # as the command line does
    roots = {"omniglot": options.omniglot, "miniimagenet": options.miniimagenet}
    if options.resident:
        name, _, workers = options.resident.partition(":")
        print_resident(name, roots, int(workers))
        return
    print(describe())
    print(f"{'a training step':28}{'workers':>9}{'loading':>13}{'the step':>14}{'loading':>11}")
    for name in CONFIGS:
        for workers in (0, 2):
            print(f"{name:28}{workers:9d}{share(name, roots, workers, options.steps, options.device)}", flush=True)
    if Path("/proc/self/smaps_rollup").is_file():
        for name in ("maml_omniglot_5w1s", "maml_miniimagenet_5w1s"):
            if roots["miniimagenet" if "miniimagenet" in name else "omniglot"]:
                memory(name, sys.argv[1:])


if __name__ == "__main__":
    main()
