"""What ``metalearn --help`` and ``metalearn --version`` print: they read the table of commands, and import nothing heavy."""

from __future__ import annotations

import platform
from importlib import metadata

from metalearn.cli.commands import COMMANDS
from metalearn.cli.output import OPTIONS

__all__ = ["format_overview", "format_versions"]

TITLE = "Gradient-based meta-learning and bilevel optimisation on PyTorch Lightning."
PACKAGES = {"metalearn": "metalearn-lightning", "torch": "torch", "Lightning": "lightning"}
"""What is shown of each distribution, by the name to show."""


def format_overview() -> str:
    """The help of the whole command line: every command with one example."""
    lines = ["usage: metalearn COMMAND [options]", "", TITLE]
    indent = max(map(len, COMMANDS)) + 4
    for group in dict.fromkeys(command.group for command in COMMANDS.values()):
        lines += ["", f"{group}:"]
        for name, command in COMMANDS.items():
            if command.group == group:
                lines += [f"  {name}".ljust(indent) + command.text, " " * indent + command.example]
    lines += ["", "With every command:", *(f"  {name:<11}{text}" for name, text in OPTIONS.items())]
    lines += ["", "metalearn COMMAND --help shows its options, metalearn --version the versions."]
    return "\n".join(lines)


def format_versions() -> str:
    """The versions of this package, of what it stands on, and of Python; read from the packages' metadata."""
    versions = [f"{name} {_find_version(package)}" for name, package in PACKAGES.items()]
    return ", ".join([*versions, f"Python {platform.python_version()}"])


def _find_version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "(not installed)"
