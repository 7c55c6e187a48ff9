"""A potential of one's own, beside derivatives written by hand."""

import numpy as np
import pytest
import torch

from flatmin.curvature import HessianOperator, covariance_trace, hessian_eigenpairs
from flatmin.dynamics import simulate
from flatmin.noise import GLDConst, make_noise_law
from flatmin.risk import FunctionRisk

START = torch.tensor([0.5, -1.0], dtype=torch.float64)
close = torch.testing.assert_close


def valley(theta):
    """(x² - 1)² + y²(1 + x²)."""
    x, y = theta.unbind(-1)
    return (x**2 - 1) ** 2 + y**2 * (1 + x**2)


def gradient_by_hand(theta):
    x, y = theta.unbind(-1)
    return torch.stack([4 * x * (x**2 - 1) + 2 * x * y**2, 2 * y * (1 + x**2)], -1)


def hessian_by_hand(theta):
    x, y = theta.unbind(-1)
    mixed = 4 * x * y
    rows = [[12 * x**2 - 4 + 2 * y**2, mixed], [mixed, 2 * (1 + x**2)]]
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


@pytest.fixture
def risk():
    return FunctionRisk(valley, START)


@pytest.mark.parametrize("chains", [(), (4,), (2, 3)])
def test_values_and_derivatives(risk, chains):
    rng = torch.Generator().manual_seed(0)
    theta = torch.randn((*chains, 2), generator=rng, dtype=torch.float64)
    v = torch.randn((*chains, 2), generator=rng, dtype=torch.float64)
    close(risk.value(theta), valley(theta))
    close(risk.gradient(theta), gradient_by_hand(theta))
    close(risk.value_and_gradient(theta)[1], gradient_by_hand(theta))
    H = hessian_by_hand(theta)
    close(risk.hessian(theta), H)
    Hv = (H @ v.unsqueeze(-1)).squeeze(-1)
    close(risk.linearize(theta).hvp(v), Hv)
    close(HessianOperator(risk, theta) @ v, Hv)
    squared = (H @ Hv.unsqueeze(-1)).squeeze(-1)
    close(risk.squared_hessian_product(theta, v), squared)
    close(
        risk.squared_norms(theta).squeeze(-1), gradient_by_hand(theta).square().sum(-1)
    )
    assert not bool(covariance_trace(risk, theta).any())


def test_eigenpairs(risk):
    pairs = hessian_eigenpairs(risk, START, 2)
    values = torch.linalg.eigvalsh(hessian_by_hand(START))
    close(pairs.eigenvalues.sort().values, values)


def test_params_are_the_start(risk):
    given = risk.params()
    given += 1
    close(risk.params(), START)


@pytest.mark.parametrize(
    ("start", "dtype"),
    [
        ([1.0, 2.0], torch.float32),
        ([1, 2], torch.float32),
        (np.array([1.0, 2.0]), torch.float64),
        (np.array([1, 2]), torch.float32),
        (torch.tensor([1.0, 2.0], dtype=torch.float64), torch.float64),
        (torch.tensor([1, 2]), None),
    ],
)
def test_what_a_start_may_be(start, dtype):
    if dtype is None:
        with pytest.raises(TypeError, match="start must have a floating dtype"):
            FunctionRisk(valley, start)
        return
    risk = FunctionRisk(valley, start)
    assert risk.dtype == dtype
    close(risk.params(), torch.tensor([1.0, 2.0], dtype=dtype))


def test_gradient_descent_and_langevin_on_it(risk):
    """Of a quadratic f, the chain's stationary variance is η σ² / (2h - ηh²)."""
    bowl = FunctionRisk(lambda theta: 1.5 * (theta**2).sum(-1), [0.0, 0.0])
    lr, sigma, h = 0.1, 2.0, 3.0
    run = simulate(
        bowl, GLDConst(sigma=sigma), [1.0, 1.0], lr=lr, n_iter=100, n_chains=4000
    )["gld_const"]
    variance = run.theta.double().var(0)
    right = lr * sigma**2 / (2 * h - lr * h**2)
    assert bool(((variance / right - 1).abs() < 5 * (2 / 4000) ** 0.5).all())
    start = [[0.5, -1.0]] * 3
    descent = simulate(risk, "gd", start, lr=0.05, n_iter=400, n_chains=3)["gd"]
    close(descent.theta, torch.tensor([1.0, 0.0]).double().expand(3, 2))


@pytest.mark.parametrize("name", ["gd", "sgd", "gld_dynamic", "gld_full"])
def test_one_example_has_no_noise(risk, name):
    law = make_noise_law(name)
    law.check(risk)
    theta = START.expand(3, 2)
    rng = torch.Generator().manual_seed(0)
    state = law.refresh(risk, theta, rng)
    close(law.noisy_gradient(risk, theta, state, rng)[1], gradient_by_hand(theta))


def test_laws_with_a_size_of_their_own(risk):
    law = make_noise_law("gld_hessian", match="none", n_components=2)
    state = law.refresh(risk, START, torch.Generator().manual_seed(0))
    values, vectors = torch.linalg.eigh(hessian_by_hand(START))
    right = vectors @ values.abs().diag() @ vectors.T
    close(law.covariance(risk, START, state).to_dense(), right)


def test_there_is_no_gauss_newton_matrix(risk):
    law = make_noise_law("gld_ggn")
    with pytest.raises(ValueError, match="a FunctionRisk, whose f"):
        law.refresh(risk, START, torch.Generator().manual_seed(0))


def writes(theta):
    theta += 1
    return theta.sum(-1)


@pytest.mark.parametrize(
    ("f", "message"),
    [
        (lambda theta: theta.sum(), "one value for each chain.*dim=-1"),
        (lambda theta: theta, "one value for each chain"),
        (lambda theta: theta[0] ** 2 + theta[1], "theta\\[..., 0\\]"),
        (lambda theta: theta.sum(-1) + theta.sum(), "its own chain alone"),
        (lambda theta: theta.sum(-1) + torch.rand(()), "same at each call"),
        (lambda theta: theta.sum(-1).float(), "must return the dtype of θ"),
        (lambda theta: float(theta.sum()), "must return a Tensor. Got float"),
        (lambda theta: torch.as_tensor(theta.numpy().sum(-1)), "two derivatives"),
        (writes, "must leave θ as it is"),
        (lambda: 0, "f must be a function of .theta."),
        (None, "f must be a function of .theta."),
    ],
)
def test_refused(f, message):
    with pytest.raises((ValueError, TypeError), match=f"(?s){message}"):
        FunctionRisk(f, START)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (torch.zeros(2, 2), r"shape \(D,\)"),
        ([[1.0]], r"shape \(n,\)"),
        ([], r"shape \(D,\)"),
        ([float("nan"), 0.0], "NaN or infinity"),
        (torch.tensor([float("inf")]), "must be finite"),
        ("ab", "start must be an array of numbers"),
        (None, "start must be an array of numbers"),
    ],
)
def test_no_start(start, message):
    with pytest.raises((ValueError, TypeError), match=message):
        FunctionRisk(lambda theta: theta.sum(-1), start)
