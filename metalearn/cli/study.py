"""``python -m metalearn study NAME``: a study, from its runs to a table and a picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from metalearn.checks import find_nearest
from metalearn.cli.parser import Parser
from metalearn.errors import ConfigError
from metalearn.reports.outcome import Fact
from metalearn.reports.summary import Summary

__all__ = ["STUDIES", "run"]


def _hyper_cleaning() -> Callable[..., list[Path]]:
    from metalearn.studies.hyper_cleaning import study_hyper_cleaning

    return study_hyper_cleaning


def _newsgroups() -> Callable[..., list[Path]]:
    from metalearn.studies.newsgroups import study_newsgroups

    return study_newsgroups


def _few_shot() -> Callable[..., list[Path]]:
    from metalearn.studies.few_shot import study_few_shot

    return study_few_shot


def _step_size() -> Callable[..., list[Path]]:
    from metalearn.studies.step_size import study_step_size

    return study_step_size


def _inner_steps() -> Callable[..., list[Path]]:
    from metalearn.studies.inner_steps import study_inner_steps

    return study_inner_steps


def _geometry() -> Callable[..., list[Path]]:
    from metalearn.studies.geometry import study_geometry

    return study_geometry


def _batch_size() -> Callable[..., list[Path]]:
    from metalearn.studies.batch_size import study_batch_size

    return study_batch_size


STUDIES = {
    "hyper_cleaning": _hyper_cleaning, "newsgroups": _newsgroups, "few_shot": _few_shot, "inner_steps": _inner_steps,
    "step_size": _step_size, "geometry": _geometry,
    "batch_size": _batch_size,
}  # fmt: skip
"""What loads each study, since only the one that runs is needed."""


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
    study = STUDIES[name]()
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
