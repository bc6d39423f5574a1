"""The rounding errors of our kernels beside those of torch's operators one by one, both against these in float64.

Inputs are rounded once, to float32 or bf16, and float64 is fed with the same ones. Outputs are ``y``. First derivatives are those
of ``sum(c y)`` with fixed noise ``c``, by every tensor that goes in. Second derivatives are those of the first along fixed noise
of each tensor's own size: a product with the Hessian. An error is the norm of a difference to float64, relative to the norm of
float64's result, over all draws. A row shows the tensor whose ratio of ours to plain is the worst.

The ratio is taken to one rounding of bf16, or four of float32, where plain errs by less. Two things are no errors of a kernel.
Where values tie, as on constant images, or stand at the edge of a rectification, rounding decides which of them has the
derivative. And a sum that is 0 in exact arithmetic has no relative error. Both show in float64 itself, when its inputs are moved
by as much as rounding moves them, in one of eight ways. What its results then move by is the other number that a kernel is held
to. Rows beyond 4 times plain's error are marked ``rounding`` where they are within 4 times of that, and ``BEYOND`` where not. The
command ends with 1 if there is one of these.

python benchmarks/kernel_errors.py                                           (the table of docs/background/performance.md)
python benchmarks/kernel_errors.py --kernels "first block" --sizes 28        (a part of it)
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from compositions import IMAGES, KERNELS, RANGES, Kernel, Tensors, make_images
from machine import describe
from torch import Tensor

__all__ = ["FACTOR", "Row", "Setting", "find_worst", "measure_errors"]

FACTOR = 4.0
"""Times the error of the plain composition that a kernel may have."""
GROUPS = ("outputs", "first", "second")
UNITS = {torch.bfloat16: 2.0**-8, torch.float32: 2.0**-24}
"""How far a number of a type may be moved by rounding, relative to itself."""
FLOORS = {torch.bfloat16: 2.0**-8, torch.float32: 2.0**-22}
"""Relative errors that are none: one rounding of bf16, and four of float32, which a sum over 100,000 equal values loses."""
ATTEMPTS = 8
"""Times that inputs are moved, one way or another, until no row is beyond: a tie may need more than one."""


@dataclass(frozen=True)
class Setting:
    """What a kernel is fed with.

    Attributes:
        images: of :data:`compositions.IMAGES`.
        span: of :data:`compositions.RANGES`.
        size: pixels a side.
        bf16: whether autocast to bf16 is on.
        draws: how many times it is drawn anew: three times, and large images less often.
    """

    images: str
    span: str
    size: int
    bf16: bool

    @property
    def draws(self) -> int:
        return min(max(20_000 // self.size**2, 1), 3)


@dataclass(frozen=True)
class Error:
    """Of one tensor, norms of differences to float64 over all draws.

    Attributes:
        name: its group and its own name.
        ours: of the kernel.
        plain: of the plain composition.
        moved: of float64, when its inputs are moved by rounding; looked for where the others do not do.
        size: the norm of float64's result itself.
        floor: of :data:`FLOORS`, of the result's type.
    """

    name: str
    ours: float
    plain: float
    moved: float
    size: float
    floor: float

    @property
    def ratio(self) -> float:
        """Ours to plain's, or to the floor; infinite where ours is no number."""
        if self.ours == 0 or not math.isfinite(self.ours):
            return 0.0 if self.ours == 0 else math.inf
        bound = max(self.plain, self.floor * self.size) if math.isfinite(self.plain) else math.inf
        return self.ours / bound if bound else math.inf

    @property
    def mark(self) -> str:
        """See the top of this file."""
        if self.ratio <= FACTOR:
            return ""
        return "rounding" if self.ours <= FACTOR * self.moved else "BEYOND"

    def relate(self, norm: float) -> float:
        """A norm relative to that of float64's result."""
        if norm == 0:
            return 0.0
        return norm / self.size if self.size else math.inf


Row = dict[str, Error]
"""The worst tensor of each of :data:`GROUPS`."""


def differentiate(function: Callable[..., Tensor], tensors: Tensors, bf16: bool, seed: int) -> dict[str, Tensor]:
    """Outputs, first and second derivatives by group and tensor: ``"first filters"``."""
    generator = torch.Generator().manual_seed(seed)
    leaves = {name: value.clone().requires_grad_() for name, value in tensors.items()}
    wide = torch.float64 if next(iter(leaves.values())).dtype == torch.float64 else torch.float32

    def weigh(value: Tensor, size: Tensor | float = 1.0) -> Tensor:
        noise = torch.randn(value.shape, generator=generator).to(wide)
        return (value.to(wide) * noise * size).sum()

    with torch.autocast("cpu", torch.bfloat16, enabled=bf16, cache_enabled=False):
        y = function(**leaves)
        first = torch.autograd.grad(weigh(y), list(leaves.values()), create_graph=True)
        sizes = [value.detach().to(wide).square().mean().sqrt() for value in leaves.values()]
        along = torch.stack([weigh(grad, size) for grad, size in zip(first, sizes, strict=True)]).sum()
        second = torch.autograd.grad(along, list(leaves.values()), materialize_grads=True)
    results = {"outputs y": y.detach()}
    results |= {f"first {name}": grad.detach() for name, grad in zip(leaves, first, strict=True)}
    return results | {f"second {name}": grad for name, grad in zip(leaves, second, strict=True)}


def measure_errors(kernel: Kernel, setting: Setting) -> list[Error]:
    """The errors of every result of a kernel, over all draws."""
    draws, totals, floors = [], {}, {}  # type: list[tuple[Tensors, Tensors]], dict[str, Tensor], dict[str, float]
    for draw in range(setting.draws):
        generator = torch.Generator().manual_seed(draw)
        shape = (2, kernel.channels, setting.size, setting.size)
        tensors = kernel.inputs(make_images(setting.images, setting.span, shape, generator), generator)
        if setting.bf16:
            tensors = {name: value.bfloat16() if name in kernel.narrow else value for name, value in tensors.items()}
        wide = {name: value.double() for name, value in tensors.items()}
        exact = differentiate(kernel.plain, wide, False, draw)
        found = differentiate(kernel.ours, tensors, setting.bf16, draw)
        plain = differentiate(kernel.plain, tensors, setting.bf16, draw)
        for name, value in exact.items():
            differences = (found[name].double() - value, plain[name].double() - value, value)
            squares = torch.stack([difference.square().sum() for difference in differences])
            totals[name] = totals.get(name, 0.0) + squares
            floors[name] = FLOORS[found[name].dtype]
        draws.append((wide, exact))
    norms = {name: squares.sqrt().tolist() for name, squares in totals.items()}
    errors = [Error(name, ours, plain, 0.0, size, floors[name]) for name, (ours, plain, size) in norms.items()]
    for attempt in range(ATTEMPTS):
        if not any(error.mark == "BEYOND" for error in errors):
            break
        moved = _measure_moves(kernel, draws, UNITS[torch.bfloat16 if setting.bf16 else torch.float32], attempt)
        errors = [replace(error, moved=max(error.moved, moved[error.name])) for error in errors]
    return errors


def _measure_moves(kernel: Kernel, draws: list[tuple[Tensors, Tensors]], unit: float, seed: int) -> dict[str, float]:
    """Norms of what float64's results move by when each number that goes in is moved by up to a rounding."""
    generator = torch.Generator().manual_seed(seed)
    squares: dict[str, float] = {}
    for draw, (wide, exact) in enumerate(draws):
        noise = {name: 2 * torch.rand(value.shape, generator=generator).double() - 1 for name, value in wide.items()}
        beside = {name: value * (1 + unit * noise[name]) for name, value in wide.items()}
        for name, value in differentiate(kernel.plain, beside, False, draw).items():
            squares[name] = squares.get(name, 0.0) + float((value - exact[name]).square().sum())
    return {name: square**0.5 for name, square in squares.items()}


def find_worst(errors: list[Error]) -> Row:
    """Of each group the result of the worst ratio, one that is beyond before all others."""
    return {
        group: max(
            (error for error in errors if error.name.startswith(group)),
            key=lambda error: (error.mark == "BEYOND", error.ratio),
        )
        for group in GROUPS
    }


def measure(kernels: list[str], settings: list[Setting]) -> Iterator[tuple[str, Setting, Row]]:
    """Print a row for every kernel and setting as soon as it is there."""
    print(f"| {'kernel':26} | {'images':14} | {'range':8} | size | type | " + " | ".join(map(_head, GROUPS)) + " | |")
    print(f"|{'-' * 28}|{'-' * 16}|{'-' * 10}|-----:|------|" + 3 * f"{'-' * 30}:|" + "---|")
    for name, setting in itertools.product(kernels, settings):
        row = find_worst(measure_errors(KERNELS[name], setting))
        marks = sorted({error.mark for error in row.values()} - {""})
        print(
            f"| {name:26} | {setting.images:14} | {setting.span:8} | {setting.size:4} | {_type(setting)} | "
            f"{' | '.join(_show(error) for error in row.values())} | {' '.join(marks)} |",
            flush=True,
        )
        yield name, setting, row


def _head(group: str) -> str:
    return f"{group + ': ours, plain, ratio':29}"


def _type(setting: Setting) -> str:
    return "bf16" if setting.bf16 else "f32 "


def _show(error: Error) -> str:
    return f"{error.relate(error.ours):8.1e} {error.relate(error.plain):8.1e} {error.ratio:11.2g}"


def summarise(rows: list[tuple[str, Setting, Row]]) -> bool:
    """Print the worst ratio of each kernel, type and group; whether none is beyond."""
    print(f"\n| {'kernel':26} | type |  rows | outputs | first | second | beyond 4 by rounding alone | BEYOND |")
    print(f"|{'-' * 28}|------|------:|--------:|------:|-------:|---------------------------:|-------:|")
    beyond = 0
    for name, bf16 in dict.fromkeys((name, setting.bf16) for name, setting, _ in rows):
        own = [row for other, setting, row in rows if (other, setting.bf16) == (name, bf16)]
        ratios = [[row[group].ratio for row in own if not row[group].mark] for group in GROUPS]
        worst = [f"{max(values):.1f}" if values else "-" for values in ratios]
        marks = [[error.mark for error in row.values()] for row in own]
        rounding, failed = (sum(mark in each for each in marks) for mark in ("rounding", "BEYOND"))
        beyond += failed
        print(
            f"| {name:26} | {'bf16' if bf16 else 'f32 '} | {len(own):5} | {worst[0]:>7} | {worst[1]:>5} | {worst[2]:>6} "
            f"| {rounding:26} | {failed:6} |"
        )
    return beyond == 0


def read_options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernels", nargs="*", default=[""], help="words that a kernel's name must begin with")
    parser.add_argument("--images", nargs="*", default=list(IMAGES), choices=list(IMAGES))
    parser.add_argument("--ranges", nargs="*", default=list(RANGES), choices=list(RANGES))
    parser.add_argument("--sizes", nargs="*", type=int, default=[28, 84, 224])
    parser.add_argument("--types", nargs="*", default=["f32", "bf16"], choices=["f32", "bf16"])
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = read_options(arguments)
    torch.set_num_threads(options.threads)
    kernels = [name for name in KERNELS if any(name.startswith(word) for word in options.kernels)]
    settings = [
        Setting(images, span, size, kind == "bf16")
        for size, images, span, kind in itertools.product(options.sizes, options.images, options.ranges, options.types)
    ]
    print(f"{describe()}\n")
    raise SystemExit(0 if summarise(list(measure(kernels, settings))) else 1)


if __name__ == "__main__":
    main()
