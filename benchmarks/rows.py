"""The rows by which two checkouts are compared: the worker that each side runs, see ``against.py``.

Only the public names of metalearn are used, so that older checkouts can run them too.

python benchmarks/rows.py CHECKOUT    (reads requests from its standard input, a JSON object a line)
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])  # before anything of the package is imported

import torch
from works import SEQUENCES, WORKS, Work, network, noise, reduce

from metalearn import ANIL, IMAML, MAML, Batch, BilevelFewShot, Episode

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ROWS", "Row"]

Values = dict[str, "Tensor"]


@dataclass(frozen=True)
class Row:
    """Something that takes time.

    Attributes:
        title: as printed.
        work: the meta-batch.
        kind: the module.
        options: its arguments beside the backbone, the inner steps and the inner learning rate.
        action: ``"train"`` for a training step and its backward pass, ``"validate"`` for a validation step, ``"adapt"`` for
            adaptation to one task after the other, with a prediction each.
        bf16: whether it runs under autocast to bf16.
    """

    title: str
    work: Work
    kind: Callable[..., Any]
    options: dict[str, Any]
    action: str = "train"
    bf16: bool = False


def _rows() -> dict[str, Row]:
    maml = WORKS["second_order"]
    return {
        "maml": Row("MAML, 5 steps, 16 tasks of 28x28", maml, MAML, {}),
        "one_step": Row("MAML, 1 step, 16 tasks of 28x28", WORKS["one_step"], MAML, {}),
        "first_order": Row("FOMAML, 5 steps, 16 tasks of 28x28", maml, MAML, {"first_order": True}),
        "anil": Row("ANIL, 5 steps, 16 tasks of 28x28", WORKS["anil"], ANIL, {}),
        "ridge": Row("ANIL, ridge head, 16 tasks of 28x28", WORKS["anil"], ANIL, {"head_solver": "ridge"}),
        "colour": Row("MAML, 5 steps, 4 tasks of 84x84x3", WORKS["miniimagenet"], MAML, {}),
        "50_steps": Row("MAML, 50 steps, 2 tasks of 28x28", WORKS["50_steps"], MAML, {}),
        "validate": Row("MAML, validation step, 16 tasks of 28x28", maml, MAML, {}, "validate"),
        "adapt": Row("MAML, adapt and predict, 4 tasks of 28x28", replace(maml, tasks=4), MAML, {}, "adapt"),
        "imaml": Row("IMAML, 16 steps, 4 tasks of 28x28", replace(maml, tasks=4, steps=16, lr=0.02), IMAML, {"lam": 20.0}),
        "bilevel": Row("BilevelFewShot, 20 steps, 16 tasks of 28x28", replace(maml, steps=20, lr=0.1), BilevelFewShot, {}),
        "resnet12": Row("MAML, ResNet-12, 1 step, 2 tasks of 84x84x3", WORKS["resnet12"], MAML, {}),
        "transformer": Row("MAML, transformer, 5 steps, 8 tasks", WORKS["transformer"], MAML, {}),
        "lstm": Row("MAML, LSTM, 5 steps, 4 tasks", WORKS["lstm"], MAML, {}),
        "bf16": Row("MAML, 5 steps, 16 tasks of 28x28, bf16", maml, MAML, {}, bf16=True),
    }  # fmt: skip


ROWS = _rows()


class Running:
    """A row that is built.

    Args:
        row: the row.
        exact: whether it is built in float64, on two tasks and few steps, to compare values.
    """

    def __init__(self, row: Row, exact: bool = False) -> None:
        self.row = row
        work, dtype = (reduce(row.work), torch.float64) if exact else (row.work, torch.float32)
        convert = (lambda x: x.to(dtype)) if work.backbone not in SEQUENCES else (lambda x: x)
        self.episode = Episode(*(Batch(convert(role.x), role.y) for role in noise(work)))
        backbone = network(work).to(dtype)
        self.module = row.kind(backbone, inner_steps=work.steps, inner_lr=work.lr, **row.options)
        self.module.train(row.action == "train")

    def step(self) -> None:
        """What is timed."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.row.bf16, cache_enabled=False):
            if self.row.action == "train":
                self.module.zero_grad()
                loss = self.module.training_step(self.episode, 0)
            elif self.row.action == "validate":
                with torch.no_grad():
                    self.module.validation_step(self.episode, 0)
            else:
                self.predict()
        if self.row.action == "train":
            loss.backward()

    def predict(self) -> list[Tensor]:
        """The logits of every task's queries after adaptation."""
        support, query = self.episode
        with torch.no_grad():
            return [self.module.adapt(Batch(support.x[i], support.y[i]))(query.x[i]) for i in range(len(query.x))]

    def values(self) -> Values:
        """What must not differ: the meta-gradient by tensor, or predictions."""
        if self.row.action == "train":
            return dict(self.module.meta_gradient(self.episode))
        return {f"logits {index}": logits for index, logits in enumerate(self.predict())}


def _check_origin(checkout: Path) -> None:
    """All of the package must come from this checkout, not from an installed one."""
    for name, module in list(sys.modules.items()):
        origin = getattr(module, "__file__", None)
        if name.partition(".")[0] == "metalearn" and origin and checkout not in Path(origin).resolve().parents:
            raise SystemExit(f"{name} is loaded from {origin}, but must come from {checkout}")


def _answer(request: dict[str, Any], state: dict[str, Running]) -> Any:
    """Build a row, time a step of it, or write its values to a file."""
    if request["do"] == "build":
        state.clear()
        state["row"] = Running(ROWS[request["row"]])
        return None
    if request["do"] == "write":
        torch.save(Running(ROWS[request["row"]], exact=True).values(), request["path"])
        return None
    begun = time.perf_counter()
    state["row"].step()
    return time.perf_counter() - begun


def serve(threads: int) -> None:
    """Answer one request a line until there are no more."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(threads)
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print is no reply
    state: dict[str, Running] = {}
    for line in sys.stdin:
        result = _answer(json.loads(line), state)
        print(json.dumps(result), file=replies, flush=True)


if __name__ == "__main__":
    _check_origin(Path(sys.argv[1]).resolve())
    serve(int(sys.argv[2]))
