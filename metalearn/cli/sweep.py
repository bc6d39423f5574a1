"""``metalearn sweep CONFIG --set model.inner_lr=0.1,0.4``: trainings that differ in some options, and the best of them."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from metalearn.cli.repeated_options import Options, read_count, read_request
from metalearn.errors import ConfigError
from metalearn.experiments.space import list_combinations, read_settings
from metalearn.reports.summary import Report

__all__ = ["run"]

TEXT = """Train a configuration with several values of some options, and find the best.

Trials are compared by the best validation of each, never by the test. The
measure is the one that chooses best.ckpt, such as val/acc. A training whose
validations stay below the median of the others at the same step is pruned."""
EPILOG = """examples:
  metalearn sweep maml_glyphs_5w1s --set model.inner_steps=1,3,5
  metalearn sweep maml_glyphs_5w1s --set model.initial_inner_lr=log:0.01..1 \\
      --set model.inner_steps=1..5 --trials 30 --test

VALUES is a list such as 0.1,0.4, or a range. 0.1..0.9 is a range of numbers,
1..5 of whole numbers, and log:0.001..1 one in which each factor is as likely.
Lists alone are tried in all combinations. With a range, Optuna's TPE chooses.

CONFIG is the name of a shipped configuration, or a file. Without it, it is that
of metalearn fit. All other options are those of metalearn fit, and go to every
training. Ctrl-C saves all of them, and the same command goes on."""
TRIALS = 20


def run(args: Sequence[str]) -> Report:
    """Run a sweep, and write what it has found.

    Raises:
        MetalearnError: an option or the data is wrong, or no training has ended well.
        ModuleNotFoundError: Optuna is not installed.
    """
    parser = Options("sweep", TEXT, EPILOG)
    parser.add_argument(
        "--set", metavar="OPTION=VALUES", action="append", help="values of an option; may stand several times"
    )
    parser.add_argument("--trials", metavar="N", help=f"how many trials, where there is a range; default: {TRIALS}")
    parser.add_argument("--no_pruning", action="store_true", help="train every trial to its end")
    parser.add_argument("--test", action="store_true", help="test the best checkpoint once, at the end")
    request = read_request(parser, args, {"test_after_fit": "add --test to test the best trial"})
    settings = read_settings(request.options.set or [])
    for setting in settings:
        if setting.name in request.set_names:
            raise ConfigError(f"option --{setting.name} is given for all trials and in --set; leave one of them out")
    trials = request.options.trials
    if list_combinations(settings) is not None and trials is not None:
        raise ConfigError(
            f"trials is {trials}, but lists alone are tried in all combinations; leave --trials out, or give a range"
        )
    count = TRIALS if trials is None else read_count("trials", trials)
    if find_spec("optuna") is None:
        raise ModuleNotFoundError(
            "a sweep needs Optuna, which is not installed; pip install 'metalearn-lightning[sweep]'"
        )
    from metalearn.cli.sweep_runs import run_sweep  # torch is loaded once the options are known to be right

    return run_sweep(request, settings, count)
