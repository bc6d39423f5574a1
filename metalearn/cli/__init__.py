"""The command line. The library imports none of it."""

from __future__ import annotations

from collections.abc import Sequence

from metalearn.cli.owners import report_other_owners
from metalearn.early_signals import end_quietly_on_signals

__all__ = ["main"]


def main(args: Sequence[str] | None = None) -> None:
    """Run one command, such as ``main(["fit", "--config", "maml_omniglot_5w1s"])``; see :func:`metalearn.cli.entry.main`.

    Args:
        args: what follows ``python -m metalearn``; ``None`` for the process's own arguments.
    """
    if args is None:
        end_quietly_on_signals()  # before the imports that take long
        report_other_owners()
    from metalearn.cli import entry

    entry.main(args)
