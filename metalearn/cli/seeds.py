"""``metalearn seeds CONFIG --seeds 5``: the same training from several seeds, side by side."""

from __future__ import annotations

from collections.abc import Sequence

from metalearn.checks import quote_value
from metalearn.cli.repeated_options import Options, read_request
from metalearn.errors import ConfigError
from metalearn.reports.summary import Report

__all__ = ["read_seeds", "run"]

TEXT = """Train and test a configuration from several seeds, several at a time.

A seed sets the initial weights and the training tasks. The validation and test
tasks are the same for all seeds. The result is the mean over seeds with its
95 % interval (Student's t), and the standard deviation between seeds."""
EPILOG = """examples:
  metalearn seeds maml_glyphs_5w1s --seeds 5
  metalearn seeds maml_omniglot_5w1s --seeds 3,7,11 --data.root DIR

CONFIG is the name of a shipped configuration, or a file. Without it, it is that
of metalearn fit. All other options are those of metalearn fit, and go to every
training. Ctrl-C saves all of them, and the same command goes on. A command with
more seeds keeps those that are done."""
MOST_SEEDS = 10_000


def run(args: Sequence[str]) -> Report:
    """Run one training from every seed, and write what they come to.

    Raises:
        MetalearnError: an option or the data is wrong, or a training has failed.
    """
    parser = Options("seeds", TEXT, EPILOG)
    text = "how many seeds, or a list such as 3,7,11; default: 5, which are 0 to 4"
    parser.add_argument("--seeds", metavar="SEEDS", default="5", help=text)
    request = read_request(parser, args)
    seeds = read_seeds(request.options.seeds)
    from metalearn.cli.seed_runs import run_seeds  # torch is loaded once the options are known to be right

    return run_seeds(request, seeds)


def read_seeds(text: str) -> list[int]:
    """The seeds that ``5`` or ``3,7,11`` stands for.

    Raises:
        ConfigError: it is neither.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise ConfigError(
            f"seeds is {quote_value(text)}, but it must be a number of seeds, or a list of them; write --seeds 5 or "
            "--seeds 3,7,11"
        )
    numbers = [int(part) for part in parts]
    seeds = list(range(min(numbers[0], MOST_SEEDS + 1))) if len(numbers) == 1 else numbers
    if not 1 <= len(seeds) <= MOST_SEEDS:
        raise ConfigError(f"seeds is {quote_value(text)}, but there must be from 1 to {MOST_SEEDS:,}; write --seeds 5")
    if len(set(seeds)) < len(seeds):
        twice = next(seed for seed in seeds if seeds.count(seed) > 1)
        raise ConfigError(f"seeds is {text}, but {twice} stands in it twice; leave one of them out")
    if max(seeds) >= 2**32:
        raise ConfigError(f"seeds is {text}, but a seed must be less than 2^32 = 4294967296; use a smaller one")
    return seeds
