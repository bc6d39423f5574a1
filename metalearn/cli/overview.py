"""What ``metalearn --help`` and ``metalearn --version`` print: they read the table of commands, and import nothing heavy."""

from __future__ import annotations

import platform
from importlib import metadata

from metalearn.cli.commands import COMMANDS
from metalearn.cli.output import OPTIONS
from metalearn.cli.screen import Option, Screen, Section

__all__ = ["format_versions", "make_overview"]

TITLE = "Gradient-based meta-learning and bilevel optimisation on PyTorch Lightning."
PACKAGES = {"metalearn": "metalearn-lightning", "torch": "torch", "Lightning": "lightning"}
"""What is shown of each distribution, by the name to show."""


def make_overview() -> Screen:
    """The help of the whole command line: every command with one example."""
    groups = dict.fromkeys(command.group for command in COMMANDS.values())
    sections = [
        Section(
            group,
            [Option(name, row.text, row.example) for name, row in COMMANDS.items() if row.group == group],
        )
        for group in groups
    ]
    notes = [f"Every command takes --help, {', '.join(OPTIONS)}. metalearn --version shows the versions."]
    return Screen("metalearn COMMAND [options]", TITLE, sections, notes)


def format_versions() -> str:
    """The versions of this package, of what it stands on, and of Python; read from the packages' metadata."""
    versions = [f"{name} {_find_version(package)}" for name, package in PACKAGES.items()]
    return ", ".join([*versions, f"Python {platform.python_version()}"])


def _find_version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "(not installed)"
