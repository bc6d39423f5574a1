"""What a sweep leaves: a table, a picture with a slice for every option, and the best configuration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from metalearn.experiments.space import Choices, Range, Setting
from metalearn.experiments.sweep import Outcome
from metalearn.experiments.training import format_measure
from metalearn.reports.pictures import INK, pyplot, save_figure
from metalearn.reports.tables import write_atomically, write_csv
from metalearn.reports.text import escape_for_figure

__all__ = ["draw_slices", "write_best", "write_trials"]

BLUE, RED = "#2166ac", "#b2182b"
PLACES = ("ckpt_path", "run_name")


def write_trials(path: Path, outcomes: Sequence[Outcome], settings: Sequence[Setting], monitor: str) -> Path:
    """Write a row for every trial: how it ended, its best validation, and its values."""
    names = [setting.name for setting in settings]
    rows = [
        [outcome.training.home.name, outcome.state, "" if outcome.value is None else outcome.value,
         outcome.training.count_steps(), outcome.training.seconds, *(outcome.values.get(name, "") for name in names),
         str(outcome.training.run or "")]
        for outcome in outcomes
    ]  # fmt: skip
    return write_csv(path, ["trial", "state", monitor, "steps", "seconds", *names, "run"], rows)


def write_best(path: Path, best: Outcome, name: str, tests: bool) -> Path:
    """Write the configuration of the best trial, for ``metalearn fit --config``.

    Args:
        path: the YAML file.
        best: the trial.
        name: that its runs will have.
        tests: whether they end with a test.
    """
    assert best.training.run is not None
    options: dict[str, Any] = yaml.safe_load((best.training.run / "config.yaml").read_text())
    options = {key: value for key, value in options.items() if key not in PLACES}
    options["trainer"].pop("default_root_dir", None)
    options |= {"run_name": name, "test_after_fit": tests}
    reached = format_measure(best.training.monitor, best.value or 0.0)
    values = ", ".join(f"{option} {value}" for option, value in best.values.items())
    head = [
        f"# metalearn fit --config {path}",
        "#",
        f"# The best of a sweep, with {best.training.monitor} {reached}: {values}.",
    ]
    return write_atomically(path, ("\n".join(head) + "\n" + yaml.safe_dump(options, sort_keys=False)).encode())


def draw_slices(
    path: Path, outcomes: Sequence[Outcome], settings: Sequence[Setting], best: Outcome, title: str
) -> Path:
    """Draw the best validation of every trial against the value of each option, in a panel each.

    Args:
        path: the PNG file.
        outcomes: the trials.
        settings: what was tried.
        best: the best trial, which is marked.
        title: the heading.
    """
    plt = pyplot()
    monitor = best.training.monitor
    percent = 100.0 if monitor.endswith("acc") else 1.0
    shown = [outcome for outcome in outcomes if outcome.value is not None and outcome.values]
    columns = min(len(settings), 4)
    lines = -(-len(settings) // columns)
    size = (1.2 + 2.7 * columns, 0.9 + 2.6 * lines)
    figure, axes = plt.subplots(lines, columns, figsize=size, sharey=True, squeeze=False, layout="constrained")
    groups = (
        ("trained to its end", [other for other in shown if other.state == "complete"], {"color": BLUE, "s": 26}),
        ("pruned: its best until then", [other for other in shown if other.state == "pruned"],
         {"facecolors": "none", "edgecolors": "0.55", "s": 26}),
        ("best", [best], {"facecolors": "none", "edgecolors": RED, "s": 120, "linewidths": 1.8}),
    )  # fmt: skip
    for axis, setting in zip(axes.flat, settings, strict=False):
        for label, group, style in groups:
            if group:
                heights = [percent * (outcome.value or 0.0) for outcome in group]
                axis.scatter([_place(setting, outcome) for outcome in group], heights, label=label, **style)
        _scale(axis, setting)
    for axis in axes.flat[len(settings) :]:
        axis.set_visible(False)
    for row in axes:
        row[0].set_ylabel(f"best {monitor}{' (%)' if percent > 1 else ''}", color=INK)
    figure.suptitle(f"{escape_for_figure(title)}: {len(shown)} trials", fontsize=10)
    figure.legend(
        *axes.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=8
    )
    return save_figure(figure, path)


def _place(setting: Setting, outcome: Outcome) -> float:
    text = outcome.values[setting.name]
    return setting.texts.index(text) if isinstance(setting, Choices) else float(text)


def _scale(axis: Any, setting: Setting) -> None:
    """Label an axis by its option; listed values stand side by side."""
    axis.set_xlabel(escape_for_figure(setting.name), color=INK)
    axis.grid(axis="y", color="0.92")
    axis.set_axisbelow(True)
    if isinstance(setting, Range):
        if setting.is_log:
            _scale_log(axis, setting)
        return
    count = len(setting.texts)
    labels = [escape_for_figure(text if len(text) <= 14 else f"{text[:12]}...") for text in setting.texts]
    turned = {"rotation": 30, "ha": "right"} if sum(map(len, labels)) > 22 else {}
    axis.set_xticks(range(count), labels, **turned)
    axis.set_xlim(-0.5, count - 0.5)


def _scale_log(axis: Any, setting: Range) -> None:
    """Show the whole range, with as many labels as there is room for."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_xscale("log")
    axis.set_xlim(setting.low / 1.15, setting.high * 1.15)
    is_wide = setting.high / setting.low >= 100
    axis.xaxis.set_major_locator(LogLocator(subs=(1.0,) if is_wide else (1.0, 2.0, 5.0)))
    axis.xaxis.set_major_formatter(lambda value, place: f"{value:g}")
    axis.xaxis.set_minor_formatter(NullFormatter())
