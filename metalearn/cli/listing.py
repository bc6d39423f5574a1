"""``metalearn list KIND``: the configurations, models, data sets, bounds and checkpoints that there are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from metalearn.checks import find_nearest, quote_value
from metalearn.cli.light_parser import LightParser
from metalearn.cli.list_bounds import list_bounds
from metalearn.cli.list_checkpoints import list_checkpoints
from metalearn.cli.list_configs import list_configs, list_datasets, list_models
from metalearn.errors import ConfigError
from metalearn.reports.listing import Listing

__all__ = ["KINDS", "run"]

KINDS: dict[str, tuple[str, Callable[[Path], Listing]]] = {
    "configs": ("configurations that metalearn fit --config takes by name", lambda runs: list_configs()),
    "models": ("algorithms, for --model", lambda runs: list_models()),
    "datasets": ("data sets, for --data", lambda runs: list_datasets()),
    "bounds": (
        "how many oracle calls methods need in theory, and how many any method needs",
        lambda runs: list_bounds(),
    ),
    "checkpoints": ("checkpoints that are shipped, and those of your runs", list_checkpoints),
}
"""What each kind is, and what lists it; it is given the folder of the runs."""


def run(args: Sequence[str]) -> Listing:
    """List one kind of things, or the kinds.

    Raises:
        ConfigError: there is no such kind, or an option is wrong.
    """
    parser = LightParser(
        "list", "List what there is by name: configurations, models, data sets, bounds, checkpoints.",
        "  metalearn list configs\n  metalearn list checkpoints --runs runs/maml_glyphs_5w1s",
    )  # fmt: skip
    parser.add_argument("kind", nargs="?", metavar="KIND", help=f"{', '.join(KINDS)}; without it, what each is")
    parser.add_argument("--runs", metavar="DIR", help="where your runs are, for checkpoints; default: runs")
    options = parser.parse_args(args)
    if options.kind is None:
        rows = [{"kind": kind, "text": text} for kind, (text, _) in KINDS.items()]
        return Listing(
            "kinds", {"kind": "kind", "text": "what it lists"}, rows, "metalearn list KIND lists one of them."
        )
    if options.kind not in KINDS:
        near = find_nearest(options.kind, list(KINDS), 1)
        remedy = f"did you mean {near[0]}?" if near else "see metalearn list"
        raise ConfigError(f"kind is {quote_value(options.kind)}, but it must be one of {', '.join(KINDS)}; {remedy}")
    runs = Path(options.runs or "runs")
    if options.runs is not None and not runs.is_dir():
        raise ConfigError(
            f"runs is {quote_value(options.runs)}, but there is no such folder; give the folder of your runs"
        )
    return KINDS[options.kind][1](runs)
