"""What a call of an analyzer takes: gradients, seconds and memory, before it is made.

In gradients of the loss of all examples. A product with H, G or Σ counts two, its two
passes; what is prepared at θ and a directional derivative of all examples one; a sweep
of per-example gradients two.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from flatmin._utils.results import HtmlTable
from flatmin.curvature._eigenpairs import GRAM_LIMIT
from flatmin.curvature._hessian import FEW_OUTPUTS
from flatmin.linalg._basis_memory import basis_size
from flatmin.linalg._density import _MAX_DENSE
from flatmin.linalg._eigsh import is_dense
from flatmin.measures._deflation import PILOT
from flatmin.measures._rounding import FEW
from flatmin.risk import EmpiricalRisk

__all__ = [
    "Cost",
    "Problem",
    "Work",
    "layer_sizes",
    "leaves_out",
    "seconds_of_a_gradient",
    "work_of_parts",
]

_PRODUCT, _PREPARE, _ALONG, _SWEEP = 2.0, 1.0, 1.0, 2.0
_DOUBLE = 8  # bytes
_DEFAULT: Mapping[str, Any] = {}  # arguments of a search


@dataclass(frozen=True)
class Work:
    """Gradients that are expected, gradients at most, and bytes that are held."""

    expected: float = 0.0
    at_most: float = 0.0
    memory: int = 0

    @classmethod
    def of(cls, gradients: float, memory: int = 0) -> Work:
        """Return work that is known."""
        return cls(gradients, gradients, memory)

    def __add__(self, other: Work) -> Work:
        # One part follows the other, and lets go of what it held.
        return Work(
            self.expected + other.expected,
            self.at_most + other.at_most,
            max(self.memory, other.memory),
        )


@dataclass(frozen=True)
class Problem:
    """What the work depends on."""

    matrix: str  # as of CurvatureAnalyzer, or "covariance"
    size: int  # d, the parameters that are selected
    whole: bool  # all of them are
    layers: tuple[int, ...]  # the parameters of each
    n_examples: int
    n_outputs: int
    itemsize: int  # bytes of a number
    n_components: int


@dataclass(frozen=True)
class Cost(HtmlTable):
    """What a call takes that nothing has been kept for.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from flatmin import CurvatureAnalyzer, NoisyDiffusionClassifier
    >>> clf = NoisyDiffusionClassifier(max_iter=100).fit(*load_iris(return_X_y=True))
    >>> analyzer = CurvatureAnalyzer(clf, random_state=0)
    >>> cost = analyzer.cost("trace")
    >>> cost.gradients <= cost.at_most
    True
    """

    call: str
    gradients: float  # of these examples, as expected
    at_most: float  # where a solver goes to its limit; the same if it is known
    n_examples: int  # of the subset, where there is one
    n_all: int  # N
    seconds_per_gradient: float  # as timed
    memory: int  # bytes of what the call holds, beside what a gradient takes

    @property
    def example_gradients(self) -> float:
        """The same in gradients of one example."""
        return self.gradients * self.n_examples

    @property
    def seconds(self) -> float:
        """As expected, from one timed gradient."""
        return self.gradients * self.seconds_per_gradient

    def to_frame(self) -> pd.DataFrame:
        """Return one row.

        Returns
        -------
        pandas.DataFrame
            Columns gradients, at_most, seconds, memory, n_examples and n_all.
        """
        names = ("gradients", "at_most", "seconds", "memory", "n_examples", "n_all")
        row = {name: getattr(self, name) for name in names}
        return pd.DataFrame(row, pd.Index([self.call], name="call"))

    def __repr__(self) -> str:
        limit = "" if self.at_most == self.gradients else f" (at most {self.at_most:g})"
        of = "" if self.n_all == self.n_examples else f" of {self.n_all}"
        return (
            f"{self.call}: {self.gradients:g} gradients of {self.n_examples}{of} "
            f"examples{limit}, {self.seconds:.2g} s, {self.memory / 2**20:.2g} MiB"
        )


def layer_sizes(risk: EmpiricalRisk) -> tuple[int, ...]:
    """Return how many parameters each layer has.

    Parameters
    ----------
    risk : EmpiricalRisk

    Returns
    -------
    tuple of int
    """
    layers = risk.layout.layers().values()
    return tuple(part.stop - part.start for part in layers)


def seconds_of_a_gradient(risk: EmpiricalRisk) -> float:
    """Return the time of the second of two gradients, which the first has set up.

    Parameters
    ----------
    risk : EmpiricalRisk

    Returns
    -------
    float
    """
    theta = risk.params()
    float(risk.gradient(theta).sum())
    began = time.perf_counter()
    float(risk.gradient(theta).sum())  # a host read waits for the device
    return time.perf_counter() - began


def leaves_out(quantity: str, problem: Problem, options: Mapping[str, Any]) -> bool:
    """Tell whether a method leaves out each block of a subset, or takes it alone.

    Parameters
    ----------
    quantity : str
        Its name.
    problem : Problem
    options : mapping of str to object
        All its arguments.

    Returns
    -------
    bool
    """
    exact = quantity == "alignment" and problem.size <= options["max_matvecs"]
    return quantity == "eigen" or exact


def work_of_parts(
    quantity: str, problem: Problem, options: Mapping[str, Any], sizes: Sequence[int]
) -> Work:
    """Return the work of a method on several parts of the examples, one by one.

    Parameters
    ----------
    quantity : str
        Its name.
    problem : Problem
        Its work counts in gradients of its examples.
    options : mapping of str to object
        All its arguments.
    sizes : sequence of int
        Examples of each part.

    Returns
    -------
    Work
    """
    total = Work()
    for size in sizes:
        work = work_of(quantity, replace(problem, n_examples=size), options)
        share = size / problem.n_examples
        total += Work(share * work.expected, share * work.at_most, work.memory)
    return total


def work_of(quantity: str, problem: Problem, options: Mapping[str, Any]) -> Work:
    """Return the work of a method of an analyzer.

    Parameters
    ----------
    quantity : str
        Its name.
    problem : Problem
    options : mapping of str to object
        All its arguments.

    Returns
    -------
    Work
    """
    p = problem
    basis = _basis(p, p.n_components)
    # Another risk, on data of the same size, and k directional derivatives.
    coordinates = Work.of(_PREPARE + _ALONG * p.n_components)
    if quantity == "eigen":
        k = options["k"] or p.n_components
        if options["which"] == "LA":
            return _basis(p, k, options)
        return _lanczos(p, k, options)
    if quantity == "transform":
        if p.matrix != "covariance":
            return basis + coordinates
        return basis + _moments(p) + Work.of(1.0) + coordinates
    if quantity == "score":
        if p.matrix != "covariance":
            return basis + _moments(p) + coordinates
        hessian = _lanczos(_hessian(p), p.n_components)
        return basis + _moments(p) + hessian
    if quantity == "matvec":
        return Work.of(_PREPARE + _PRODUCT, 2 * p.size * p.itemsize)
    if quantity == "sample":
        return Work.of(options["n"], options["n"] * p.size * p.itemsize)
    if quantity == "density":
        return _density(p, options["n_probes"], options["n_steps"])
    if quantity == "alignment":
        k = options["k"] or p.n_components
        part = _alignment_by_layer if options["by_layer"] else _alignment
        return part(p, k, options["max_matvecs"])
    by_a_sweep = p.matrix in ("covariance", "empirical_fisher")
    if by_a_sweep:
        prepared = quantity == "trace" and p.matrix == "empirical_fisher"
        return Work.of(_SWEEP + _PREPARE * prepared, p.size * _DOUBLE)
    if quantity == "trace" and p.matrix in ("ggn", "fisher") and p.whole:
        return _gauss_newton_trace(p)
    return Work.of(_PREPARE) + _estimated(p, options["max_matvecs"])


def _hessian(p: Problem) -> Problem:
    return replace(p, matrix="hessian")


def _basis(p: Problem, k: int, search: Mapping[str, Any] = _DEFAULT) -> Work:
    """Return the work of the leading eigenpairs."""
    if p.matrix != "covariance" or p.n_examples * p.size > GRAM_LIMIT:
        return _lanczos(p, k, search)
    rows = 2 * p.n_examples * p.size * p.itemsize
    return Work.of(_PREPARE + _SWEEP, rows + p.n_examples**2 * _DOUBLE)


def _lanczos(p: Problem, k: int, search: Mapping[str, Any] = _DEFAULT) -> Work:
    return Work.of(_PREPARE) + _products_of_eigsh(p, k, search)


def _products_of_eigsh(
    p: Problem, k: int, search: Mapping[str, Any] = _DEFAULT
) -> Work:
    if is_dense(p.size, k):
        return _dense(p)
    # Products to a tolerance of 1e-4. A count for comparison: 20 pairs of a network of
    # 11,330 parameters took 46 of them, against 65 here.
    limit = search.get("max_matvecs") or 20 * (k + 20)
    expected = min(2 * k + 25, limit)
    memory = (basis_size(p.size, k) + k) * p.size * p.itemsize
    if search.get("max_basis") or search.get("basis_dtype"):
        bounded = search.get("max_basis") or basis_size(p.size, k)
        dtype = str(search.get("basis_dtype")).removeprefix("torch.")
        one = {"bfloat16": 2, "float32": 4}.get(dtype, p.itemsize)
        memory = ((bounded + 1) * one + max(2, k) * p.itemsize) * p.size
    return Work(_PRODUCT * expected, _PRODUCT * limit, memory)


def _dense(p: Problem) -> Work:
    """Return the work of the whole matrix: d products, or of Σ a sweep."""
    memory = 3 * p.size**2 * _DOUBLE
    if p.matrix in ("covariance", "empirical_fisher"):
        return Work.of(_SWEEP, memory + p.n_examples * p.size * _DOUBLE)
    return Work.of(_PRODUCT * p.size, memory)


def _estimated(p: Problem, max_matvecs: int) -> Work:
    """Return the work of a trace or a diagonal, whose probes stop at an error."""
    if p.size <= max_matvecs:
        return _dense(p)
    most = _PRODUCT * max_matvecs
    return Work(0.6 * most, most, max_matvecs * p.size * _DOUBLE)


def _gauss_newton_trace(p: Problem) -> Work:
    prepared = _PREPARE if p.matrix == "fisher" else 0.0
    if p.n_outputs <= FEW_OUTPUTS:
        return Work.of(prepared + p.n_outputs * _SWEEP)
    # Two sweeps most often, and then up to one for each output.
    return Work(prepared + 2 * _SWEEP, prepared + 32 * _SWEEP, p.n_examples * _DOUBLE)


def _density(p: Problem, n_probes: int, n_steps: int) -> Work:
    if p.size <= min(n_probes * n_steps, _MAX_DENSE):
        return Work.of(_PREPARE) + _dense(p)
    steps = min(n_steps, p.size)
    memory = (steps + 1) * p.size * p.itemsize
    return Work.of(_PREPARE + _PRODUCT * n_probes * steps, memory)


def _moments(p: Problem) -> Work:
    """Return the work of g₀, diag(Σ) and the rounding in them, at points nearby."""
    n_nearby = 1 if p.n_examples >= FEW else 4
    return Work.of(_SWEEP + n_nearby * (1 + 2 * _SWEEP), 4 * p.size * _DOUBLE)


def _alignment(p: Problem, k: int, max_matvecs: int) -> Work:
    """Return the work of the parts of :func:`flatmin.measures.alignment`."""
    return _moments(p) + _table(p, k, max_matvecs, by_rows=False)


def _alignment_by_layer(p: Problem, k: int, max_matvecs: int) -> Work:
    """Return the work of a table for each layer, and of what they share."""
    by_rows = p.n_examples * p.size <= GRAM_LIMIT
    shared = Work.of(_SWEEP if by_rows else 0.0)
    tables = _moments(p) + shared
    largest = max(1, p.n_examples - 1)
    for size in p.layers:
        layer = replace(p, size=size, whole=False)
        tables += _table(layer, min(k, size, largest), max_matvecs, by_rows=by_rows)
    rows = 2 * p.n_examples * p.size * p.itemsize if by_rows else 0
    return replace(tables, memory=tables.memory + rows)


def _table(p: Problem, k: int, max_matvecs: int, *, by_rows: bool) -> Work:
    """Return the work of what moments do not tell; rows, if there, give all of Σ."""
    H, sigma = _hessian(p), p
    found = _lanczos(H, min(k + 1, p.size))
    if not by_rows:
        found += _basis(sigma, k) + Work.of(_PREPARE + _PRODUCT)  # and u₁ᵀΣu₁
    # Tr(HΣ).
    n = min(p.size, p.n_examples)
    if n <= max_matvecs:
        found += Work.of(_PRODUCT * n)
        found += Work.of(0.0 if by_rows else _PREPARE + 1 + _SWEEP)
    else:
        most = (_PRODUCT if by_rows else 1 + _PRODUCT + _ALONG) * max_matvecs
        prepared = 0.0 if by_rows else 2 * _PREPARE
        found += Work(prepared + most / 4, prepared + most)
    # What the leading pairs of Σ leave out, and its bound.
    found += Work.of(_PRODUCT * k) + _products_of_eigsh(H, 1)
    # Tr(H), ‖H‖_F and ‖Σ‖_F, beside their leading pairs.
    for one in (H, H) if by_rows else (H, H, sigma):
        if p.size <= max_matvecs:
            found += _dense(one)
        else:
            pilot = min(PILOT, max_matvecs)
            most = max_matvecs + (pilot if max_matvecs > pilot else 0)
            memory = max_matvecs * p.size * _DOUBLE
            found += Work(_PRODUCT * most / 2, _PRODUCT * most, memory)
    return found
