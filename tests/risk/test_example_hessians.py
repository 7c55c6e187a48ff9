"""(1/N) Σ Hᵢ² v and (2/N) Σ Hᵢnᵢ against dense float64 of single examples."""

import pytest
import torch
from torch import nn

from flatmin.risk import EmpiricalRisk, LinearRegressionRisk, QuadraticRisk

from .. import oracles
from ._cases import WEIGHTS, N, make_risk, mlp, problem

VECTORISED = [
    "mlp",
    "mlp, log-cosh",
    "convolutional, one channel",
    "tied",
    "embedding",
    "tuple",
]
PLAIN = ["LSTM", "branching"]
EITHER = ["layer norm", "transformer", "in place on the input"]
close = torch.testing.assert_close


def dense(name, w):
    """Return (1/N) Σ Hᵢ², (2/N) Σ Hᵢnᵢ with nᵢ = gᵢ - g₀, and H g₀."""
    p = problem(name)
    total = torch.zeros(len(p.theta), len(p.theta), dtype=torch.float64)
    hessians, rows = [], []
    transform = p.case.options.get("output_transform", lambda outputs: outputs)
    for i in range(N):
        one = slice(i, i + 1)
        example = oracles.dense(
            *(p.module, p.case.losses, p.X[one], p.y[one], p.theta),
            transform=transform,
        )
        hessians.append(w[i] * example.hessian)
        rows.append(w[i] * example.gradient)
        total += hessians[i] @ hessians[i] / N
    mean = torch.stack(rows).mean(0)
    pulls = (H @ (g - mean) for H, g in zip(hessians, rows, strict=True))
    return total, 2 / N * sum(pulls), torch.stack(hessians).mean(0) @ mean


@pytest.mark.parametrize(
    ("name", "weighted"),
    [
        *((name, False) for name in (*VECTORISED, *PLAIN, *EITHER)),
        ("mlp", True),
        ("branching", True),
    ],
)
def test_against_dense_hessians(name, weighted):
    risk, theta = make_risk(name, 3, weighted), problem(name).theta
    w = WEIGHTS * N / WEIGHTS.sum() if weighted else torch.ones(N).double()
    expected, pulls, product = dense(name, w)
    for v in torch.eye(len(theta)).double()[:: max(1, len(theta) // 4)]:
        close(risk.squared_hessian_product(theta, v), expected @ v)
    close(risk.covariance_trace_gradient(theta), pulls)
    close(risk.value_gradient_and_product(theta)[2], product)
    several = risk.value_gradient_and_product(theta.expand(2, -1))
    close(several[2], product.expand(2, -1))
    for sums in ("per-example Hessians", "per-example Hessians, ∇Tr(Σ)"):
        path = risk.paths[sums]
        if name in VECTORISED:
            assert path == "vmap"
        if name in PLAIN:
            assert path.startswith("reference: ")


def test_a_wrong_vectorised_product_is_noticed(monkeypatch):
    X = torch.linspace(-1, 1, 20).double().view(5, 4)
    y = torch.tensor([0, 1, 2, 0, 1])
    risk = EmpiricalRisk(mlp().double(), "cross_entropy", X, y)
    theta, v = risk.params(), torch.ones(risk.n_params).double()
    right = risk.squared_hessian_product(theta, v)
    other = EmpiricalRisk(mlp().double(), "cross_entropy", X, y)
    vectorised = type(other._hessians)._vectorised
    monkeypatch.setattr(
        type(other._hessians),
        "_vectorised",
        lambda self, *args: 1.01 * vectorised(self, *args),
    )
    close(other.squared_hessian_product(theta, v), right)
    assert "is off by" in other.paths["per-example Hessians"]
    pulled = risk.covariance_trace_gradient(theta)
    close(other.covariance_trace_gradient(theta), pulled)
    assert "is off by" in other.paths["per-example Hessians, ∇Tr(Σ)"]


def test_a_penalty_takes_no_digits_of_the_covariance():
    X = torch.linspace(-1, 1, 20).view(5, 4)
    y = torch.tensor([0, 1, 2, 0, 1])
    plain, penalised = (
        EmpiricalRisk(mlp(), "cross_entropy", X, y, l2=l2) for l2 in (0.0, 1e6)
    )
    theta = plain.params()
    pulled = plain.covariance_trace_gradient(theta)
    close(penalised.covariance_trace_gradient(theta), pulled)


def test_linear_regression():
    rng = torch.Generator().manual_seed(0)
    X, y = (torch.randn(6, *n, generator=rng).double() for n in ((4,), ()))
    theta, v = torch.randn(2, 4, generator=rng).double()
    expected = sum(4 * x * (x @ x) * (x @ v) for x in X) / 6
    analytic = LinearRegressionRisk(X, y)
    close(analytic.squared_hessian_product(theta, v), expected)
    chains = analytic.squared_hessian_product(theta.expand(3, 4), v.expand(3, 4))
    close(chains, expected.expand(3, 4))
    rows = 2 * (X @ theta - y)[:, None] * X
    centred = rows - rows.mean(0)
    pulled = sum(4 * x * (x @ n) for x, n in zip(X, centred, strict=True)) / 6
    close(analytic.covariance_trace_gradient(theta), pulled)
    close(analytic.covariance_trace_gradient(theta.expand(3, 4)), pulled.expand(3, 4))
    module = nn.Linear(4, 1, bias=False).double()
    risk = EmpiricalRisk(module, "squared_error", X, y, chunk_size=4)
    close(risk.squared_hessian_product(theta, v), expected)
    close(risk.covariance_trace_gradient(theta), pulled)
    close(risk.covariance_trace_gradient(theta.expand(2, 4)), pulled.expand(2, 4))


def test_a_quadratic_has_one_hessian():
    A = torch.tensor([[2.0, 1.0], [1.0, 3.0]]).double()
    risk = QuadraticRisk(A, torch.eye(2).double())
    v = torch.tensor([1.0, -2.0]).double()
    close(risk.squared_hessian_product(torch.zeros(2).double(), v), A @ A @ v)
