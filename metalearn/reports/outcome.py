"""What a module offers to the command line: facts for the summary, pictures, and which checkpoint is its best."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

__all__ = ["Fact", "Facts", "Picture", "ReportsOutcome", "RunRecord", "Stage"]


@dataclass(frozen=True)
class Fact:
    """A line of a summary, and what it says as data.

    Attributes:
        name: what stands on the left.
        text: what stands on the right.
        data: the same for programs, as a part of :meth:`Summary.as_dict <metalearn.reports.summary.Summary.as_dict>`.

    Example:
        >>> from metalearn.reports.outcome import Fact
        >>> Fact("test accuracy", "91.74 %", {"test": {"accuracy": 0.9174}}).text
        '91.74 %'
    """

    name: str
    text: str
    data: Mapping[str, Any] = field(default_factory=dict)


Facts = Sequence[Fact | tuple[str, str]]
"""Lines of a summary. A pair of a name and a value stands for a fact whose data are that pair."""
Stage = Literal["fit", "test"]


class Picture(NamedTuple):
    """A picture that is drawn when a run has ended.

    Attributes:
        name: the name of its file, such as ``"costs.png"``.
        draw: draws into the path that it is given, and returns that path; ``None`` where there is nothing to draw.

    Example:
        >>> from metalearn.reports.outcome import Picture
        >>> def draw(path):
        ...     path.write_bytes(b"")
        ...     return path
        >>> Picture("costs.png", draw).name
        'costs.png'
    """

    name: str
    draw: Callable[[Path], Path | None]


@dataclass(frozen=True)
class RunRecord:
    """What the pictures of a run are drawn from.

    Attributes:
        name: the name of the run, for titles.
        data: the data module, if there is one.
        tested: whether a test has just ended.
        rows: the rows of ``metrics.csv``, each a mapping from column to text; empty where the run has only evaluated.

    Example:
        >>> from metalearn.reports.outcome import RunRecord
        >>> RunRecord("mine", rows=[{"step": "1", "train/loss": "0.7"}]).has_losses
        True
    """

    name: str
    data: Any = None
    tested: bool = False
    rows: Sequence[Mapping[str, str]] = ()

    @property
    def has_losses(self) -> bool:
        """Whether a training loss was logged."""
        return any(row.get("train/loss") for row in self.rows)


@runtime_checkable
class ReportsOutcome(Protocol):
    """A LightningModule that joins the summary and the pictures of the command line. It needs no base class of ours.

    What one of the two methods raises, or gives in another form, is said in one line of the summary. The run stays whole.

    These further members are optional, and only looked at where the two methods are there:

    - ``checkpoint_monitor``: the metric and ``"max"`` or ``"min"``, such as ``("val/acc", "max")``. The checkpoint with the best
      value is saved as ``best.ckpt``, and is the one that is tested after training. Without it there is ``last.ckpt`` alone.
    - ``log_keys``: the names that it logs; a callback that monitors another name is refused. ``None`` if they are not known.
    - ``outer_optimizer``, ``outer_scheduler``: functions of parameters, and of the optimiser; tried before a run begins.
    - ``run_name``, ``run_config``: where they are there, they are set to the run's name and its configuration as YAML text.
    - ``image_spec``: how images are read, if it adapts to images; then the summary names the command for a user's own.
    - ``test_table(index)``: header and rows of ``test_tasks.csv`` for a test loader. With it, ``predict_step`` gives one
      ``[queries, outputs]`` tensor a task, and ``predictions.csv`` is written of them.
    - ``check_checkpoint(checkpoint, trainer, trains)``: raises before anything is written if the run cannot go on from there.

    Example:
        >>> from metalearn.reports.outcome import ReportsOutcome
        >>> class Mine:
        ...     def summary_facts(self, stage):
        ...         return [("classes", "5")]
        ...     def pictures(self, run):
        ...         return []
        >>> isinstance(Mine(), ReportsOutcome)
        True
    """

    def summary_facts(self, stage: Stage) -> Facts:
        """Lines of the summary.

        Args:
            stage: ``"test"`` for what the last test has measured, ``"fit"`` for what training has cost.
        """

    def pictures(self, run: RunRecord) -> list[Picture]:
        """The pictures of a run that has trained, or was tested."""
