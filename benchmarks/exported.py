"""Exported networks against the models that they are of, on 1,000 random queries each: prints a table.

Each network is adapted to one random task. Its ONNX file is run by onnxruntime, its ``torch.export`` program by torch, in
batches of 1, 7 and 100. A difference is the largest one between their outputs and those of ``adapted.independent()``. The
largest output stands before it, since float32 has seven digits. Bytes are those of the file that ``save`` writes, and of
all tensors of the network. Times are those of a single query, the median of 30.

python benchmarks/exported.py    (needs: pip install 'metalearn-lightning[onnx]')
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from metalearn import (
    ANIL,
    MAML,
    MLP,
    Baseline,
    Batch,
    Context,
    Conv4,
    LoRA,
    LSTMClassifier,
    ProtoNet,
    PrototypeHead,
    ResNet12,
    SharedHead,
    Torchvision,
    TransformerClassifier,
)
from metalearn.inner import Quantiles

COLUMNS = (
    "network", "algorithm", "largest output", "ONNX differs by", "torch.export by", "bytes adapted", "bytes of the network",
    "ms ONNX", "ms torch",
)  # fmt: skip
WAYS, VOCABULARY = 5, 1000
SIZES = {"inner_steps": 2, "inner_lr": 0.05}


def group_norm() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, 2, 1), nn.GroupNorm(4, 32), nn.ReLU(), nn.Conv2d(32, 32, 3, 2, 1), nn.GroupNorm(4, 32), nn.ReLU(),
        nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(512, WAYS),
    )  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A network and an algorithm.

    Attributes:
        algorithm: as the table calls it.
        kind: the module's class.
        network: makes the network.
        shape: of an example; of whole numbers, where there is one axis only.
        options: arguments of the module.
        targets: numbers of a target, for values; 0 for class labels.
    """

    algorithm: str
    kind: Callable[..., Any]
    network: Callable[[], nn.Module]
    shape: tuple[int, ...]
    options: dict[str, Any] = field(default_factory=lambda: dict(SIZES))
    targets: int = 0


GREY, COLOUR, TOKENS = (1, 28, 28), (3, 32, 32), (20,)
CASES = [
    Case("MAML", MAML, Conv4, GREY),
    Case("MAML, norm='support'", MAML, Conv4, GREY, {**SIZES, "norm": "support"}),
    Case("MAML, norm='running'", MAML, Conv4, GREY, {**SIZES, "norm": "running"}),
    Case("MAML, norm='per_step'", MAML, Conv4, GREY, {**SIZES, "norm": "per_step"}),
    Case("ANIL", ANIL, Conv4, GREY),
    Case("ANIL, ridge", ANIL, Conv4, GREY, {"head_solver": "ridge"}),
    Case("ProtoNet", ProtoNet, Conv4, GREY, {}),
    Case("Baseline, cosine", Baseline, Conv4, GREY, {"classifier": "cosine"}),
    Case("MAML, LoRA(4)", MAML, Conv4, GREY, {**SIZES, "adapter": LoRA(4)}),
    Case("MAML, Context(8)", MAML, Conv4, GREY, {**SIZES, "adapter": Context(8, layers="norm")}),
    Case("MAML, PrototypeHead", MAML, Conv4, GREY, {**SIZES, "adapter": PrototypeHead()}),
    Case("MAML, SharedHead", MAML, Conv4, GREY, {**SIZES, "adapter": SharedHead()}),
    Case("MAML", MAML, group_norm, GREY),
    Case("MAML", MAML, lambda: ResNet12(ways=WAYS), COLOUR),
    Case("MAML, norm='running'", MAML, lambda: Torchvision("resnet18", ways=WAYS), COLOUR, {**SIZES, "norm": "running"}),
    Case("ANIL", ANIL, lambda: Torchvision("resnet18", ways=WAYS), COLOUR),
    Case("MAML", MAML, lambda: LSTMClassifier(WAYS, VOCABULARY), TOKENS),
    Case("ANIL", ANIL, lambda: TransformerClassifier(WAYS, VOCABULARY), TOKENS),
    Case("MAML, LoRA(4)", MAML, lambda: TransformerClassifier(WAYS, VOCABULARY), TOKENS, {**SIZES, "adapter": LoRA(4)}),
    Case("MAML, mse", MAML, lambda: MLP(outputs=1, inputs=8, hidden=[40, 40]), (8,), {**SIZES, "loss": "mse"}, 1),
    Case("MAML, gaussian_nll", MAML, lambda: MLP(outputs=2, inputs=8, hidden=[40, 40]), (8,),
         {**SIZES, "loss": "gaussian_nll"}, 1),
    Case("MAML, three quantiles", MAML, lambda: MLP(outputs=3, inputs=8, hidden=[40, 40]), (8,),
         {**SIZES, "loss": Quantiles([0.1, 0.5, 0.9])}, 1),
]  # fmt: skip


def draw(case: Case, count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if case.shape == TOKENS:
        x = torch.randint(1, VOCABULARY, (count, *case.shape), generator=generator)
        lengths = torch.randint(1, 1 + TOKENS[0], (count, 1), generator=generator)
        return x.where(torch.arange(TOKENS[0]) < lengths, 0)
    return torch.randn(count, *case.shape, generator=generator)


def split(queries: Tensor) -> Iterator[Tensor]:
    """Batches of 1 and 7, and then of 100."""
    yield queries[:1]
    yield queries[1:8]
    yield from queries[8:].split(100)


def measure(run: Callable[[Tensor], Any], query: Tensor) -> float:
    """Milliseconds of a call, the median of 30."""
    seconds = []
    for _ in range(33):
        start = time.perf_counter()
        run(query)
        seconds.append(time.perf_counter() - start)
    return 1000 * median(seconds[3:])


def try_case(case: Case, count: int, folder: Path) -> list[str]:
    """The cells of a row."""
    import onnxruntime

    torch.manual_seed(0)
    module = case.kind(case.network(), **case.options).eval()
    y = torch.randn(2 * WAYS, case.targets) if case.targets else torch.arange(WAYS).repeat(2)
    adapted = module.adapt(Batch(draw(case, 2 * WAYS, 0), y))
    model, program = adapted.independent(), adapted.exported().module()
    session = onnxruntime.InferenceSession(str(adapted.export(folder / "x.onnx")))

    def run_onnx(x: Tensor) -> Tensor:
        return torch.from_numpy(session.run(["logits"], {"x": x.numpy()})[0])

    queries = draw(case, count, 1)
    with torch.no_grad():
        expected = torch.cat([model(batch) for batch in split(queries)])
        errors = [
            float((torch.cat([run(batch) for batch in split(queries)]) - expected).abs().max())
            for run in (run_onnx, program)
        ]
        times = [measure(run, queries[:1]) for run in (run_onnx, model)]
    network = getattr(module.backbone, "name", None) or type(module.backbone).__name__
    sizes = [
        adapted.save(folder / "x.safetensors").stat().st_size,
        sum(value.numel() * value.element_size() for value in module.backbone.state_dict().values()),
    ]
    return [
        {"Sequential": "own, GroupNorm"}.get(network, network), case.algorithm, f"{float(expected.abs().max()):.2g}",
        *(f"{error:.1e}" for error in errors),
        *(f"{size:,}" for size in sizes), *(f"{value:.2f}" for value in times),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=1000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in ("lightning.pytorch", "onnxscript", "torch.onnx"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    print(f"| {' | '.join(COLUMNS)} |\n|---|---|{'---:|' * (len(COLUMNS) - 2)}")
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            print(f"| {' | '.join(try_case(case, options.queries, Path(folder)))} |", flush=True)


if __name__ == "__main__":
    main()
