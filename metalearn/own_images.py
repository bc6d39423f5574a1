"""``predict --ckpt_path CKPT --support FOLDER --query FOLDER``: adapt a checkpoint to a user's own classes."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch

from metalearn.datamodules.folder import read_queries, read_support
from metalearn.datamodules.images import ImageSpec, to_float
from metalearn.episode import Batch
from metalearn.errors import CheckpointError, ConfigError
from metalearn.modules import MetaModule
from metalearn.modules.checkpoint import KEY, read_checkpoint
from metalearn.reports.pictures import draw_predictions
from metalearn.reports.summary import print_summary
from metalearn.reports.tables import write_csv

__all__ = ["load_module", "predict"]


class _Arguments(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"predict with --support: {message}; see python -m metalearn predict --support X --help")


def predict(args: Sequence[str]) -> None:
    """Adapt to the support folder, classify the query folder, and write a table and a picture.

    Raises:
        MetalearnError: a folder, an image or the checkpoint cannot be used.
    """
    parser = _Arguments(prog="metalearn predict", description="Adapt a checkpoint to your own classes of images.")
    parser.add_argument("--ckpt_path", required=True, help="the checkpoint")
    parser.add_argument("--support", required=True, type=Path, help="labelled images: a sub-folder per class")
    parser.add_argument("--query", required=True, type=Path, help="images to classify")
    parser.add_argument("--output", type=Path, default=Path("predictions"), help="the folder to write to")
    given = parser.parse_args(list(args))
    module, spec = load_module(given.ckpt_path)
    images, labels, names = read_support(given.support, spec)
    queries, paths = read_queries(given.query, spec)
    outputs = module.count_outputs(to_float(images[:2], spec))
    if len(names) > outputs:
        raise ConfigError(
            f"{given.support} has {len(names)} classes, but the checkpoint tells {outputs} apart; remove class folders, or "
            "train with more ways"
        )
    adapted = module.adapt(Batch(to_float(images, spec), torch.from_numpy(labels)))
    logits = adapted(to_float(queries, spec))[:, : len(names)]
    shares = logits.softmax(-1).numpy()
    best = shares.argmax(-1)
    chosen = [names[index] for index in best]
    rows = ([str(path), name, *map(float, row)] for path, name, row in zip(paths, chosen, shares, strict=True))
    table = write_csv(given.output / "predictions.csv", ["image", "predicted", *names], rows)
    picture = draw_predictions(
        given.output / "predictions.png",
        queries,
        chosen,
        list(shares[np.arange(len(best)), best]),
        f"adapted to {given.support}",
    )
    print_summary(
        "predict",
        [
            ("support", f"{len(labels)} images of {len(names)} classes: {', '.join(names)}"),
            ("queries", str(len(paths))),
            ("probabilities", str(table)),
            ("picture", str(picture)),
        ],
    )


def load_module(path: str | Path) -> tuple[MetaModule, ImageSpec]:
    """The module of a checkpoint, in ``eval()`` on the CPU, and how it reads images.

    Raises:
        CheckpointError: the checkpoint cannot be read, is of a foreign class, or was not trained on images.
    """
    ours = read_checkpoint(path).get(KEY, {})
    name = str(ours.get("class_path", ""))
    if not name.startswith("metalearn."):
        raise CheckpointError(
            f"checkpoint {path} is of {name or 'no class of ours'}, which is not built from a file unasked; use "
            "YourModule.load_from_checkpoint(path) and its adapt()"
        )
    if not ours.get("image_spec"):
        raise CheckpointError(
            f"checkpoint {path} does not say how its images are read, so it was not trained on images by a data module of ours; "
            "use load_from_checkpoint(path) and adapt() with your own tensors"
        )
    owner, _, attribute = name.rpartition(".")
    kind = getattr(importlib.import_module(owner), attribute)
    module: MetaModule = kind.load_from_checkpoint(path, map_location="cpu")
    return module.eval(), ImageSpec.from_dict(ours["image_spec"])
