"""The command line; the library imports none of it but what a signal during the imports needs."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["main"]


def main(args: Sequence[str] | None = None) -> None:
    """Run one command, such as ``main(["fit", "--config", "maml_omniglot_5w1s"])``; see :func:`metalearn.cli.entry.main`.

    Args:
        args: what follows ``python -m metalearn``; ``None`` for the process's own arguments.
    """
    from metalearn.cli import entry  # Lightning and all modules: seconds

    entry.main(args)
