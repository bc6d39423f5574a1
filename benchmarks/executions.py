"""Sequential against vectorised meta-batches of our modules, alternately in one process.

python benchmarks/executions.py            (on a CPU; add --device cuda on a GPU)
"""

from __future__ import annotations

import argparse
import time

import torch
from machine import describe

from metalearn import ANIL, MAML, Batch, Conv4, Episode, MetaModule
from metalearn.allocator import keep_buffers


def noise(tasks: int, queries: int, device: str) -> Episode:
    """5-way 1-shot tasks of noise images."""
    generator = torch.Generator().manual_seed(0)

    def part(count: int) -> Batch:
        x = torch.randn(tasks, 5 * count, 1, 28, 28, generator=generator)
        return Batch(x.to(device), torch.arange(5, device=device).repeat_interleave(count).repeat(tasks, 1))

    return Episode(part(1), part(queries))


def step(module: MetaModule, episode: Episode) -> float:
    """Milliseconds of one forward and backward pass."""
    if episode.support.x.is_cuda:
        torch.cuda.synchronize()
    begun = time.perf_counter()
    module.zero_grad()
    module.training_step(episode, 0).backward()
    if episode.support.x.is_cuda:
        torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - begun)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=4)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    keep_buffers()
    print(describe(), f"device {given.device}", sep=", ")
    print(f"| {'work':38} | sequential | vectorized | ratio |")
    print(f"|{'-' * 40}|-----------:|-----------:|------:|")
    for kind in (MAML, ANIL):
        for down, hidden, queries in (
            ("pool", 64, 5),
            ("pool", 64, 15),
            ("pool", 32, 5),
            ("stride", 64, 5),
            ("stride", 32, 5),
        ):
            episode = noise(16, queries, given.device)
            modules = [
                kind(Conv4(hidden=hidden, downsample=down), inner_steps=1, execution=execution).to(given.device)  # type: ignore[arg-type]
                for execution in ("sequential", "vectorized")
            ]
            found: list[list[float]] = [[], []]
            for turn in range(given.rounds + 1):
                for times, module in zip(found, modules, strict=True):
                    spent = step(module, episode)
                    if turn:
                        times.append(spent)
            one, two = (min(times) for times in found)
            work = f"{kind.__name__}, {hidden} filters, {down}, {queries} queries"
            print(f"| {work:38} | {one:10.0f} | {two:10.0f} | {two / one:5.2f} |", flush=True)


if __name__ == "__main__":
    main()
