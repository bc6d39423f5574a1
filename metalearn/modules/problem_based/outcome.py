"""What a module over a bilevel problem tells in a summary, and the pictures of its runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from metalearn.reports.bilevel_pictures import draw_costs, draw_histogram, draw_penalties
from metalearn.reports.facts import as_data, as_result
from metalearn.reports.outcome import Fact, Picture, RunRecord

__all__ = ["costs_picture", "list_test_facts", "penalties_picture", "weights_picture"]


def list_test_facts(results: Mapping[str, float]) -> list[Fact]:
    """The lines of a test.

    Args:
        results: by log key: ``"test/acc"``, ``"test/loss"``, and ``"test/auroc"`` where it is known which labels are wrong.
    """
    if "test/acc" not in results:
        return [Fact("test", "no example was tested", {"notes": ["no example was tested"]})]
    accuracy, loss = results["test/acc"], results["test/loss"]
    facts = [
        Fact("test accuracy", f"{100 * accuracy:.2f} %", as_result("test", "accuracy", accuracy)),
        Fact("test loss", f"{loss:.4f}", {"test": {"loss": as_data(loss)}}),
    ]
    if "test/auroc" in results:
        auroc = results["test/auroc"]
        text = f"{auroc:.4f} of small weights as a sign of corrupted labels"
        facts.append(Fact("AUROC", text, {"test": {"auroc": as_data(auroc)}}))
    return facts


def costs_picture(run: RunRecord) -> list[Picture]:
    """The losses against the oracle calls; none where nothing was trained."""
    return [Picture("costs.png", lambda path: draw_costs(path, run.rows, run.name))] if run.has_losses else []


def weights_picture(weights: Tensor, corrupted: Tensor | None, run: RunRecord) -> Picture:
    """A histogram of the weights ``[examples]``, apart for the examples whose labels are wrong, ``[examples]``."""
    values = weights.float().cpu().numpy()
    wrong = np.zeros(len(values), bool) if corrupted is None else corrupted.cpu().numpy()
    parts = {"clean labels": values[~wrong], "corrupted labels": values[wrong]}
    label = "learned weight of a training example"
    return Picture("weights.png", lambda path: draw_histogram(path, parts, label, run.name))


def penalties_picture(penalties: Tensor, run: RunRecord) -> Picture:
    """The logarithms ``[features]`` of the penalties, with the ``words`` of the data module as names where it has them."""
    values = penalties.float().cpu().numpy()
    names: Sequence[str] = getattr(run.data, "words", None) or [f"feature {number}" for number in range(len(values))]
    return Picture("penalties.png", lambda path: draw_penalties(path, values, names, run.name))
