"""``python -m metalearn study NAME``: a study, from its runs to a table and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

import torch

from metalearn.checks import find_nearest
from metalearn.cli.parser import Parser
from metalearn.errors import ConfigError
from metalearn.reports.outcome import Fact
from metalearn.reports.summary import Summary

__all__ = ["STUDIES", "run"]


STUDIES = ("hyper_cleaning", "newsgroups", "few_shot", "inner_steps", "step_size", "geometry", "batch_size")
"""The studies: ``study_NAME`` in the file ``NAME`` of ``metalearn.studies``, which is imported only when it runs."""


def run(args: Sequence[str]) -> Summary | None:
    """Run one study; its options are its function's arguments.

    Raises:
        MetalearnError: an argument or the data is wrong.
    """
    name, *options = args or ["--help"]
    if name in ("-h", "--help"):
        print(f"usage: metalearn study NAME [options]\n\nNAME is one of: {', '.join(STUDIES)}\n\n"
              "python -m metalearn study NAME --help shows the options of one of them.")  # fmt: skip
        return None
    if name not in STUDIES:
        near = find_nearest(name, list(STUDIES), 1)
        remedy = f"did you mean {near[0]}?" if near else "see metalearn study --help"
        raise ConfigError(f"study is {name!r}, but it must be one of {', '.join(STUDIES)}; {remedy}")
    study = getattr(import_module(f"metalearn.studies.{name}"), f"study_{name}")
    parser = Parser(
        prog=f"metalearn study {name}",
        description="A study, from its runs to a table and pictures.",
    )
    parser.add_argument("--threads", type=int, default=1, help="of torch; 1 so that seconds compare")
    parser.add_function_arguments(study, fail_untyped=True)
    config = parser.parse_args(options)
    if config.threads < 1:
        raise ConfigError(f"threads is {config.threads}, but it must be at least 1; use --threads 1")
    before = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    try:
        arguments = parser.instantiate_classes(config).as_dict()
        files = study(**{key: value for key, value in arguments.items() if key not in ("threads", "config")})
    finally:
        torch.set_num_threads(before)
    facts = [Fact("" if number else "files", str(path), {"files": [str(path)]}) for number, path in enumerate(files)]
    return Summary(f"study {name}", facts, data={"command": "study", "name": name})
