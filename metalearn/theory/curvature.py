"""The ends of the spectrum of Hessians, by Lanczos' iteration on Hessian-vector products."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from metalearn.bilevel.checks import explain_failure
from metalearn.bilevel.linearization import Linearization
from metalearn.bilevel.trees import Layout, Tree
from metalearn.checks import MOST_STEPS, UNBOUNDED, check_number, check_whole
from metalearn.errors import BilevelError, DivergenceError, ShapeError
from metalearn.inner.graph import walk_graph

__all__ = ["Spectrum", "hessian_spectrum", "lanczos", "linearize"]

Product = Callable[[Tensor], Tensor]
"""``product(v [B, D]) -> [B, D]``: a symmetric matrix of each task times a vector."""


@dataclass(frozen=True)
class Spectrum:
    """The ends of the spectra of ``B`` symmetric matrices.

    Attributes:
        largest: the largest eigenvalue, ``[B]``, or ``[]`` of one matrix.
        smallest: the smallest eigenvalue, likewise.
        error_of_largest: ``|beta_m s_m|``: an eigenvalue is at most that far away.
        error_of_smallest: likewise.
        iterations: the products that were taken.

    Example:
        >>> import torch
        >>> from metalearn.theory import hessian_spectrum
        >>> curvatures = torch.tensor([3.0, -1.0, 0.5])
        >>> ends = hessian_spectrum(lambda w: (curvatures * w * w).sum() / 2, torch.ones(3))
        >>> round(float(ends.largest), 4), round(float(ends.smallest), 4), round(float(ends.magnitude), 4)
        (3.0, -1.0, 3.0)
    """

    largest: Tensor
    smallest: Tensor
    error_of_largest: Tensor
    error_of_smallest: Tensor
    iterations: int

    @property
    def magnitude(self) -> Tensor:
        """The largest absolute eigenvalue, which is the spectral norm."""
        return torch.maximum(self.largest.abs(), self.smallest.abs())

    def of_first(self) -> Spectrum:
        """That of the first matrix alone."""
        return Spectrum(
            self.largest[0], self.smallest[0], self.error_of_largest[0], self.error_of_smallest[0], self.iterations
        )


def lanczos(product: Product, like: Tensor, iterations: int = 20, tolerance: float = 1e-2, seed: int = 0) -> Spectrum:
    """The ends of the spectra of symmetric matrices, from products with vectors (Lanczos 1950).

    The start is drawn from a generator of its own. Each vector is made orthogonal to all before it, twice. The iteration stops
    where both error bounds are at most ``tolerance`` times the largest absolute eigenvalue, in all tasks.

    Args:
        product: takes vectors ``[B, D]`` to vectors ``[B, D]``, or ``[D]`` to ``[D]``.
        like: a tensor of the shape, dtype and device of these vectors.
        iterations: the most products that are taken.
        tolerance: see above.
        seed: of the start.

    Raises:
        ConfigError: a number is out of range.
        DivergenceError: a product is not finite.

    Example:
        >>> import torch
        >>> from metalearn.theory import lanczos
        >>> matrix = torch.diag(torch.arange(1.0, 101.0))
        >>> ends = lanczos(lambda v: v @ matrix, torch.zeros(100), iterations=60, tolerance=1e-4)
        >>> round(float(ends.largest), 2), round(float(ends.smallest), 2), ends.iterations < 60
        (100.0, 1.0, True)
    """
    check_whole("iterations", iterations, 1, MOST_STEPS)
    check_number("tolerance", tolerance, "use 0.01", above=0)
    check_whole("seed", seed, 0, UNBOUNDED)
    single = like.ndim == 1
    rows = like.detach().unsqueeze(0) if single else like.detach()
    if rows.ndim != 2 or not rows.numel() or not rows.is_floating_point():
        raise ShapeError(
            f"like is {like.dtype} {list(like.shape)}, but vectors are floats [D] or [B, D]; give such a tensor"
        )
    basis = _Basis(rows, torch.Generator().manual_seed(seed))
    for count in range(1, min(iterations, rows.shape[1]) + 1):
        along = product(basis.last[0] if single else basis.last)
        basis.add(along.unsqueeze(0) if single else along)
        ends = basis.ends()
        bound = tolerance * ends.magnitude
        if bool(((ends.error_of_largest <= bound) & (ends.error_of_smallest <= bound)).all()) and count > 1:
            break
    return ends.of_first() if single else ends


class _Basis:
    """The orthonormal vectors of the iteration, and the tridiagonal matrices that they make of the others.

    Args:
        rows: of the shape ``[B, D]``.
        generator: draws the start, and goes on where the vectors so far span all that the matrix reaches.
    """

    def __init__(self, rows: Tensor, generator: torch.Generator) -> None:
        self._rows, self._generator = rows, generator
        self._vectors: list[Tensor] = []
        self._diagonal: list[Tensor] = []
        self._beside: list[Tensor] = []
        self.last = self._draw()

    def add(self, along: Tensor) -> None:
        """Take the product with the last vector, and find the next one."""
        if not bool(along.isfinite().all()):
            raise DivergenceError(
                "a Hessian-vector product is not finite, but eigenvalues are measured by it; check the weights, the "
                "data and the loss"
            )
        self._vectors.append(self.last)
        self._diagonal.append((self.last * along).sum(-1).double().cpu())
        rest = self._outside(along)
        length = rest.norm(dim=-1, keepdim=True)
        spent = length <= 10 * torch.finfo(rest.dtype).eps * along.norm(dim=-1, keepdim=True)
        self._beside.append(torch.where(spent, 0.0, length).squeeze(-1).double().cpu())
        following = rest / torch.where(spent, 1.0, length)
        if bool(spent.any()) and len(self._vectors) < rest.shape[1]:
            following = torch.where(spent, self._draw(), following)
        self.last = following

    def ends(self) -> Spectrum:
        """The ends of the spectra of the tridiagonal matrices, with their error bounds."""
        matrix = torch.diag_embed(torch.stack(self._diagonal, -1))
        if len(self._diagonal) > 1:
            beside = torch.stack(self._beside[:-1], -1)
            matrix = matrix + torch.diag_embed(beside, 1) + torch.diag_embed(beside, -1)
        values, vectors = torch.linalg.eigh(matrix)
        errors = self._beside[-1].unsqueeze(-1) * vectors[:, -1].abs()
        return Spectrum(values[:, -1], values[:, 0], errors[:, -1], errors[:, 0], len(self._diagonal))

    def _draw(self) -> Tensor:
        """A random unit vector of each task, orthogonal to all so far."""
        drawn = torch.randn(self._rows.shape, generator=self._generator, dtype=torch.float64).to(self._rows)
        drawn = self._outside(drawn)
        return drawn / drawn.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(drawn.dtype).tiny)

    def _outside(self, rows: Tensor) -> Tensor:
        """The part of vectors that is orthogonal to all so far."""
        for _ in range(2):
            for vector in self._vectors:
                rows = rows - (vector * rows).sum(-1, keepdim=True) * vector
        return rows


def linearize(slope: Callable[[Tree], Tree], point: Tree, layout: Layout) -> Linearization:
    """The gradient at a point with its graph, from which Hessian-vector products are taken.

    Args:
        slope: gives the gradient of a loss as a tree like the point, with its graph to it.
        point: a tree of tensors, with a leading axis where there are several tasks.
        layout: of the point.
    """
    y = layout.ravel(point).detach().requires_grad_()
    with torch.enable_grad():
        gradient = layout.ravel(slope(layout.unravel(y)))
    _check_derivatives(gradient)
    return Linearization(gradient, y, (), _count_nothing, _explain)


def hessian_spectrum(
    loss: Callable[[Tree], Tensor],
    params: Tree,
    tasks: int | None = None,
    iterations: int = 20,
    tolerance: float = 1e-2,
    seed: int = 0,
) -> Spectrum:
    """The ends of the spectrum of the Hessian of a loss, for one task or for several at once.

    Args:
        loss: takes tensors like ``params`` to a scalar; with ``tasks`` to ``[B]``, each from its own tensors alone.
        params: the point: a tensor, or a tree of tensors such as a dict by name; with ``tasks`` each ``[B, ...]``.
        tasks: the number ``B`` of tasks; ``None`` for one without a task axis.
        iterations: the most Hessian-vector products that are taken; each is as dear as two or three gradients.
        tolerance: how large the error bounds may be, as a share of the largest absolute eigenvalue.
        seed: of the start of the iteration.

    Raises:
        BilevelError: an operation of the loss has no second derivative.
        ConfigError: a number is out of range.
        DivergenceError: a product is not finite.
        ShapeError: the tensors are not floats alike, or the loss has another shape.

    Example:
        >>> import torch
        >>> from metalearn.theory import hessian_spectrum
        >>> x, y = torch.ones(4, 1), torch.tensor([0.0, 1.0, 0.0, 1.0])
        >>> def loss(params):
        ...     return torch.nn.functional.binary_cross_entropy_with_logits((x @ params["w"]).squeeze(-1), y)
        >>> round(float(hessian_spectrum(loss, {"w": torch.zeros(1, 1)}).largest), 4)
        0.25
    """
    layout = Layout.of(params, "params", tasks)

    def slope(tree: Tree) -> Tree:
        flat = layout.ravel(tree)
        value = loss(layout.unravel(flat))
        expected = [] if tasks is None else [tasks]
        if not isinstance(value, Tensor) or list(value.shape) != expected:
            got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ShapeError(
                f"loss gives {got}, but it must give a tensor of shape {expected}; take the mean over examples"
            )
        with _explain():
            (gradient,) = torch.autograd.grad(value.sum(), flat, create_graph=True, materialize_grads=True)
        return layout.unravel(gradient)

    here = linearize(slope, params, layout)
    return lanczos(here.hvp, here.y, iterations, tolerance, seed)


def _check_derivatives(gradient: Tensor) -> None:
    """Raise if an operation in the graph may be differentiated once only: torch would take its second derivative for 0."""
    if any(node.name().endswith("Error") for node in walk_graph(gradient.grad_fn)):
        raise BilevelError(
            "the loss has an operation whose backward is once_differentiable, but curvature needs its second derivative; "
            "write that backward with operations of torch, without the decorator"
        )


def _count_nothing(_: object) -> None:
    return


def _explain() -> contextlib.AbstractContextManager[None]:
    return explain_failure("the second derivative of the loss")
