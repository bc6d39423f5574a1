"""What a function of a formula states: read from its docstring, so that it is said once."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from metalearn.docstrings import read_arguments

__all__ = ["Statement", "Status"]

Status = Literal["verified", "derived here", "recalled"]


@dataclass(frozen=True)
class Statement:
    """A formula of the theory, with its source and how far it is checked.

    Attributes:
        function: the function that computes it. Its docstring holds the formula and the source.
        check: the test that holds it, as pytest names it; ``None`` where there is none.

    Example:
        >>> from metalearn.theory import statement
        >>> print(statement("inner_step_limit"))
        inner_step_limit (verified)
        Compute the step size from which gradient descent diverges.
        formula: 2/L
        L: the smoothness of the loss, its Hessian's largest eigenvalue.
        source: exact for a quadratic (Polyak 1987)
        code: metalearn.theory.quadratics.inner_step_limit
        check: tests/theory/test_quadratics.py::test_the_step_size_from_which_gradient_descent_diverges
    """

    function: Callable[..., Any]
    check: str | None = None

    @property
    def name(self) -> str:
        """The name of the function."""
        return self.function.__name__

    @property
    def code(self) -> str:
        """The dotted name of the function."""
        return f"{self.function.__module__}.{self.name}"

    @property
    def states(self) -> str:
        """What it states, in one sentence."""
        return _plain(self._paragraphs[0])

    @property
    def formula(self) -> str:
        """The formula, as text."""
        return _plain(self._paragraphs[1])

    @property
    def symbols(self) -> dict[str, str]:
        """What each argument of the function is."""
        return {name: _plain(text) for name, text in read_arguments(self.function.__doc__ or "").items()}

    @property
    def source(self) -> str:
        """Where it comes from."""
        (text,) = (part for part in self._paragraphs if part.startswith("Source: "))
        return _plain(text.removeprefix("Source: ")).removesuffix(".")

    @property
    def status(self) -> Status:
        """``verified``: a test holds it. ``derived here``: it is ours, without a test. ``recalled``: from memory."""
        if self.check is not None:
            return "verified"
        return "derived here" if "derived here" in self.source else "recalled"

    def __str__(self) -> str:
        """All of it, a line each."""
        symbols = [f"{name}: {text}" for name, text in self.symbols.items()]
        lines = [f"{self.name} ({self.status})", self.states, f"formula: {self.formula}", *symbols]
        lines += [f"source: {self.source}", f"code: {self.code}"]
        return "\n".join([*lines, *([f"check: {self.check}"] if self.check else [])])

    @cached_property
    def _paragraphs(self) -> list[str]:
        text = inspect.cleandoc(self.function.__doc__ or "")
        return [" ".join(part.split()) for part in text.split("\n\n")]


def _plain(text: str) -> str:
    """A text without the marks of code and of links."""
    return re.sub(r":\w+:`~?([^`]*)`", r"\1", text).replace("``", "")
