"""The double well: curvature, barrier, derivatives, and times of escape."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import cumulative_trapezoid

from flatmin.dynamics import simulate
from flatmin.noise import GLDConst, GLDHessian
from flatmin.risk import DoubleWellRisk

DOUBLE = {"dtype": "float64"}


@pytest.mark.parametrize(("k", "b"), [(1.0, 1.0), (0.3, 7.0), (200.0, 0.01)])
def test_its_curvature_and_barrier_are_those_asked_for(k, b):
    risk = DoubleWellRisk(k, b, **DOUBLE)
    ends = torch.stack([risk.minimum, -risk.minimum, 0 * risk.minimum])
    torch.testing.assert_close(risk.value(ends), torch.tensor([0, 0, b]).double())
    assert risk.gradient(ends).abs().max() <= 1e-12 * k * risk.width
    curved = torch.tensor([k, k, -k / 2]).double().view(3, 1, 1)
    torch.testing.assert_close(risk.hessian(ends), curved)
    torch.testing.assert_close(risk.gauss_newton(ends)[:2], curved[:2])


def test_derivatives():
    risk = DoubleWellRisk(3.0, 0.5, **DOUBLE)
    theta = torch.linspace(-2, 2, 9).double().unsqueeze(1).requires_grad_()
    w = math.sqrt(8 * 0.5 / 3)
    value = 0.5 * ((theta[:, 0] / w) ** 2 - 1) ** 2
    torch.testing.assert_close(risk.value(theta.detach()), value.detach())
    (slope,) = torch.autograd.grad(value.sum(), theta, create_graph=True)
    torch.testing.assert_close(risk.gradient(theta.detach()), slope.detach())
    (curved,) = torch.autograd.grad(slope.sum(), theta)
    torch.testing.assert_close(risk.hessian(theta.detach()), curved.unsqueeze(1))
    residual = math.sqrt(0.5) * (theta / w) ** 2
    (J,) = torch.autograd.grad(residual.sum(), theta)
    G = risk.gauss_newton(theta.detach())
    torch.testing.assert_close(G, 2 * J.square().unsqueeze(1))


def passage_time(risk, T, end):
    """Return the mean time from the minimum to ``end`` by quadrature."""
    x = np.linspace(end, 3 * risk.width, 40_001)
    L = risk.value(torch.from_numpy(x).unsqueeze(1)).numpy()
    below = cumulative_trapezoid(np.exp(-L / T), x, initial=0)
    inner = np.exp(L / T) * (below[-1] - below)
    path = cumulative_trapezoid(inner, x, initial=0) / T
    return np.interp(risk.width, x, path)


@pytest.mark.parametrize("k", [0.5, 2.0])
def test_white_noise_leaves_when_theory_says(k):
    risk, T, lr = DoubleWellRisk(k, 1.0, **DOUBLE), 0.6, 0.02 / k
    law = GLDConst(sigma=(2 * T / lr) ** 0.5)
    run = simulate(
        risk,
        law,
        risk.minimum,
        lr=lr,
        n_iter=6000,
        n_chains=400,
        reached=lambda theta: theta[:, 0] <= 0,
    )["gld_const"]
    # Steps overshoot: as if the end lay 0.5826 standard deviations of a step behind.
    end = -0.5826 * (2 * T * lr) ** 0.5
    time = run.mean_exit_time()
    assert float(time.stderr) < 0.06 * float(time)
    expected = passage_time(risk, T, end) / lr
    assert abs(float(time) - expected) < 3 * float(time.stderr)
    kramers = math.pi * math.sqrt(2) / k * math.exp(1 / T) / lr
    assert expected == pytest.approx(kramers, rel=0.35)


def test_noise_that_follows_the_curvature():
    risk = DoubleWellRisk(2.0, **DOUBLE)
    law = GLDHessian(match="none", n_components=1, noise_scale=0.5)
    theta = torch.tensor([[0.0], [1.0], [2.0]]).double()
    rng = torch.Generator().manual_seed(0)
    state = law.refresh(risk, theta, rng)
    C = law.covariance(risk, theta, state).to_dense().flatten()
    torch.testing.assert_close(C, torch.tensor([0.25, 0.0625, 0.5]).double())
    # And that of the start, where it is not refreshed.
    frozen = GLDHessian(match="none", n_components=1, refresh_every=100)
    run = simulate(risk, frozen, risk.minimum, lr=1e-6, n_iter=100, n_chains=4000)
    spread = run["gld_hessian"].theta.var() / 1e-12
    assert float(spread) == pytest.approx(100 * 2.0, rel=0.1)


@pytest.mark.parametrize("name", ["curvature", "barrier"])
def test_numbers_must_be_positive(name):
    with pytest.raises(ValueError, match=f"{name} must be .*Got 0"):
        DoubleWellRisk(**{name: 0.0})
