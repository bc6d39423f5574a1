"""All statements of the theory: which function computes each, and which test holds it."""

from __future__ import annotations

from functools import cache

from metalearn.bilevel import heavy_ball, inner_steps, nesterov, shrinking_sizes, smoothness_of_phi
from metalearn.checks import check_choice
from metalearn.reports.listing import Listing
from metalearn.theory.anil import anil_contraction, anil_convex_step, anil_nonconvex_step
from metalearn.theory.bilevel import bio_outer_step, itd_bias, neumann_bias, pzobo_error
from metalearn.theory.formulas import Statement
from metalearn.theory.maml import (
    gradient_factor,
    inner_growth,
    maml_divergence_step,
    maml_inner_step,
    meta_smoothness,
    outer_step,
)
from metalearn.theory.quadratics import (
    accelerated_contraction,
    best_step,
    cg_error,
    contraction,
    heavy_ball_contraction,
    inner_step_limit,
)

__all__ = ["statement", "statement_table", "statements"]

MAML, QUADRATICS = "tests/theory/test_maml.py::", "tests/theory/test_quadratics.py::"
PHI, BILEVEL = "tests/theory/test_phi.py::", "tests/theory/test_bilevel.py::"
BOUNDARY = "tests/theory/test_boundary.py::"


@cache
def statements() -> tuple[Statement, ...]:
    """List every statement of the theory: multi-step MAML, ANIL, solvers on quadratics, bilevel optimisation.

    Example:
        >>> from metalearn.theory import statements
        >>> [each.name for each in statements()][:2]
        ['maml_inner_step', 'inner_growth']
        >>> {each.status for each in statements()} <= {"verified", "derived here", "recalled"}
        True
    """
    return (
        Statement(maml_inner_step),
        Statement(inner_growth, f"{MAML}test_how_far_inner_steps_stretch_a_distance"),
        Statement(gradient_factor, f"{MAML}test_the_bound_is_attained_on_its_worst_case"),
        Statement(meta_smoothness, f"{MAML}test_the_bound_holds_on_random_problems"),
        Statement(outer_step, f"{MAML}test_an_outer_step_lowers_the_meta_objective"),
        Statement(maml_divergence_step, f"{BOUNDARY}test_training_diverges_where_it_is_predicted"),
        Statement(anil_convex_step),
        Statement(anil_contraction, f"{QUADRATICS}test_what_the_step_of_anil_contracts"),
        Statement(anil_nonconvex_step),
        Statement(inner_step_limit, f"{QUADRATICS}test_the_step_size_from_which_gradient_descent_diverges"),
        Statement(contraction, f"{QUADRATICS}test_gradient_descent_contracts_as_predicted"),
        Statement(best_step, f"{QUADRATICS}test_no_step_size_contracts_faster_than_the_best"),
        Statement(nesterov, f"{QUADRATICS}test_nesterov_stays_below_its_bound"),
        Statement(accelerated_contraction, f"{QUADRATICS}test_nesterov_stays_below_its_bound"),
        Statement(heavy_ball, f"{QUADRATICS}test_the_heavy_ball_contracts_as_predicted"),
        Statement(heavy_ball_contraction, f"{QUADRATICS}test_the_heavy_ball_contracts_as_predicted"),
        Statement(cg_error, f"{QUADRATICS}test_conjugate_gradients_stay_below_their_bound"),
        Statement(inner_steps, f"{QUADRATICS}test_how_many_steps_a_factor_takes"),
        Statement(smoothness_of_phi, f"{PHI}test_the_bound_holds_on_random_problems"),
        Statement(bio_outer_step),
        Statement(itd_bias, f"{BILEVEL}test_the_error_that_itd_keeps"),
        Statement(neumann_bias, f"{BILEVEL}test_the_bias_of_the_series"),
        Statement(shrinking_sizes),
        Statement(pzobo_error, f"{BILEVEL}test_the_error_of_pzobo"),
    )


def statement(name: str) -> Statement:
    """Look a statement up by the name of its function.

    Args:
        name: the name, such as ``meta_smoothness``.

    Raises:
        ConfigError: there is no such statement.

    Example:
        >>> from metalearn.theory import statement
        >>> print(statement("inner_step_limit").formula)
        2/L
    """
    known = {each.name: each for each in statements()}
    check_choice("name", name, list(known), owner="statement")
    return known[name]


def statement_table() -> Listing:
    """Make a table of all statements; ``print`` writes it as Markdown, ``show()`` for the terminal.

    Example:
        >>> from metalearn.theory import statement_table
        >>> print(str(statement_table()).splitlines()[0])
        | name | formula | status | source |
    """
    rows = [
        {
            "name": each.name, "formula": each.formula, "status": each.status, "source": each.source,
            "states": each.states, "symbols": each.symbols, "code": each.code, "check": each.check,
        }
        for each in statements()
    ]  # fmt: skip
    columns = {"name": "name", "formula": "formula", "status": "status", "source": "source"}
    note = "print(metalearn.theory.statement(NAME)) says what its symbols mean, and which test holds it."
    return Listing("statements", columns, rows, ["formula", "source"], note)
