"""The lines that a module offers to the summary, of which none can cost the summary."""

from __future__ import annotations

from metalearn.reports.outcome import Fact, ReportsOutcome, Stage

__all__ = ["collect_facts", "describe_error"]


def collect_facts(module: object, stage: Stage) -> list[Fact]:
    """The module's ``summary_facts(stage)``, values of any type as text; one line that says why where there are none.

    The numbers that a run has printed and saved so far are worth more than the lines of one method. A module that is no
    :class:`~metalearn.reports.outcome.ReportsOutcome` has none.
    """
    if not isinstance(module, ReportsOutcome):
        return []
    try:
        return [_read_fact(fact) for fact in _read_list(module.summary_facts(stage))]
    except Exception as error:
        text = f"summary_facts({stage!r}) gave none ({describe_error(error)})"
        return [Fact("no facts", text, {"notes": [text]})]


def describe_error(error: Exception) -> str:
    """Its type and its text in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _read_list(facts: object) -> list[object]:
    if isinstance(facts, (str, dict)) or not hasattr(facts, "__iter__"):
        raise TypeError(f"it returned {type(facts).__name__}, but it must return a list of pairs (name, value)")
    return list(facts)


def _read_fact(fact: object) -> Fact:
    if isinstance(fact, Fact):
        return fact
    if not isinstance(fact, (tuple, list)) or len(fact) != 2:
        raise TypeError(f"one of its lines is {fact!r}, but it must be a pair (name, value)")
    name, value = fact
    return Fact(
        str(name), str(value), {"facts": {str(name): value if isinstance(value, (bool, int, float)) else str(value)}}
    )
