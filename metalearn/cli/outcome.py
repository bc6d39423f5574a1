"""What the command line says and draws when a subcommand has ended."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.model_helpers import is_overridden

from metalearn.cli.run_files import evaluation, is_self_contained
from metalearn.cli.task_picture import draw_task
from metalearn.datamodules import EpisodicDataModule
from metalearn.metrics import Interval
from metalearn.modules import MetaModule
from metalearn.modules.callbacks.measuring import folder
from metalearn.modules.callbacks.saving import LastCheckpoint
from metalearn.modules.episodic.bilevel_tasks import BilevelTasks
from metalearn.modules.training.checkpoint import read_checkpoint
from metalearn.reports import pictures
from metalearn.reports.bilevel_pictures import draw_costs
from metalearn.reports.gallery import Gallery
from metalearn.reports.summary import print_summary
from metalearn.reports.tables import read_csv

if TYPE_CHECKING:
    from metalearn.cli.lightning_cli import MetaCLI

Facts = list[tuple[str, str]]


def after_fit(cli: MetaCLI) -> None:
    """Test the best checkpoint, draw the pictures, print the summary."""
    trainer: Any = cli.trainer
    model = cli.model
    best = best_checkpoint(trainer)
    facts: Facts = []
    trained = trainer.global_step
    tests = wants_test(cli)
    if tests:
        if best is not None:
            # not by trainer.test(ckpt_path=...): with averaged weights, Lightning would then restore the raw ones
            model.load_state_dict(read_checkpoint(best)["state_dict"])
        trainer.test(model, datamodule=cli.datamodule, verbose=False)
    where = folder(trainer)
    if not trainer.is_global_zero:
        return
    if tests:
        facts += _test_facts(model)
    elif _lacks_test(cli):
        facts.append(("test", "none: the data has no test_dataloader"))
    saved = best or last_checkpoint(trainer)
    facts += [*training_facts(cli, trained), *oracle_calls(model), checkpoint_fact(best, saved)]
    facts += _files(cli, where, with_curve=True, with_test=bool(tests))
    images = model.image_spec is not None
    commands = []
    if saved is not None and not _lacks_test(cli):
        commands.append(("Evaluate it again", evaluation(saved)))
        if images and is_self_contained(saved):
            commands.append(
                ("Adapt it to your own images (a sub-folder per class in SUPPORT)",
                 f"python -m metalearn predict --ckpt_path {quote(str(saved))} --support SUPPORT --query QUERIES")
            )  # fmt: skip
    print_summary(model.run_name, facts, commands)


def after_test(cli: MetaCLI) -> None:
    """Print the test's metrics and where its files are."""
    where = folder(cli.trainer)
    if cli.trainer.is_global_zero:
        tested = bool(cli.model.test_results())
        facts = _test_facts(cli.model) + _files(cli, where, with_curve=False, with_test=tested)
        print_summary(f"test: {cli.model.run_name}", facts)


def after_validate(cli: MetaCLI) -> None:
    """Print the validation metrics."""
    if cli.trainer.is_global_zero:
        found = cli.trainer.callback_metrics
        facts = [(name, f"{float(found[name]):.4f}") for name in ("val/acc", "val/loss") if name in found]
        print_summary(f"validate: {cli.model.run_name}", facts)


def after_predict(cli: MetaCLI) -> None:
    """Say where the predictions are."""
    if cli.trainer.is_global_zero:
        print_summary(f"predict: {cli.model.run_name}", [("probabilities", str(cli.predictions.path))])


def best_checkpoint(trainer: Any) -> Path | None:
    """The one with the best monitored value, if a validation has been."""
    saver = next((each for each in trainer.callbacks if isinstance(each, ModelCheckpoint) and each.monitor), None)
    return Path(saver.best_model_path) if saver is not None and saver.best_model_path else None


def last_checkpoint(trainer: Any) -> Path | None:
    """The last state, if it was saved."""
    saver = next((each for each in trainer.callbacks if isinstance(each, LastCheckpoint)), None)
    return saver.path if saver is not None and saver.path is not None and saver.path.is_file() else None


def checkpoint_fact(best: Path | None, saved: Path | None) -> tuple[str, str]:
    """Which state the run is known by."""
    if best is None and saved is not None:
        return "checkpoint", f"{saved} (the last state: no validation has chosen a better one)"
    return "checkpoint", str(saved or "none: nothing was trained, or saving is turned off")


def training_facts(cli: MetaCLI, steps: int) -> Facts:
    """How long training took; or why there was none."""
    clock, trainer = cli.clock, cli.trainer
    if clock.batches == 0:
        end = f"max_steps {trainer.max_steps}" if trainer.max_steps >= 0 else f"max_epochs {trainer.max_epochs}"
        reason = (
            f"step {steps} is at the end that {end} sets; raise it to train on" if steps else "no batch was asked for"
        )
        return [("training", f"nothing was left to train: {reason}")]
    facts = [("training", f"{steps} steps in {clock.seconds:.0f} s ({clock.training:.0f} s without validation)")]
    return facts + ([("speed", f"{clock.tasks / max(clock.training, 1e-9):.1f} tasks/s")] if clock.tasks else [])


def wants_test(cli: MetaCLI) -> bool:
    """Whether a fit ends with a test."""
    asked = cli.config[cli.subcommand]["test_after_fit"]
    data = cli.datamodule
    is_empty = isinstance(data, EpisodicDataModule) and not data.has_classes("test")
    is_empty = is_empty or _lacks_test(cli)
    return bool(asked and data is not None and not is_empty and cli.trainer.limit_test_batches != 0)


def _lacks_test(cli: MetaCLI) -> bool:
    data = cli.datamodule
    return data is not None and not is_overridden("test_dataloader", data)


def oracle_calls(model: Any) -> Facts:
    """The calls of a bilevel model; nothing for any other."""
    counts = getattr(model, "counts", None)
    if counts is None:
        return []
    return [("oracle calls", ", ".join(f"{name} {count:,}" for name, count in counts.as_dict().items()))]


def _test_facts(model: MetaModule) -> Facts:
    results = model.test_results()
    last = model.eval_inner_steps
    if not results:
        return [("test", "no task was tested")]
    if model.classifies:
        facts = [
            (
                "test accuracy",
                f"{_share(results['acc', last])}  {_over(results['acc', last])}",
            ),
            ("before adaptation", _share(results["acc", 0])),
        ]
    else:
        shown = sorted({0, 1, last})
        facts = [(f"test loss, {step} steps", _value(results["loss", step])) for step in shown]
        facts[-1] = (facts[-1][0], f"{facts[-1][1]}  {_over(results['loss', last])}")
    facts += better_steps(results, last, model.classifies)
    return [*facts, ("inner steps", f"{model.inner_steps} in training, {last} at test; batch norm '{model.norm}'")]


def better_steps(results: Mapping[tuple[str, int], Interval], last: int, classifies: bool) -> Facts:
    """The number of inner steps that is best, where the one that is reported is worse by more than both intervals.

    Args:
        results: of a test, by metric and number of steps.
        last: the number of steps that the headline is of.
        classifies: whether accuracies are compared, or losses.
    """
    kind, sign = ("acc", 1.0) if classifies else ("loss", -1.0)
    every = {step: found for (name, step), found in results.items() if name == kind}
    best = max(every, key=lambda step: sign * every[step].mean)
    gain = sign * (every[best].mean - every[last].mean)
    if not gain > max(every[best].ci95, every[last].ci95):
        return []
    found = _share(every[best]) if classifies else _value(every[best])
    if best == 0:
        return [("better without", f"{found} before adaptation: the inner steps do harm; use a smaller inner_lr")]
    steps = f"{best} inner step{'s' * (best > 1)}"
    return [("better earlier", f"{found} after {steps} of {last}: use --model.eval_inner_steps {best}")]


def _share(found: Interval) -> str:
    return f"{100 * found.mean:.2f} %" + (f" ± {100 * found.ci95:.2f}" if found.tasks > 1 else "")


def _value(found: Interval) -> str:
    return f"{found.mean:.4f}" + (f" ± {found.ci95:.4f}" if found.tasks > 1 else "")


def _over(found: Interval) -> str:
    return f"(95 % interval over {found.tasks} tasks)" if found.tasks > 1 else "(one task, so no interval)"


def _files(cli: MetaCLI, where: Path, with_curve: bool, with_test: bool) -> Facts:
    facts: Facts = []
    if with_curve and isinstance(cli.trainer.logger, CSVLogger):
        facts.append(("metrics", str(where / "metrics.csv")))
    if with_test and cli.tasks.path is not None:
        facts.append(("per-task results", str(cli.tasks.path)))
    return [*facts, *draw(cli, where, with_curve, with_test)]


def draw(cli: MetaCLI, where: Path, with_curve: bool, with_test: bool) -> Facts:
    """Draw what the run has to show: the files, and which picture could not be drawn and why."""
    model: MetaModule = cli.model
    gallery = Gallery(where)
    if with_test:
        if hasattr(cli.datamodule, "episode"):
            gallery.add("episode.png", lambda path: draw_task(path, cli.datamodule, model))
        results = model.test_results()
        kind, scale = ("acc", 100.0) if model.classifies else ("loss", 1.0)
        values = {step: scale * results[kind, step].mean for step in range(model.eval_inner_steps + 1)}
        label = "test accuracy (%)" if model.classifies else "test loss"
        gallery.add(
            "inner_steps.png", lambda path: pictures.draw_steps(path, values, model.inner_steps, label, model.run_name)
        )
    metrics = where / "metrics.csv"
    if with_curve and metrics.is_file():
        rows = read_csv(metrics)
        if any(row.get("train/loss") for row in rows):
            gallery.add("training.png", lambda path: pictures.draw_curve(path, rows, model.run_name))
            if isinstance(model, BilevelTasks):
                gallery.add("costs.png", lambda path: draw_costs(path, rows, model.run_name))
    return gallery.facts()
