"""Products, algebra, exports and draws of operators against dense matrices."""

import numpy as np
import pytest
import scipy.sparse.linalg
import torch

from flatmin.linalg import (
    DenseOperator,
    DiagonalOperator,
    FunctionOperator,
    LowRankOperator,
    ScaledIdentityOperator,
)

from ._matrices import randn, rng, with_spectrum

D = 6
close = torch.testing.assert_close


def dense(*batch):
    A = randn(*batch, D, D)
    return DenseOperator(A + A.mT)


def diagonal(*batch):
    return DiagonalOperator(randn(*batch, D).abs())


def identity(*batch):
    return ScaledIdentityOperator(randn(*batch).abs(), D)


def low_rank(*batch):
    U = torch.linalg.qr(randn(*batch, D, 2)).Q
    return LowRankOperator(randn(*batch, 2, seed=1).abs(), U)


def function():
    A = dense().matrix
    return FunctionOperator(lambda v: A @ v, D, dtype=torch.float64)


def combination(*batch):
    return 2 * dense(*batch) - diagonal(*batch) / 4 + (-identity(*batch)) * 3


BATCHED = [dense, diagonal, identity, low_rank, combination]
OPERATORS = {
    **{
        f"{make.__name__}{batch}": make(*batch)
        for make in BATCHED
        for batch in [(), (3,), (2, 3)]
    },
    "function": function(),
}


@pytest.fixture(params=OPERATORS)
def example(request):
    return OPERATORS[request.param]


def test_products_agree_with_the_matrix(example):
    A = example
    batch, matrix = A.shape[:-2], A.to_dense()
    assert matrix.shape == A.shape == (*batch, D, D)
    close(matrix, matrix.mT)
    v, V = randn(*batch, D, seed=2), randn(*batch, D, 3, seed=3)
    close(A @ v, (matrix @ v.unsqueeze(-1)).squeeze(-1))
    close(A.matvec(v), A @ v)
    close(A.matmat(V), matrix @ V)
    close(A.trace(), matrix.diagonal(dim1=-2, dim2=-1).sum(-1))
    assert A.dtype == matrix.dtype == torch.float64


def test_products_are_counted(example):
    A = example
    batch, before = A.shape[:-2], A.n_matvecs
    A @ randn(*batch, D)
    A.matmat(randn(*batch, D, 4))
    assert A.n_matvecs == before + 5


def test_a_vector_of_another_shape_is_refused(example):
    A = example
    batch = A.shape[:-2]
    with pytest.raises(ValueError, match=r"must have shape .*Got .*use matmat"):
        A @ randn(*batch, D, 2)
    with pytest.raises(ValueError, match="must have shape"):
        A.matvec(randn(*batch, D + 1))


def test_algebra():
    A, B = dense(), low_rank()
    a, b, v = A.to_dense(), B.to_dense(), randn(D)
    for operator, matrix in [
        (A + B, a + b),
        (A - B, a - b),
        (3 * A, 3 * a),
        (A * 3, 3 * a),
        (A / 4, a / 4),
        (-A, -a),
        (torch.tensor(2.0) * A, 2 * a),
        (np.float64(2) * A, 2 * a),
        (2 * (A - B / 2) + A, 3 * a - b),
    ]:
        close(operator.to_dense(), matrix)
        close(operator @ v, matrix @ v)
        close(operator.trace(), matrix.trace())


def test_a_sum_counts_in_its_terms_too():
    A = dense()
    total = A + A
    total @ randn(D)
    assert (total.n_matvecs, A.n_matvecs) == (1, 2)


@pytest.mark.parametrize(
    "other", [diagonal(3), DiagonalOperator(torch.ones(D)), DiagonalOperator(randn(4))]
)
def test_a_sum_of_unlike_operators_is_refused(other):
    with pytest.raises(ValueError, match=r"agree in shape and dtype. Got <Dense"):
        dense() + other


def test_repr():
    assert repr(dense(2)) == "<DenseOperator 2x6x6, torch.float64, cpu>"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scipy_sees_the_same_matrix(dtype):
    A = DenseOperator(with_spectrum(np.arange(20.0)).to(dtype))
    exported = A.to_scipy()
    assert exported.dtype == A.matrix.numpy().dtype
    x = np.linspace(0, 1, 20)
    np.testing.assert_allclose(exported @ x, A.matrix.numpy() @ x, rtol=1e-5)
    np.testing.assert_allclose(exported.rmatvec(x), exported @ x)
    np.testing.assert_allclose(exported @ np.eye(20), A.matrix.numpy(), rtol=1e-5)
    top = scipy.sparse.linalg.eigsh(exported, 1, return_eigenvectors=False)
    np.testing.assert_allclose(top, 19, rtol=1e-5)


def test_scipy_keeps_its_workspace():
    exported = FunctionOperator(lambda v: v, 5, dtype=torch.float64).to_scipy()
    x = np.arange(5.0)
    y = exported @ x
    x[:] = 0
    np.testing.assert_array_equal(y, np.arange(5.0))
    fixed = np.ones(5)
    fixed.flags.writeable = False
    np.testing.assert_array_equal(exported @ fixed, np.ones(5))
    np.testing.assert_array_equal(exported @ np.arange(5.0)[::-1], np.arange(5.0)[::-1])


def test_scipy_takes_no_batch():
    with pytest.raises(
        ValueError, match=r"one matrix. Got several, of shape \(3, 6, 6\)"
    ):
        dense(3).to_scipy()


@pytest.mark.parametrize("batch", [(), (3,)])
@pytest.mark.parametrize("make", [diagonal, identity, low_rank])
def test_draws_have_the_covariance(make, batch):
    """20,000 seeded draws in the operator's eigenbasis, by their own errors."""
    M = 20_000
    if batch:  # as chains of one operator
        A = make()
        if make is identity:
            A = ScaledIdentityOperator(A.scale.expand(M), D)
        elif make is diagonal:
            A = DiagonalOperator(A.diagonal.expand(M, D))
        else:
            A = LowRankOperator(
                A.eigenvalues.expand(M, 2), A.eigenvectors.expand(M, D, 2)
            )
        draws = A.sample(rng(1))
    else:
        A, generator = make(), rng(1)
        draws = torch.stack([A.sample(generator) for _ in range(M // 10)])
    covariance = make().to_dense()
    values, U = torch.linalg.eigh(covariance)
    kept = values > 1e-12
    outside, white = draws @ U[:, ~kept], draws @ U[:, kept] / values[kept].sqrt()
    assert outside.abs().max() < 1e-12 if outside.numel() else True
    m, r = white.shape
    assert white.mean(0).abs().max() < 4.5 / m**0.5
    error = white.T @ white / m - torch.eye(r)
    spread = (torch.ones(r, r) + torch.eye(r)) ** 0.5  # var 2 on the diagonal, else 1
    assert (error / spread).abs().max() < 4.5 / m**0.5


@pytest.mark.parametrize("make", [diagonal, identity, low_rank])
def test_draws_follow_the_generator(make):
    A = make(2)
    assert torch.equal(A.sample(rng(0)), A.sample(rng(0)))
    assert not torch.equal(A.sample(rng(0)), A.sample(rng(1)))
    assert A.sample(rng(0)).shape == (2, D)
    assert A.sample(rng(0)).dtype == torch.float64


def test_low_rank_takes_eigenvalues_in_float64():
    A = LowRankOperator(torch.ones(2).double(), torch.eye(4)[:, :2])
    assert (A @ torch.ones(4)).dtype == A.trace().dtype == torch.float32


@pytest.mark.parametrize("ask", ["to_dense", "trace"])
def test_a_sum_counts_the_products_with_its_terms(ask):
    A = randn(5, 5)
    counted = FunctionOperator(lambda v: A @ v, 5, dtype=A.dtype)
    whole = counted + DiagonalOperator(randn(5, seed=1))
    getattr(whole, ask)()
    assert whole.n_matvecs == counted.n_matvecs == 5
