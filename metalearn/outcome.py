"""What the command line says and draws when a subcommand has ended."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from metalearn.metrics import Interval
from metalearn.modules import MetaModule
from metalearn.modules.bilevel_tasks import BilevelTasks
from metalearn.modules.callbacks import folder
from metalearn.modules.checkpoint import read_checkpoint
from metalearn.reports import pictures
from metalearn.reports.bilevel_pictures import draw_costs
from metalearn.reports.summary import print_summary
from metalearn.reports.tables import read_csv

if TYPE_CHECKING:
    from metalearn.cli import MetaCLI

Facts = list[tuple[str, str]]


def after_fit(cli: MetaCLI) -> None:
    """Test the best checkpoint, draw the pictures, print the summary."""
    trainer: Any = cli.trainer
    model = cli.model
    best = best_checkpoint(trainer)
    steps = trainer.global_step
    facts: Facts = []
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
    clock = cli.clock
    facts += [
        ("training", f"{steps} steps in {clock.seconds:.0f} s ({clock.training:.0f} s without validation)"),
        ("speed", f"{clock.tasks / max(clock.training, 1e-9):.1f} tasks/s"),
        *oracle_calls(model),
        ("checkpoint", str(best or "none: the run ended before the first validation")),
    ]
    facts += _files(cli, where, with_curve=True, with_test=bool(tests))
    images = model.image_spec is not None
    commands = []
    if best is not None:
        commands.append(("Evaluate it again", f"python -m metalearn test --ckpt_path {best}"))
        if images:
            commands.append(
                ("Adapt it to your own images (a sub-folder per class in SUPPORT)",
                 f"python -m metalearn predict --ckpt_path {best} --support SUPPORT --query QUERIES")
            )  # fmt: skip
    print_summary(model.run_name, facts, commands)


def after_test(cli: MetaCLI) -> None:
    """Print the test's metrics and where its files are."""
    where = folder(cli.trainer)
    if cli.trainer.is_global_zero:
        facts = _test_facts(cli.model) + _files(cli, where, with_curve=False, with_test=True)
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


def wants_test(cli: MetaCLI) -> bool:
    """Whether a fit ends with a test."""
    asked = cli.config[cli.subcommand]["test_after_fit"]
    return bool(asked and cli.datamodule is not None and not cli.trainer.interrupted)


def oracle_calls(model: Any) -> Facts:
    """The calls of a bilevel model; nothing for any other."""
    counts = getattr(model, "counts", None)
    if counts is None:
        return []
    return [("oracle calls", ", ".join(f"{name} {count:,}" for name, count in counts.as_dict().items()))]


def _test_facts(model: MetaModule) -> Facts:
    results = model.test_results()
    last = model.eval_inner_steps
    if model.classifies:
        facts = [
            (
                "test accuracy",
                f"{_share(results['acc', last])}  (95 % interval over {results['acc', last].tasks} tasks)",
            ),
            ("before adaptation", _share(results["acc", 0])),
        ]
    else:
        shown = sorted({0, 1, last})
        facts = [
            (f"test loss, {step} steps", f"{results['loss', step].mean:.4f} ± {results['loss', step].ci95:.4f}")
            for step in shown
        ]
        facts[-1] = (facts[-1][0], f"{facts[-1][1]}  (95 % interval over {results['loss', last].tasks} tasks)")
    return [*facts, ("inner steps", f"{model.inner_steps} in training, {last} at test; batch norm '{model.norm}'")]


def _share(found: Interval) -> str:
    return f"{100 * found.mean:.2f} % ± {100 * found.ci95:.2f}"


def _files(cli: MetaCLI, where: Path, with_curve: bool, with_test: bool) -> Facts:
    facts: Facts = []
    if with_curve and isinstance(cli.trainer.logger, CSVLogger):
        facts.append(("metrics", str(where / "metrics.csv")))
    if with_test and cli.tasks.path is not None:
        facts.append(("per-task results", str(cli.tasks.path)))
    drawn = draw(cli, where, with_curve, with_test)
    return [*facts, *((("pictures" if not i else ""), str(path)) for i, path in enumerate(drawn))]


def draw(cli: MetaCLI, where: Path, with_curve: bool, with_test: bool) -> list[Path]:
    """Draw what the run has to show, and return the files."""
    model: MetaModule = cli.model
    drawn: list[Path] = []
    if with_test:
        if cli.datamodule is not None and hasattr(cli.datamodule, "episode"):
            drawn.append(_draw_task(cli.datamodule, model, where))
        results = model.test_results()
        kind, scale = ("acc", 100.0) if model.classifies else ("loss", 1.0)
        values = {step: scale * results[kind, step].mean for step in range(model.eval_inner_steps + 1)}
        label = "test accuracy (%)" if model.classifies else "test loss"
        drawn.append(pictures.draw_steps(where / "inner_steps.png", values, model.inner_steps, label, model.run_name))
    metrics = where / "metrics.csv"
    if with_curve and metrics.is_file():
        rows = read_csv(metrics)
        if any(row.get("train/loss") for row in rows):
            drawn.append(pictures.draw_curve(where / "training.png", rows, model.run_name))
            if isinstance(model, BilevelTasks):
                drawn.append(draw_costs(where / "costs.png", rows, model.run_name))
    return drawn


def _draw_task(data: Any, model: MetaModule, where: Path) -> Path:
    episode = data.episode(data.seed, "test", 0)
    support, query = (type(role)(role.x.to(model.device), role.y.to(model.device)) for role in episode[:2])
    if not model.classifies:
        fits = {}
        for step in sorted({0, 1, model.eval_inner_steps}):
            fits[step] = model.adapt(support, steps=step)(query.x).float().cpu().numpy().ravel()
        points = [(role.x.numpy().ravel(), role.y.numpy().ravel()) for role in episode]
        return pictures.draw_sinusoid(where / "episode.png", points[0], points[1], fits, model.run_name)
    ways = int(episode.support.y.max()) + 1
    logits = model.adapt(support, ways=ways)(query.x)
    names = [str(way) for way in range(ways)]
    return pictures.draw_episode(
        where / "episode.png",
        episode.support.x.numpy(),
        episode.support.y.numpy(),
        episode.query.x.numpy(),
        episode.query.y.numpy(),
        logits.argmax(-1).cpu().numpy(),
        names,
        title=f"{model.run_name}: test task 0",
    )
