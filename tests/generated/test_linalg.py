"""Solvers and estimates on generated symmetric matrices of scales of 1e-100 to 1e100.

What is said to be exact, or to have converged, has to be so; what is estimated has to
be within thirty of its standard errors. Compared with the dense matrix at scale one.
"""

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.exceptions import ConvergenceWarning

from flatmin.linalg import (
    diagonal,
    eigsh,
    frobenius_norm,
    spectral_density,
    sqrt_matvec,
    trace,
)

from ._draws import seeds, some
from ._matrices import matrices

EXAMPLES = settings.default.max_examples // 100
norm = torch.linalg.vector_norm


def wanted(values, which, k):
    rising = values.sort().values
    if which == "LM":
        return rising[rising.abs().argsort(descending=True)][:k]
    if which == "SA":
        return rising[:k]
    falling = rising.flip(0)
    low = k // 2 if which == "BE" else 0
    return torch.cat([falling[: k - low], falling[len(falling) - low :]])


def ranks(D):
    return st.integers(1, D) | some([1, D]) if D <= 64 else some([1, 2, 5, D])


@settings(max_examples=100 * EXAMPLES)
@given(data=st.data(), matrix=matrices(), which=some(["LM", "LA", "SA", "BE"]))
def test_eigsh(data, matrix, which):
    k = data.draw(ranks(len(matrix)), label="k")
    tol = 1e-4 if matrix.dtype == torch.float32 else 1e-8
    A, operator = matrix.A, matrix.operator()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", ConvergenceWarning)
        found = eigsh(operator, k, which=which, tol=tol, rng=data.draw(seeds))
    values, U = matrix.unscaled(found.eigenvalues), found.eigenvectors.double()
    size = torch.linalg.eigvalsh(A).abs().max()
    rounding = 50 * len(matrix) ** 0.5 * matrix.eps
    right = wanted(torch.linalg.eigvalsh(A), which, k)
    if which == "LM":  # of λ and -λ either will do
        values_off = (values.abs() - right.abs()).abs().max()
    else:
        values_off = (values - right).abs().max()
    assert found.n_matvecs == operator.n_matvecs
    assert norm(U.T @ U - torch.eye(k)) <= rounding * k
    true = norm(A @ U - values * U, dim=0)
    told = matrix.unscaled(found.residuals)
    assert (true <= told + rounding * size).all(), (true, told)
    assert bool(found.converged.all()) != bool(warned)
    if not warned:
        assert (true <= (tol + rounding) * size).all(), true
        # An eigenvalue lies this near, though not always the one that was asked for.
        assert values_off <= (10 * tol + rounding) * size, values_off


ESTIMATES = {
    "trace": (trace, lambda A: A.trace(), ["auto", "exact", "hutchinson", "xtrace"]),
    "diagonal": (
        diagonal,
        lambda A: A.diagonal(),
        ["auto", "exact", "hutchinson", "xdiag"],
    ),
    "frobenius_norm": (
        frobenius_norm,
        lambda A: norm(A),
        ["auto", "exact", "hutchinson"],
    ),
}


@settings(max_examples=75 * EXAMPLES)
@given(data=st.data(), matrix=matrices(), name=some(list(ESTIMATES)))
def test_estimates(data, matrix, name):
    function, right, methods = ESTIMATES[name]
    found = function(
        matrix.operator(),
        method=data.draw(some(methods), label="method"),
        max_matvecs=data.draw(some([12, 20, 200]), label="max_matvecs"),
        rng=data.draw(seeds),
    )
    off = norm(matrix.unscaled(found.value) - right(matrix.A))
    stderr = norm(matrix.unscaled(found.stderr))  # of a diagonal as a whole
    rounding = 50 * len(matrix) ** 0.5 * matrix.eps * norm(matrix.A)
    assert off <= 30 * stderr + rounding, (name, off, stderr)


@settings(max_examples=75 * EXAMPLES)
@given(
    matrix=matrices(), seed=seeds, tol=some([0.05, 1e-3]), length=some([1.0, 1e-9, 1e9])
)
def test_sqrt_matvec(matrix, seed, tol, length):
    rng = torch.Generator().manual_seed(seed)
    z = torch.randn(len(matrix), generator=rng, dtype=matrix.dtype) * length
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = sqrt_matvec(matrix.operator(), z, tol=tol, max_steps=300)
    values, U = torch.linalg.eigh(matrix.A)
    right = (U * values.abs().sqrt()) @ (U.T @ z.double())
    off = norm(matrix.unscaled(found.vector, 0.5) - right)
    # Rounding of size eps in an eigenvalue 0 is one of size √eps in its root.
    rounding = 3 * (matrix.eps * values.abs().max()) ** 0.5 * norm(z.double())
    assert off <= matrix.unscaled(found.error, 0.5) + rounding, (off, found.error)
    assert found.converged == bool(found.error <= tol * norm(found.vector.double()))
    if found.converged:
        assert off <= tol * norm(right) + rounding


@settings(max_examples=75 * EXAMPLES)
@given(matrix=matrices(), method=some(["auto", "exact", "lanczos"]), seed=seeds)
def test_spectral_density(matrix, method, seed):
    D = len(matrix)
    found = spectral_density(
        matrix.operator(), method=method, n_probes=20, n_steps=40, rng=seed
    )
    values = torch.linalg.eigvalsh(matrix.A)
    rounding = 50 * D**0.5 * matrix.eps * values.abs().max()
    assert (found.weights.sum(1) - 1).abs().max() <= 1e-12
    for p in (0, 1, 2):
        value, stderr = (matrix.unscaled(t, p) for t in found.moment(p))
        right, size = values.pow(p).mean(), values.abs().max() ** max(p - 1, 0)
        limit = 30 * stderr + (p or 1) * rounding * size + 1e-12
        assert abs(value - right) <= limit, (p, value, right, stderr)
    if found.exact:
        nodes = matrix.unscaled(found.nodes[0])
        assert (nodes - values).abs().max() <= rounding
        sigma, grid = 0.3, torch.linspace(-2, 2, 5, dtype=torch.float64)
        unit = 2.0**matrix.exponent
        value = found.density(grid * unit, sigma * unit)[0] * unit
        normal = torch.distributions.Normal(values, sigma)
        right = normal.log_prob(grid[:, None]).exp().mean(1)
        assert (value - right).abs().max() <= 100 * rounding + 1e-12


def ones(D):
    return torch.ones(D, dtype=torch.float64)


# Which functions take an argument, and what it cannot be.
TAKEN_BY = {
    "k": [eigsh],
    "which": [eigsh],
    "v0": [eigsh],
    "tol": [eigsh, sqrt_matvec],
    "z": [sqrt_matvec],
    "max_steps": [sqrt_matvec],
    "max_matvecs": [eigsh, trace, diagonal, frobenius_norm],
    "rtol": [trace, diagonal, frobenius_norm],
    "method": [trace, diagonal, frobenius_norm, spectral_density],
    "n_probes": [spectral_density],
    "n_steps": [spectral_density],
}


def bad(name, D):
    """Return what an argument cannot be, for a matrix of size D."""
    counts = [0, -1, 2.5, "6", True, float("nan")]
    numbers = [-1.0, float("nan"), float("inf"), "1", None, 1j]
    vectors = [ones(D + 1), ones(D)[:, None], ones(D) * float("nan"), "a", 1.0]
    words = ["la", "best", 3, None]
    return {
        "k": [*counts, None, D + 1],
        "v0": [*vectors, 0 * ones(D)],
        "z": [*vectors, None],
        **dict.fromkeys(["which", "method"], words),
        **dict.fromkeys(["tol", "rtol"], numbers),
        **dict.fromkeys(["max_matvecs", "max_steps", "n_probes", "n_steps"], counts),
    }[name]


@settings(max_examples=100 * EXAMPLES)
@given(data=st.data(), matrix=matrices(), name=some(list(TAKEN_BY)))
def test_refused(data, matrix, name):
    function, D = data.draw(some(TAKEN_BY[name])), len(matrix)
    needed = {eigsh: {"k": 1}, sqrt_matvec: {"z": ones(D).to(matrix.dtype)}}
    value = data.draw(some(bad(name, D)), label=name)
    options = {**needed.get(function, {}), name: value}
    with pytest.raises((ValueError, TypeError), match=rf"\b{name}\b"):
        function(matrix.operator(), **options)


ASKED = {
    "eigsh": lambda A: eigsh(A, 1, rng=0).eigenvalues,
    "sqrt_matvec": lambda A: sqrt_matvec(A, ones(A.shape[0]).to(A.dtype)).vector,
    "spectral_density": lambda A: spectral_density(A, rng=0).nodes,
    **{name: lambda A, f=f: f(A, rng=0).value for name, (f, *_) in ESTIMATES.items()},
}


@settings(max_examples=100 * EXAMPLES)
@given(
    matrix=matrices(), value=some([float("nan"), float("inf")]), name=some(list(ASKED))
)
def test_matrices_that_are_not_finite(matrix, value, name):
    matrix.A[0, 0] = value
    try:
        found = ASKED[name](matrix.operator())
    except (ValueError, RuntimeError) as error:
        if "finite" not in str(error):
            raise
    else:
        assert not found.isfinite().all()
