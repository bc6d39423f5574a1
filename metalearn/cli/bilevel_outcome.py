"""What the command line says and draws when a bilevel run has ended."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from lightning.pytorch.loggers import CSVLogger

from metalearn.cli.outcome import (
    best_checkpoint,
    checkpoint_fact,
    last_checkpoint,
    oracle_calls,
    training_facts,
    wants_test,
)
from metalearn.cli.run_files import evaluation
from metalearn.modules.callbacks.measuring import folder
from metalearn.modules.hyper_cleaning import HyperCleaning
from metalearn.modules.problem_based.linear_models import LinearBilevel
from metalearn.reports.bilevel_pictures import draw_costs, draw_histogram, draw_penalties
from metalearn.reports.gallery import Gallery
from metalearn.reports.summary import print_summary
from metalearn.reports.tables import read_csv

if TYPE_CHECKING:
    from metalearn.cli.lightning_cli import MetaCLI

__all__ = ["after_fit", "after_test"]

Facts = list[tuple[str, str]]


def after_fit(cli: MetaCLI) -> None:
    """Test the checkpoint with the best validation accuracy, draw the pictures, print the summary."""
    trainer: Any = cli.trainer
    model = cli.model
    best = best_checkpoint(trainer)
    trained = trainer.global_step
    tests = wants_test(cli)
    if tests:
        path = str(best) if best is not None else None
        trainer.test(model, datamodule=cli.datamodule, ckpt_path=path, verbose=False, weights_only=True)
    where = folder(trainer)
    if not trainer.is_global_zero:
        return
    facts = _facts(model) if tests else []
    saved = best or last_checkpoint(trainer)
    facts += [*training_facts(cli, trained), *oracle_calls(model), checkpoint_fact(best, saved)]
    metrics = where / "metrics.csv"
    gallery = Gallery(where)
    _draw_learned(gallery, model, cli.datamodule)
    if isinstance(trainer.logger, CSVLogger) and metrics.is_file():
        facts.append(("metrics", str(metrics)))
        rows = read_csv(metrics)
        if any(row.get("train/loss") for row in rows):
            gallery.add("costs.png", lambda path: draw_costs(path, rows, model.run_name))
    facts += gallery.facts()
    print_summary(model.run_name, facts, [("Evaluate it again", evaluation(saved))] if saved is not None else [])


def after_test(cli: MetaCLI) -> None:
    """Print the test's numbers, and draw what was learned."""
    where = folder(cli.trainer)
    if cli.trainer.is_global_zero:
        gallery = Gallery(where)
        _draw_learned(gallery, cli.model, cli.datamodule)
        print_summary(f"test: {cli.model.run_name}", [*_facts(cli.model), *gallery.facts()])


def _facts(model: LinearBilevel) -> Facts:
    found = model.results
    if "test/acc" not in found:
        return [("test", "no example was tested")]
    facts = [("test accuracy", f"{100 * found['test/acc']:.2f} %"), ("test loss", f"{found['test/loss']:.4f}")]
    if "test/auroc" in found:
        facts.append(("AUROC", f"{found['test/auroc']:.4f} of small weights as a sign of corrupted labels"))
    return facts


def _draw_learned(gallery: Gallery, model: LinearBilevel, data: Any) -> None:
    if isinstance(model, HyperCleaning):
        weights = model.weights.float().cpu().numpy()
        wrong = np.zeros(len(weights), bool) if model.corrupted is None else model.corrupted.numpy()
        parts = {"clean labels": weights[~wrong], "corrupted labels": weights[wrong]}
        label = "learned weight of a training example"
        gallery.add("weights.png", lambda path: draw_histogram(path, parts, label, model.run_name))
        return
    values = model.x.float().cpu().numpy()
    names = getattr(data, "words", None) or [f"feature {number}" for number in range(len(values))]
    gallery.add("penalties.png", lambda path: draw_penalties(path, values, names, model.run_name))
