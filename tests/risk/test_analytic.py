"""Analytic risks: closed forms, chains against a loop, and torch.func."""

import pytest
import torch
from torch.func import jacrev

from flatmin.risk import LinearRegressionRisk, QuadraticRisk

D, N = 3, 5
CHAINS = [(), (4,), (2, 3), (1,)]
close = torch.testing.assert_close


def rng(seed):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=rng(seed), dtype=dtype)


def quadratic(dtype=torch.float64, *, convex=True):
    A = randn(D, D, seed=1)
    A = A @ A.T if convex else A + A.T
    return QuadraticRisk(A.to(dtype), randn(N, D).to(dtype), randn(D, seed=2).to(dtype))


def regression(dtype=torch.float64):
    return LinearRegressionRisk(randn(N, D).to(dtype), randn(N, seed=1).to(dtype))


RISKS = {"quadratic": quadratic, "regression": regression}


@pytest.fixture(params=RISKS)
def risk(request):
    return RISKS[request.param]()


@pytest.fixture(params=CHAINS, ids=str)
def theta(request):
    return randn(*request.param, D, seed=5)


def chains(theta):
    return theta.reshape(-1, D)


def test_derivatives(risk):
    theta = randn(D, seed=5)
    close(risk.example_gradients(theta), jacrev(risk.example_losses)(theta))
    close(risk.gradient(theta), jacrev(risk.value)(theta))
    close(risk.hessian(theta), jacrev(jacrev(risk.value))(theta))
    close(risk.gauss_newton(theta), risk.hessian(theta))


def test_quadratic_has_the_stated_minimum_hessian_and_covariance():
    A, b = torch.diag(torch.tensor([4.0, 1.0])), torch.tensor([[3.0, 0.0], [1.0, 4.0]])
    risk = QuadraticRisk(A, b, minimum=torch.ones(2))
    at = torch.tensor([[1.0, 1.0], [2.0, 3.0]])
    close(risk.value(at), torch.tensor([0.0, 4.0]))
    close(risk.gradient(at), torch.tensor([[0.0, 0.0], [4.0, 2.0]]))
    # The slopes less their mean (2, 2) are ±(1, -2).
    expected = torch.tensor([[1.0, -2.0], [-2.0, 4.0]])
    close(risk.gradient_covariance(at), expected.expand(2, 2, 2))
    close(risk.hessian(at), A.expand(2, 2, 2))


def test_a_matrix_that_is_not_symmetric_counts_by_its_symmetric_part():
    risk = QuadraticRisk(torch.tensor([[1.0, 2.0], [0.0, 1.0]]), torch.zeros(1, 2))
    close(risk.matrix, torch.ones(2, 2))


def test_shapes(risk, theta):
    batch = theta.shape[:-1]
    v, direction = randn(*batch, N), randn(*batch, D, seed=1)
    indices = torch.randint(N, (*batch, 4), generator=rng(0))
    shapes = {
        (): [risk.value(theta), risk.value_and_batch_gradient(theta, indices)[0]],
        (N,): [
            risk.squared_norms(theta),
            risk.linearize(theta).directional_derivatives(direction),
            risk.gauss_newton_traces(theta),
        ],
        (D,): [
            risk.gradient(theta),
            risk.weighted_gradient(theta, v),
            risk.batch_gradient(theta, indices),
            risk.squared_gradient_sum(theta),
            risk.linearize(theta).hvp(direction),
            risk.linearize(theta).ggn(direction),
        ],
        (N, D): [*risk.per_example_gradients(theta)],
        (2, D): [risk.batch_gradients(theta, indices.unflatten(-1, (2, 2)))],
        (D, D): [
            risk.hessian(theta),
            risk.gauss_newton(theta),
            risk.gradient_covariance(theta),
        ],
    }
    for shape, answers in shapes.items():
        assert [tuple(a.shape) for a in answers] == [(*batch, *shape)] * len(answers)


def test_chains_are_a_loop(risk, theta):
    batch = theta.shape[:-1]
    v, direction = randn(*batch, N), randn(*batch, D, seed=1)
    indices = torch.randint(N, (*batch, 4), generator=rng(0))
    batches = torch.randint(N, (*batch, 3, 2), generator=rng(1))
    ones = torch.ones(batch, dtype=theta.dtype)
    for ask, *arguments in (
        (risk.value,),
        (risk.losses_at,),
        (risk.gradient,),
        (lambda t, v: risk.value_and_noisy_gradient(t, v)[0], v),
        (risk.weighted_gradient, v),
        (lambda t, i: risk.value_and_batch_gradient(t, i)[0], indices),
        (risk.batch_gradient, indices),
        (risk.batch_gradients, batches),
        (lambda t: next(risk.per_example_gradients(t)),),
        (risk.squared_norms,),
        (risk.squared_gradient_sum,),
        (risk.gradient_variances,),
        (risk.gauss_newton_traces,),
        (risk.gradient_covariance,),
        (lambda t, d: risk.linearize(t).hvp(d), direction),
        (lambda t, d: risk.linearize(t).ggn(d), direction),
        (lambda t, d: risk.linearize(t).directional_derivatives(d), direction),
        (lambda t, s: risk.value_and_gauss_newton_draw(t, s, rng(0))[0], ones),
    ):
        together = ask(theta, *arguments)
        flat = [a.reshape(-1, *a.shape[len(batch) :]) for a in (theta, *arguments)]
        one_by_one = torch.stack([ask(*row) for row in zip(*flat, strict=True)])
        close(together, one_by_one.reshape(together.shape))


def test_sums_over_examples_follow_from_the_gradients(risk, theta):
    rows = risk.example_gradients(theta)
    close(risk.squared_norms(theta), rows.square().sum(-1))
    close(risk.squared_gradient_sum(theta), rows.square().sum(-2))
    value, gradient, variances = risk.value_gradient_and_variances(theta)
    close(value, risk.value(theta))
    close(gradient, risk.gradient(theta))
    close(variances, rows.var(-2, correction=0))
    assert risk.squared_norms(theta).dtype == torch.float64
    v = randn(*theta.shape[:-1], N)
    expected = torch.einsum("...n,...nd->...d", v, rows) / N
    close(risk.weighted_gradient(theta, v), expected)


def test_traces_are_exact_and_sum_to_the_trace(risk, theta):
    assert risk.n_outputs == 1
    trace = risk.gauss_newton(theta).diagonal(dim1=-2, dim2=-1).sum(-1)
    close(risk.gauss_newton_traces(theta).mean(-1), trace)


def test_roots_of_g(risk, theta):
    roots = risk.gauss_newton_roots(theta)
    close(roots.mT @ roots, risk.gauss_newton(theta))


def test_gauss_newton_draws(risk):
    """20,000 chains at one θ: mean g₀ and covariance s²G, judged by their errors."""
    M, theta = 20_000, randn(D, seed=5)
    scale = torch.full((M,), 3.0, dtype=torch.float64)
    value, draws = risk.value_and_gauss_newton_draw(theta.expand(M, D), scale, rng(0))
    close(value, risk.value(theta).expand(M))
    noise = (draws - risk.gradient(theta)) / 3
    assert (noise.mean(0) / noise.std(0)).abs().max() < 4.5 / M**0.5
    products = noise[:, :, None] * noise[:, None, :]
    error = products.mean(0) - risk.gauss_newton(theta)
    assert (error / products.std(0)).abs().max() < 4.5 / M**0.5


def test_an_indefinite_matrix_has_a_hessian_and_no_gauss_newton_noise():
    risk, theta = quadratic(convex=False), torch.zeros(D, dtype=torch.float64)
    close(risk.hessian(theta), risk.matrix)
    with pytest.raises(
        ValueError, match=r"needs a positive semi-definite A.*Got the eig"
    ):
        risk.gauss_newton(theta)


@pytest.mark.parametrize("make", RISKS.values(), ids=RISKS)
def test_float32_stays_float32(make):
    risk, theta = make(torch.float32), randn(2, D, dtype=torch.float32)
    assert risk.dtype == torch.float32
    for answer in (
        risk.value(theta),
        risk.gradient(theta),
        risk.hessian(theta),
        risk.value_and_gauss_newton_draw(theta, torch.ones(2), rng(0))[1],
    ):
        assert answer.dtype == torch.float32


def test_linearising_an_indefinite_quadratic_gives_hessian_products():
    risk, v = quadratic(convex=False), randn(D)
    point = risk.linearize(torch.zeros(D, dtype=torch.float64))
    close(point.hvp(v), risk.matrix @ v)
