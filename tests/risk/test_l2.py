"""A penalty (λ/2)‖θ‖² in every quantity, beside dense float64 autograd."""

import pickle
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import nn

from flatmin.curvature import (
    EmpiricalFisherOperator,
    FisherOperator,
    GGNOperator,
    GradientCovarianceOperator,
    HessianOperator,
    _hessian,
    ggn_trace,
    hessian_trace,
)
from flatmin.measures import (
    expected_sharpness,
    gradient_noise,
    non_uniformity,
    sam_sharpness,
    trace_hessian_covariance,
)
from flatmin.risk import EmpiricalRisk, LabelDraw, QuadraticRisk
from tests import oracles

N, L2 = 7, 0.6
LOSSES = {
    "cross_entropy": oracles.cross_entropy,
    "squared_error": oracles.squared_error,
}


def close(found, right, rtol=1e-9):
    found, right = torch.as_tensor(found).double(), torch.as_tensor(right).double()
    torch.testing.assert_close(found, right, rtol=rtol, atol=rtol)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=rng(seed), dtype=torch.float64)


class Case(NamedTuple):
    """A risk with a penalty, and the dense one without it."""

    risk: EmpiricalRisk
    theta: torch.Tensor
    plain: oracles.Dense
    at: Callable  # θ and some rows to the dense one of these, without weights
    scales: torch.Tensor  # (N,) N wᵢ / Σw


@pytest.fixture(scope="module", params=LOSSES)
def case(request):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    X, weights = normal(N, 3, seed=1), torch.linspace(0, 2, N, dtype=torch.float64)
    y = torch.arange(N) % 3 if request.param == "cross_entropy" else normal(N, 3)
    options = {"sample_weight": weights, "chunk_size": 3}
    risk = EmpiricalRisk(module, request.param, X, y, l2=L2, **options)
    theta = risk.params()

    def at(theta, rows=slice(None)):
        losses = LOSSES[request.param]
        w = weights[rows] if rows == slice(None) else None
        return oracles.dense(module, losses, X[rows], y[rows], theta, weights=w)

    return Case(risk, theta, at(theta), at, weights * (N / weights.sum()))


def test_value_and_gradients(case):
    risk, theta, plain, *_ = case
    value = plain.value + L2 / 2 * theta @ theta
    gradient, pull = plain.gradient + L2 * theta, L2 * theta
    close(risk.value(theta), value)
    close(risk.gradient(theta), gradient)
    for found in (
        risk.value_and_gradient(theta),
        risk.value_gradient_and_variances(theta)[:2],
    ):
        close(found[0], value)
        close(found[1], gradient)
    doubled = case.at(2 * theta).value + 2 * L2 * theta @ theta
    close(risk.losses_at(torch.stack([theta, 2 * theta])), [value, doubled])
    v = normal(N, seed=2)
    noisy = risk.value_and_noisy_gradient(theta, v)
    close(noisy[0], value)
    close(noisy[1], gradient + v @ plain.gradients / N)
    close(risk.weighted_gradient(theta, v), v @ plain.gradients / N)
    batch = torch.tensor([1, 5, 5])
    found = risk.value_and_batch_gradient(theta, batch)
    close(found[0], plain.losses[batch].mean() + L2 / 2 * theta @ theta)
    close(found[1], plain.gradients[batch].mean(0) + pull)
    close(risk.batch_gradients(theta, batch[:, None]), plain.gradients[batch] + pull)


def test_rows_hold_no_penalty(case):
    risk, theta, plain, *_ = case
    rows = plain.gradients
    close(torch.cat(list(risk.per_example_gradients(theta))), rows)
    close(risk.squared_norms(theta), rows.square().sum(1))
    close(risk.squared_gradient_sum(theta), rows.square().sum(0))
    close(risk.gradient_variances(theta), plain.covariance.diag())
    close(risk.value_gradient_and_variances(theta)[2], plain.covariance.diag())
    v = normal(len(theta), seed=3)
    close(risk.linearize(theta).directional_derivatives(v), rows @ v)
    close(GradientCovarianceOperator(risk, theta) @ v, plain.covariance @ v)
    close(GradientCovarianceOperator(risk, theta).to_dense(), plain.covariance)
    second = rows.T @ rows / N
    close(EmpiricalFisherOperator(risk, theta).to_dense(), second)
    close(EmpiricalFisherOperator(risk, theta) @ v, second @ v)


def test_curvature(case, monkeypatch):
    risk, theta, plain, *_ = case
    D = len(theta)
    I = torch.eye(D, dtype=theta.dtype)  # noqa: E741 - the identity
    H, G = plain.hessian + L2 * I, plain.gauss_newton + L2 * I
    close(HessianOperator(risk, theta).to_dense(), H)
    close(GGNOperator(risk, theta).to_dense(), G)
    close(FisherOperator(risk, theta).to_dense(), plain.gauss_newton)
    block = HessianOperator(risk, theta, select="2").to_dense()
    close(block, H[16:, 16:])
    close(hessian_trace(risk, theta, rtol=0.0).value, H.trace())
    close(ggn_trace(risk, theta, rtol=0.0).value, G.trace())
    without = ggn_trace(risk, theta, rtol=0.0, penalty=False)
    close(without.value, plain.gauss_newton.trace())
    monkeypatch.setattr(_hessian, "FEW_OUTPUTS", 0)
    estimate = ggn_trace(risk, theta, rtol=0.5, max_sweeps=2, rng=0)
    assert abs(float(estimate) - G.trace()) < 5 * float(estimate.stderr)
    assert float(estimate.stderr) > 0
    close(risk.gauss_newton_traces(theta).mean(), plain.gauss_newton.trace())


def test_gauss_newton_draws(case, monkeypatch):
    # Affine in its normal numbers: of unit vectors it gives the columns of a root of G.
    risk, theta, plain, *_ = case
    shapes = [plain.outputs.shape, theta.shape]
    sizes = [shape.numel() for shape in shapes]
    real, columns = torch.randn, []
    for unit in torch.eye(sum(sizes), dtype=theta.dtype):
        parts = dict(zip(shapes, unit.split(sizes), strict=True))

        def randn(shape, parts=parts, **options):  # trials of the loss draw, too
            part = parts.get(torch.Size(shape))
            return real(shape, **options) if part is None else part.view(shape).clone()

        monkeypatch.setattr(torch, "randn", randn)
        scale = torch.tensor(0.5, dtype=theta.dtype)
        value, gradient = risk.value_and_gauss_newton_draw(theta, scale, rng())
        close(value, plain.value + L2 / 2 * theta @ theta)
        columns.append((gradient - plain.gradient - L2 * theta) / 0.5)
    root = torch.stack(columns, 1)
    identity = torch.eye(len(theta), dtype=theta.dtype)
    close(root @ root.T, plain.gauss_newton + L2 * identity)


def test_labels_drawn_anew(case):
    risk, theta, plain, *_ = case
    draw = LabelDraw(0.0, 0.0)
    scale = torch.ones((), dtype=theta.dtype)
    value, gradient = risk.value_and_label_draw(theta, draw, scale, rng())
    close(value, plain.value + L2 / 2 * theta @ theta)
    close(gradient, plain.gradient + L2 * theta)


def test_measures(case):
    risk, theta, plain, *_ = case
    H = plain.hessian + L2 * torch.eye(len(theta), dtype=theta.dtype)
    right = (H @ plain.covariance).trace()
    for method in ("exact", "sampled", "low_rank"):
        found = trace_hessian_covariance(
            risk, theta, method=method, rtol=0.0, max_matvecs=1000, k=N - 1, rng=0
        )
        close(found.value, right, 1e-6)
    noise = gradient_noise(risk, theta)
    close(noise.gradient_norm, (plain.gradient + L2 * theta).norm())
    close(noise.trace, plain.covariance.trace())
    step = 0.05 * risk.gradient(theta) / risk.gradient(theta).norm()
    right = risk.value(theta + step) - risk.value(theta)
    close(sam_sharpness(risk, theta, rho=0.05).value, right, 1e-7)
    sharp = expected_sharpness(risk, theta, sigma=1e-4, n_draws=4000, rng=0)
    assert abs(float(sharp) - 5e-9 * H.trace()) < 6 * float(sharp.stderr)


def test_hessians_differ_by_what_they_did(case):
    risk, theta, *_ = case
    alone = [case.at(theta, slice(i, i + 1)).hessian for i in range(N)]
    hessians = case.scales[:, None, None] * torch.stack(alone)
    matrix = (hessians @ hessians).mean(0) - hessians.mean(0) @ hessians.mean(0)
    right = torch.linalg.eigvalsh(matrix)[-1].sqrt()
    close(non_uniformity(risk, theta).value, right, 1e-4)


def test_every_identity_of_the_audit_holds(case):
    risk, theta, *_ = case
    found = risk.audit(theta)
    assert found.fails == ()
    assert "λθ" in str(found)
    assert "λv" in str(found)


def test_it_goes_along(case):
    risk, theta, *_ = case
    value = risk.value(theta)
    for other in (
        pickle.loads(pickle.dumps(risk)),
        risk.to(dtype="float32").to(dtype="float64"),
        risk.subset(torch.arange(N)),
    ):
        assert other.l2 == L2
        close(other.value(theta), value, 1e-6)
    single = risk.to(dtype="float32")
    close(single.value(theta.float()), value, 1e-6)


def test_formulas_have_none():
    risk = QuadraticRisk(torch.eye(2), torch.zeros(1, 2))
    assert risk.l2 == 0


@pytest.mark.parametrize("l2", [-1.0, float("nan"), float("inf"), "1", True, None])
def test_what_is_no_penalty(l2):
    X = torch.zeros(2, 1)
    with pytest.raises(ValueError, match="l2 must be a finite number of at least 0"):
        EmpiricalRisk(nn.Linear(1, 1), "squared_error", X, X, l2=l2)
