"""Networks whose derivatives are known by formula: linear, logistic, softmax."""

import math

import pytest
import torch
from torch import nn

from flatmin.risk import EmpiricalRisk, LinearRegressionRisk

N, D, C = 9, 4, 3


def rng(seed):
    return torch.Generator().manual_seed(seed)


X = torch.randn(N, D, generator=rng(0), dtype=torch.float64)
WEIGHTS = torch.linspace(0, 2, N, dtype=torch.float64)
close = torch.testing.assert_close


@pytest.fixture(params=[None, WEIGHTS], ids=["no weights", "weights"])
def weights(request):
    return request.param


@pytest.fixture
def w(weights):
    """The wᵢ of the formulas, with mean 1."""
    ones = torch.ones(N, dtype=torch.float64)
    return ones if weights is None else weights / weights.mean()


@pytest.fixture
def theta():
    return torch.randn(D, generator=rng(1), dtype=torch.float64)


def linear(n_out=1):
    return nn.Linear(D, n_out, bias=False).double()


def matrices(risk, theta):
    """Return H and G column by column."""
    point, eye = risk.linearize(theta), torch.eye(len(theta), dtype=theta.dtype)
    H = torch.stack([point.hvp(e) for e in eye], dim=1)
    return H, torch.stack([point.ggn(e) for e in eye], dim=1)


def test_linear_regression(theta, weights, w):
    y = torch.randn(N, generator=rng(2), dtype=torch.float64)
    risk = EmpiricalRisk(
        linear(), "squared_error", X, y, sample_weight=weights, chunk_size=4
    )
    residuals = X @ theta - y
    close(risk.value(theta), (w * residuals**2).mean())
    close(risk.gradient(theta), 2 * X.T @ (w * residuals) / N)
    close(
        torch.cat(list(risk.per_example_gradients(theta))),
        2 * (w * residuals)[:, None] * X,
    )
    for matrix in matrices(risk, theta):
        close(matrix, 2 * X.T @ (w[:, None] * X) / N)


def test_several_outputs_share_one_mean(theta):
    # H = I ⊗ 2/(NC) XᵀX, every eigenvalue C times.
    y = torch.randn(N, C, generator=rng(2), dtype=torch.float64)
    risk = EmpiricalRisk(linear(C), "squared_error", X, y)
    theta = theta.repeat(C)
    close(risk.value(theta), ((X @ theta.view(C, D).T - y) ** 2).mean())
    expected = torch.kron(torch.eye(C), 2 * X.T @ X / (N * C))
    for matrix in matrices(risk, theta):
        close(matrix, expected)


def test_logistic_regression(theta, weights, w):
    y = (torch.arange(N) % 2).double()
    risk = EmpiricalRisk(linear(), "binary_cross_entropy", X, y, sample_weight=weights)
    p = torch.sigmoid(X @ theta)
    close(risk.value(theta), -(w * (y * p.log() + (1 - y) * (1 - p).log())).mean())
    close(risk.gradient(theta), X.T @ (w * (p - y)) / N)
    for matrix in matrices(risk, theta):
        close(matrix, X.T @ ((w * p * (1 - p))[:, None] * X) / N)


def test_softmax_regression(theta, weights, w):
    y = torch.arange(N) % C
    risk = EmpiricalRisk(linear(C), "cross_entropy", X, y, sample_weight=weights)
    theta = torch.cat([theta, -theta, 2 * theta])
    p = torch.softmax(X @ theta.view(C, D).T, dim=1)
    slopes = p - torch.eye(C, dtype=torch.float64)[y]
    close(risk.value(theta), -(w * p[torch.arange(N), y].log()).mean())
    close(risk.gradient(theta), torch.einsum("n,nc,nd->cd", w, slopes, X).flatten() / N)
    S = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    expected = torch.einsum("n,nab,nd,ne->adbe", w, S, X, X).reshape(C * D, C * D) / N
    for matrix in matrices(risk, theta):
        close(matrix, expected)


def test_uniform_logits_of_a_sequence_cost_log_c():
    y = torch.zeros(N, 5, dtype=torch.long)
    risk = EmpiricalRisk(nn.Conv1d(2, C, 1), "cross_entropy", torch.ones(N, 2, 5), y)
    assert float(risk.value(torch.zeros(risk.n_params))) == pytest.approx(math.log(C))


def test_the_analytic_twin_agrees(theta):
    y = torch.randn(N, generator=rng(2), dtype=torch.float64)
    network = EmpiricalRisk(linear(), "squared_error", X, y)
    formula = LinearRegressionRisk(X, y)
    v = torch.randn(N, generator=rng(3), dtype=torch.float64)
    indices = torch.tensor([3, 3, 8])
    for ask in (
        lambda r: r.value(theta),
        lambda r: r.losses_at(torch.stack([theta, -theta])),
        lambda r: r.gradient(theta),
        lambda r: r.weighted_gradient(theta, v),
        lambda r: r.value_and_noisy_gradient(theta, v)[0],
        lambda r: r.batch_gradient(theta, indices),
        lambda r: r.value_and_batch_gradient(theta, indices)[0],
        lambda r: r.batch_gradients(theta, indices[:, None]),
        lambda r: torch.cat(list(r.per_example_gradients(theta))),
        lambda r: r.squared_norms(theta),
        lambda r: r.squared_gradient_sum(theta),
        lambda r: r.linearize(theta).directional_derivatives(theta),
        lambda r: r.gauss_newton_traces(theta, rng(0)).mean(),
        lambda r: r.linearize(theta).hvp(theta),
        lambda r: r.linearize(theta).ggn(theta),
    ):
        close(ask(network), ask(formula))
