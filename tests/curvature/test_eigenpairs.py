"""Leading eigenpairs of H and Σ: dense, Gram and Lanczos against each other."""

import pytest
import torch
from torch import nn

from flatmin.curvature import (
    _eigenpairs,
    covariance_eigenpairs,
    hessian_eigenpairs,
    minibatch_eigenpairs,
)
from flatmin.measures import max_eigenvalue
from flatmin.risk import EmpiricalRisk

from ._problems import ANALYTIC, CHAINS, N, empirical, oracle, quadratic, randn, rng

close = torch.testing.assert_close


@pytest.fixture(params=ANALYTIC)
def analytic(request):
    return ANALYTIC[request.param]()


@pytest.fixture(params=CHAINS, ids=str)
def chains(request):
    return request.param


def check(result, matrix, k, which="LA", tol=1e-6):
    """Judge pairs by a (batch of) dense matrix alone."""
    matrix, U = matrix.double(), result.eigenvectors.double()
    rising = torch.linalg.eigvalsh(matrix)
    falling = rising.flip(-1)
    scale = rising.abs().amax()
    expected = {
        "LA": falling[..., :k],
        "SA": rising[..., :k],
        "LM": falling.take_along_dim(falling.abs().argsort(-1, descending=True), -1)[
            ..., :k
        ],
    }[which]
    assert result.eigenvalues.dtype == torch.float64
    close(result.eigenvalues, expected, rtol=0, atol=float(tol * scale))
    true = torch.linalg.vector_norm(
        matrix @ U - result.eigenvalues.unsqueeze(-2) * U, dim=-2
    )
    assert (true <= tol * scale).all()
    close(result.residuals, true, rtol=0.5, atol=float(tol * scale))
    close(U.mT @ U, torch.eye(k).double().expand(*U.shape[:-2], k, k), atol=tol, rtol=0)
    assert result.converged.all()


@pytest.mark.parametrize("which", ["LM", "LA", "SA"])
@pytest.mark.parametrize("width", [3, 12])  # D = 27, dense, and 99, Lanczos
def test_hessian(width, which):
    risk, theta = empirical(width)
    result = hessian_eigenpairs(risk, theta, 4, which=which, tol=1e-7, rng=rng())
    check(result, oracle(width).hessian, 4, which)
    assert result.n_matvecs > 0


def test_hessian_of_a_linear_model_with_repeated_eigenvalues():
    X = randn(N, 25) * torch.linspace(0.1, 2, 25)
    risk = EmpiricalRisk(
        nn.Linear(25, 3, bias=False).double(), "squared_error", X, randn(N, 3)
    )
    result = hessian_eigenpairs(risk, risk.params(), 6, tol=1e-3, rng=rng())
    values = torch.linalg.eigvalsh(2 * X.T @ X / (3 * N)).flip(0)
    close(result.eigenvalues, values[:2].repeat_interleave(3), rtol=1e-3, atol=0)


@pytest.mark.parametrize("which", ["LM", "LA", "SA"])
def test_hessian_of_chains(analytic, chains, which):
    theta = randn(*chains, analytic.n_params)
    result = hessian_eigenpairs(analytic, theta, 3, which=which)
    assert result.eigenvectors.shape == (*chains, analytic.n_params, 3)
    check(result, analytic.hessian(theta), 3, which)


@pytest.mark.parametrize("limit", [None, 0], ids=["Gram", "Lanczos"])
@pytest.mark.parametrize("weights", [None, torch.linspace(0.2, 2, N)])
@pytest.mark.parametrize("width", [1, 3, 12])  # D = 11 < N, 27 and 99 > N
def test_covariance(width, weights, limit, monkeypatch):
    if limit is not None:
        monkeypatch.setattr(_eigenpairs, "GRAM_LIMIT", limit)
    risk, theta = empirical(width, weights=weights)
    expected = oracle(width, weighted=weights is not None).covariance
    result = covariance_eigenpairs(risk, theta, 5, tol=1e-7, rng=rng())
    check(result, expected, 5)
    # Products are taken by Lanczos alone, and where a dense solver will not do.
    assert (result.n_matvecs > 0) == (limit == 0 and risk.n_params > 64)


@pytest.mark.parametrize("width", [1, 12])
def test_covariance_in_float32(width):
    risk, theta = empirical(width, dtype=torch.float32)
    result = covariance_eigenpairs(risk, theta, 5)
    assert result.eigenvectors.dtype == torch.float32
    check(result, oracle(width).covariance, 5, tol=2e-5)


@pytest.mark.parametrize("width", [1, 3])
def test_covariance_up_to_its_rank(width):
    risk, theta = empirical(width)
    k = min(risk.n_params, N - 1)
    check(covariance_eigenpairs(risk, theta, k), oracle(width).covariance, k)


def test_covariance_of_chains(analytic, chains):
    theta = randn(*chains, analytic.n_params)
    result = covariance_eigenpairs(analytic, theta, 3)
    check(result, analytic.gradient_covariance(theta), 3)


def test_covariance_of_lower_rank_than_k():
    # Two distinct gradients only: Σ has rank one.
    X = torch.ones(N, 40).double() * (torch.arange(N) % 2)[:, None]
    y = torch.ones(N).double()
    risk = EmpiricalRisk(nn.Linear(40, 1).double(), "squared_error", X, y)
    result = covariance_eigenpairs(risk, risk.params(), 3)
    assert result.eigenvalues[0] > 0
    close(result.eigenvalues[1:], torch.zeros(2).double(), atol=1e-12, rtol=0)
    U = result.eigenvectors
    close(U.T @ U, torch.eye(3).double())


# -- minibatches: m times their covariance with ddof 1 --------------------------------


@pytest.mark.parametrize("width", [1, 3, 12])
def test_minibatches(width):
    risk, theta = empirical(width)
    batches = torch.randperm(N, generator=rng()).view(6, 2)
    means = oracle(width).gradients[batches].mean(1)
    check(
        minibatch_eigenpairs(risk, theta, 4, batches=batches), 2 * torch.cov(means.T), 4
    )


def test_minibatches_of_chains(analytic, chains):
    theta = randn(*chains, analytic.n_params)
    batches = torch.rand(*chains, N, generator=rng()).argsort(-1).unflatten(-1, (4, 3))
    rows = analytic.batch_gradients(theta, batches)
    centred = rows - rows.mean(-2, keepdim=True)
    result = minibatch_eigenpairs(analytic, theta, 2, batches=batches)
    check(result, centred.mT @ centred * 3 / 3, 2)


def test_minibatches_of_one_example_give_n_over_n_minus_one():
    risk, theta = empirical()
    single = minibatch_eigenpairs(risk, theta, 5, batches=torch.arange(N)[:, None])
    whole = covariance_eigenpairs(risk, theta, 5)
    close(single.eigenvalues, whole.eigenvalues * N / (N - 1))


def test_minibatches_estimate_the_covariance():
    """The mean over random partitions is N/(N-1) Σ; 400 seeded ones by their error."""
    risk, theta = quadratic(), torch.zeros(400, 4).double()
    batches = torch.rand(400, N, generator=rng()).argsort(-1).unflatten(-1, (4, 3))
    result = minibatch_eigenpairs(risk, theta, 3, batches=batches)
    traces = result.eigenvalues.sum(-1)
    exact = risk.gradient_covariance(theta[0])
    # Three pairs are all of it but the least eigenvalue: compare the whole trace.
    rows = risk.batch_gradients(theta, batches)
    whole = rows.var(-2, correction=1).sum(-1) * 3
    assert (traces <= whole + 1e-12).all()
    z = (whole.mean() - exact.trace() * N / (N - 1)) / (whole.std() / 20)
    assert z.abs() < 4


# -- bad input ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda r, t: hessian_eigenpairs(r, t, 0), "1 and D = 27. Got 0"),
        (lambda r, t: hessian_eigenpairs(r, t, 28), "1 and D = 27. Got 28"),
        (
            lambda r, t: covariance_eigenpairs(r, t, 12),
            r"1 and min\(D, N - 1\) = 11. Got 12",
        ),
        (
            lambda r, t: minibatch_eigenpairs(
                r, t, 4, batches=torch.arange(N).view(4, 3)
            ),
            r"1 and min\(D, b - 1\) = 3. Got 4",
        ),
        (
            lambda r, t: minibatch_eigenpairs(
                r, t, 1, batches=torch.arange(N).view(1, N)
            ),
            r"1 and min\(D, b - 1\) = 0. Got 1",
        ),
    ],
)
def test_k_that_does_not_fit(ask, message):
    with pytest.raises(ValueError, match=f"k must be an integer between {message}"):
        ask(*empirical())


def test_k_that_does_not_fit_an_analytic_risk():
    with pytest.raises(ValueError, match=r"1 and D = 4. Got 5"):
        hessian_eigenpairs(quadratic(), torch.zeros(4).double(), 5)


def test_a_start_at_the_eigenvector_takes_fewer_products():
    risk, theta = empirical(40)
    values, vectors = torch.linalg.eigh(oracle(40).hessian)
    start = vectors[:, -1] + 1e-3 * randn(len(theta)) / len(theta) ** 0.5
    cold = hessian_eigenpairs(risk, theta, 1, rng=rng())
    warm = hessian_eigenpairs(risk, theta, 1, v0=start, rng=rng())
    assert warm.n_matvecs < cold.n_matvecs
    close(warm.eigenvalues, values[-1:])
    sharpness = max_eigenvalue(risk, theta, v0=start)
    assert sharpness.n_matvecs == warm.n_matvecs
    with pytest.raises(ValueError, match=r"v0 must have shape \(323,\). Got \(3,\)"):
        hessian_eigenpairs(risk, theta, 1, v0=randn(3))
