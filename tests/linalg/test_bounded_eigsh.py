"""Searches that hold few vectors, in another memory or precision."""

import gc
import warnings

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning

from flatmin.linalg import DiagonalOperator, FunctionOperator, eigsh

from ._matrices import Reflected, operator, randn, with_spectrum
from .test_eigsh import SPECTRA, check, repeated, true_residuals, wanted

close = torch.testing.assert_close


def search(A, k, **options):
    """A search that may end early, and in silence."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return eigsh(A, k, rng=0, **options)


@pytest.mark.parametrize("which", ["LM", "LA", "SA", "BE"])
@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("name", SPECTRA)
def test_known_spectrum(name, k, which):
    A, scale = operator(SPECTRA[name]), max(map(abs, SPECTRA[name]))
    options = {"which": which, "tol": 1e-4, "max_matvecs": 1500}
    for more in (3, 10):
        result = search(A, k, max_basis=k + more, **options)
        U = result.eigenvectors
        true = torch.linalg.vector_norm(A.matrix @ U - result.eigenvalues * U, dim=0)
        close(result.residuals, true, rtol=0, atol=1e-12 * scale)
        close(U.T @ U, torch.eye(k, dtype=torch.float64))
        # The low end of a decay needs many more products.
        assert result.converged.all() or name == "decaying" or more == 3
        if result.converged.all():
            expected, actual = wanted(SPECTRA[name], which, k), result.eigenvalues
            if which == "LM":
                actual, expected = actual.abs(), expected.abs()
            close(actual, expected, rtol=0, atol=1e-4 * scale)


@pytest.mark.parametrize("more", [1, 2, 4, 40])
@pytest.mark.parametrize("k", [1, 3])
def test_every_size_of_a_basis(k, more):
    A = operator(SPECTRA["outliers"])
    result = eigsh(A, k, tol=1e-6, max_basis=k + more, max_matvecs=1000, rng=0)
    close(result.eigenvalues, torch.tensor([30.0, 29, 28])[:k].double())
    check(result, A.matrix, 1e-6)
    assert A.n_matvecs == result.n_matvecs


@pytest.mark.parametrize(
    ("products", "basis", "floor"),
    [
        (torch.float64, torch.float32, 1e-6),
        (torch.float64, torch.bfloat16, 6e-3),
        (torch.float32, torch.bfloat16, 6e-3),
    ],
)
@pytest.mark.parametrize("size", [300, 5000])
@pytest.mark.parametrize("name", ["outliers", "decaying", "repeated"])
def test_a_coarse_basis_tells_true_residuals(name, size, products, basis, floor):
    values = {
        "outliers": [*range(40, 20, -1), *(0.5 * randn(size - 20)).tolist()],
        "decaying": 1 / np.arange(1, size + 1),
        "repeated": [5, 5, 5, 4, 3, 3, *np.linspace(1, -1, size - 8), -6, -6],
    }[name]
    A, scale = Reflected(values, products), float(max(map(abs, values)))
    tol = max(2e-6, 1.3 * torch.finfo(basis).eps)
    for k, max_basis in [(1, 5), (3, 12)]:
        result = search(
            A, k, which="LM", tol=tol, basis_dtype=basis, max_basis=max_basis
        )
        assert result.eigenvectors.dtype == products
        rounding = 30 * torch.finfo(products).eps * scale
        close(result.residuals, true_residuals(A, result), rtol=0, atol=rounding)
        if result.converged.all():
            expected = wanted(values, "LM", k).abs()
            close(result.eigenvalues.abs(), expected, rtol=0, atol=tol * scale)
        if name != "repeated":
            assert result.converged.all()
            assert result.residuals.max() <= max(tol, floor) * scale


def test_a_coarse_basis_says_that_it_is_too_coarse():
    A = Reflected(torch.linspace(0, 1, 2000) ** 0.5, torch.float32)
    options = {"tol": 8e-3, "basis_dtype": "bfloat16", "max_basis": 3}
    with pytest.warns(ConvergenceWarning, match="alone is of that size: take a finer"):
        result = eigsh(A, 1, rng=0, max_matvecs=2000, **options)
    assert result.n_matvecs < 2000
    assert not result.converged.any()


@pytest.mark.parametrize("options", [{"max_basis": 8}, {"basis_dtype": "float32"}])
@pytest.mark.parametrize(
    ("values", "m", "k"),
    [([1.0, 0.937, 0.87, 0.72], 10, 4), ([1.0, 0.9, 0.8], 3, 5), ([1.0, 0.9], 2, 1)],
)
def test_every_copy_of_a_repeated_eigenvalue(values, m, k, options):
    for seed in range(2):
        A, right = repeated(values, m, 40)
        result = eigsh(A, k, tol=1e-4, rng=seed, max_matvecs=2000, **options)
        assert result.converged.all()
        close(result.eigenvalues, right[:k], rtol=0, atol=1e-4)


def test_where_copies_may_be_missing_nothing_has_converged():
    A, _ = repeated([1.0, 0.9], 3, 60)
    options = {"tol": 1e-4, "max_basis": 10, "rng": 0}
    needed = eigsh(A, 3, max_matvecs=2000, **options).n_matvecs
    for limit in range(needed - 8, needed):
        with pytest.warns(ConvergenceWarning, match="3 of 3 eigenpairs"):
            result = eigsh(A, 3, max_matvecs=limit, **options)
        assert not result.converged.any()
        assert result.n_matvecs <= limit
    assert eigsh(A, 3, max_matvecs=needed, **options).converged.all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("k", [1, 3, 6])
def test_an_invariant_subspace(k, dtype):
    zero = eigsh(DiagonalOperator(torch.zeros(300, dtype=dtype)), k, max_basis=7, rng=0)
    assert not zero.eigenvalues.any()
    check(zero, torch.zeros(300, 300), 0)
    diagonal = torch.ones(300, dtype=dtype)
    diagonal[:3] = -5
    result = eigsh(DiagonalOperator(diagonal), k, which="SA", max_basis=7, rng=0)
    close(result.eigenvalues, torch.tensor([-5.0] * 3 + [1.0] * 3).double()[:k])
    check(result, diagonal.diag(), 1e-5)


@pytest.mark.parametrize("limit", [6, 10, 25])
def test_the_limit_is_kept_and_told(limit):
    A = Reflected(torch.linspace(0, 1, 2000))
    with pytest.warns(
        ConvergenceWarning, match=rf"3 of 3 .* tol=1e-08 within {limit} products"
    ):
        result = eigsh(A, 3, tol=1e-8, max_matvecs=limit, max_basis=6, rng=0)
    assert A.n_matvecs == result.n_matvecs == limit
    assert not result.converged.any()
    close(result.residuals, true_residuals(A, result), rtol=1e-6, atol=1e-12)


def test_a_small_matrix_is_formed_all_the_same():
    values = torch.arange(30.0, dtype=torch.float64)
    result = eigsh(DiagonalOperator(values), 2, max_basis=3)
    close(result.eigenvalues, values[[29, 28]])
    assert result.converged.all()


def test_a_matrix_that_is_not_symmetric_does_not_converge():
    matrix = with_spectrum(SPECTRA["outliers"])
    matrix[0] += 3
    A = FunctionOperator(lambda v: matrix @ v, len(matrix), dtype=torch.float64)
    with pytest.warns(ConvergenceWarning, match="have not converged"):
        result = eigsh(A, 3, tol=1e-6, max_basis=20, rng=0)
    U = result.eigenvectors
    true = torch.linalg.vector_norm(matrix @ U - result.eigenvalues * U, dim=0)
    close(result.residuals, true)


@pytest.mark.parametrize("at", [1, 4, 9, 22])
def test_a_product_that_is_not_finite(at):
    A = FunctionOperator(
        lambda v: torch.linspace(0, 1, 500) * (v / 0 if A.n_matvecs == at else v), 500
    )
    with pytest.raises(torch.linalg.LinAlgError, match=r"must be finite\. Got NaN"):
        eigsh(A, 2, max_basis=5, rng=0, tol=0, max_matvecs=24)


def test_start_vector():
    A = operator(SPECTRA["outliers"])
    start = eigsh(A, 1, tol=1e-10, rng=0).eigenvectors[:, 0]
    near = eigsh(A, 1, tol=1e-6, v0=7 * start, rng=0, max_basis=6)
    far = eigsh(A, 1, tol=1e-6, rng=0, max_basis=6)
    assert near.n_matvecs < far.n_matvecs
    close(near.eigenvalues, far.eigenvalues)
    close(start, eigsh(A, 1, tol=1e-10, rng=0).eigenvectors[:, 0])


def test_progress_tells_the_residual(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")  # the rate takes more or less room
    monkeypatch.setenv("LINES", "20")
    A = operator(SPECTRA["outliers"])
    for options in ({}, {"max_basis": 8}):
        result = eigsh(A, 3, rng=0, verbose=True, **options)
        worst = float(result.residuals.max() / 30)
        told = capsys.readouterr().err
        assert "converged=3" in told
        assert f"residual={worst:.1e}" in told


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_basis": 2}, "max_basis must be above k = 2: .* Got 2; ask for fewer"),
        ({"max_basis": 2.5}, "max_basis must be an integer of at least 1. Got 2.5"),
        ({"basis_dtype": "float16"}, "basis_dtype must be torch.float64, .*'float16'"),
        (
            {"basis_dtype": torch.float64},
            "be no finer than the products, torch.float32",
        ),
        ({"basis_dtype": 3}, "basis_dtype must be .* Got 3"),
        ({"basis_dtype": "bfloat16"}, "tol must be at least 0.0078125, .* Got 0.0001"),
        ({"basis_device": "nowhere"}, "basis_device must be one .* Got 'nowhere'"),
        ({"max_basis": 9, "max_matvecs": 3}, "max_matvecs must be .* at least 4. Got"),
    ],
)
@pytest.mark.parametrize("size", [10, 100])
def test_bad_input(options, message, size):
    with pytest.raises(ValueError, match=message):
        eigsh(DiagonalOperator(torch.ones(size)), 2, **options)
    with pytest.raises(TypeError, match=r"distributed must be True or False\. Got 2"):
        eigsh(DiagonalOperator(torch.ones(size)), 2, distributed=2)
    # What a risk raises too.
    with pytest.raises(RuntimeError, match=r"default process group .* Got none: call"):
        eigsh(DiagonalOperator(torch.ones(size)), 2, distributed=True)


@pytest.fixture
def nothing_else_is_listed():
    """Leave what was there before out of gc.get_objects()."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.parametrize("basis_dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("k", "max_basis"), [(1, 4), (3, 9)])
@pytest.mark.usefixtures("nothing_else_is_listed")
def test_a_product_finds_few_vectors_in_memory(k, max_basis, basis_dtype):
    """Storages that Python knows of, while a product is taken."""
    size, held = 3011, []
    diagonal = torch.linspace(0, 1, size, dtype=torch.float64) ** 4

    def product(v):
        found = {
            tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
            for tensor in gc.get_objects()
            if type(tensor) is torch.Tensor and tensor.shape[-1:] == (size,)
        }
        del found[diagonal.untyped_storage().data_ptr()]
        held.append(sum(found.values()))
        return diagonal * v

    A = FunctionOperator(product, size, dtype=torch.float64)
    options = {"tol": 1e-2, "max_basis": max_basis, "basis_dtype": basis_dtype}
    search(A, k, max_matvecs=60, **options)
    rows = (max_basis + 1) * size * torch.finfo(basis_dtype).bits // 8
    assert len(held) > max_basis + k
    assert max(held) >= rows
    assert max(held) <= max(rows + 8 * size, (k + 1) * 8 * size)
