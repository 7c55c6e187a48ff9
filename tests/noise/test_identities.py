"""The three identities of the design, each by itself against dense matrices."""

import pytest
import torch
from torch import nn

from flatmin.curvature import (
    HessianOperator,
    covariance_diagonal,
    covariance_trace,
    ggn_trace,
)
from flatmin.noise import make_noise_law
from flatmin.risk import EmpiricalRisk, QuadraticRisk

from ._problems import PROBLEMS, ROOTS, generator, network, problem
from ._statistics import BLOCK, assert_mean

NETWORKS = {
    "mlp": "mlp",
    "cnn": "cnn",
    "weighted": "weighted",
    "ragged": "weighted_cross_entropy",
}
every_network = pytest.mark.parametrize("name", NETWORKS)


def assert_near(got, expected, rtol=1e-10):
    assert got.shape == expected.shape
    assert (got - expected).abs().max() <= rtol * expected.abs().max()


# -- 1. the gradient weighted by 1 + √(N/m) (zᵢ - z̄) ----------------------------------


@every_network
def test_normal_weights_give_the_covariance_exactly(name):
    # ε is linear in z, ε = A z, so its covariance is A Aᵀ without any sampling.
    case, m = problem(name), 3
    n = case.risk.n_examples

    def noise(z):
        weights = 1 + (n / m) ** 0.5 * z
        return case.risk.weighted_gradient(case.theta, weights) - case.point.mean

    unit = torch.eye(n, dtype=torch.float64)
    centred = torch.stack([noise(z - z.mean()) for z in unit], dim=1)
    plain = torch.stack([noise(z) for z in unit], dim=1)
    second_moment = case.point.gradients.T @ case.point.gradients / n
    assert_near(centred @ centred.T, case.point.covariance / m)
    assert_near(plain @ plain.T, second_moment / m)


@every_network
@pytest.mark.parametrize(("method", "centred"), [("gld_full", 1), ("gld_fisher", 0)])
def test_a_draw_is_one_weighted_gradient(method, centred, name):
    case, m = problem(name), 3
    n = case.risk.n_examples
    law = make_noise_law(method, batch_size=m)
    _, gradient = law.noisy_gradient(case.risk, case.theta, None, generator())
    z = torch.randn(n, generator=generator(), dtype=torch.float64)
    rows = case.point.gradients - centred * case.point.mean
    expected = case.point.mean + z @ rows / (n * m) ** 0.5
    assert_near(gradient, expected)


# -- 2. the cotangent (1/N) ∂ℓ̃ᵢ/∂fᵢ + (σ/√N) Sᵢzᵢ -----------------------------------


def pulled_roots(name, theta):
    """Return Jᵢᵀ Sᵢ for the weighted losses, shape (N, D, C)."""
    dense = network(NETWORKS[name])
    S = torch.stack([ROOTS[NETWORKS[name]](f) for f in dense.outputs(theta)])
    S = S * dense.scales.sqrt()[:, None, None]
    return dense.jacobians(theta).mT @ S


@every_network
def test_roots_give_the_gauss_newton_matrix_exactly(name):
    case = problem(name)
    roots = pulled_roots(name, case.theta)
    matrix = (roots @ roots.mT).mean(0)
    assert_near(matrix, case.point.gauss_newton)


@every_network
@pytest.mark.parametrize("match", ["trace", "none"])
def test_a_draw_is_one_pullback(match, name):
    case = problem(name)
    law = make_noise_law("gld_ggn", batch_size=3, match=match)
    state = law.refresh(case.risk, case.theta, generator(1))
    _, gradient = law.noisy_gradient(case.risk, case.theta, state, generator())
    roots = pulled_roots(name, case.theta)
    n, _, c = roots.shape
    z = torch.randn(n, c, generator=generator(), dtype=torch.float64)
    noise = torch.einsum("ndc,nc->d", roots, z) / n**0.5
    assert_near(gradient, case.point.mean + state.scale * noise)


@pytest.mark.parametrize("name", PROBLEMS)
def test_trace_of_gauss_newton_is_exact_or_known_by_its_error(name):
    case = problem(name)
    result = ggn_trace(case.risk, case.theta, rng=generator())
    exact = torch.stack([p.gauss_newton.trace() for p in case.points])
    exact = exact.view(result.value.shape)
    assert (result.stderr <= 0.02 * result.value).all()
    if case.risk.n_outputs <= 2:
        assert (result.stderr == 0).all()
    tolerance = 5 * result.stderr + 1e-12 * exact
    assert ((result.value - exact).abs() <= tolerance).all()


def test_traces_of_gauss_newton_are_unbiased():
    case, rng = problem("mlp"), generator()
    sweeps = [case.risk.gauss_newton_traces(case.theta, rng) for _ in range(100)]
    assert_mean(torch.stack(sweeps).mean(1), case.point.gauss_newton.trace())


# -- 3. Tr(Σ) and diag(Σ) from sums of squares, Tr(HΣ) from draws ---------------------


@pytest.mark.parametrize("name", PROBLEMS)
def test_sums_of_squares(name):
    case = problem(name)
    dense = torch.stack([p.covariance for p in case.points])
    dense = dense.view(*case.theta.shape, -1)
    diagonal = dense.diagonal(dim1=-2, dim2=-1)
    assert_near(covariance_trace(case.risk, case.theta), diagonal.sum(-1))
    assert_near(covariance_diagonal(case.risk, case.theta), diagonal)


def _far_out():
    """Gradients of 1e5 that differ by one, in float32: a quadratic."""
    slopes = torch.randn(50, 3, generator=generator())
    return QuadraticRisk(torch.eye(3), slopes), torch.full((3,), 1e5)


def _alike():
    """The same for a network on inputs that hardly differ."""
    X = 1 + 1e-4 * torch.randn(50, 2, generator=generator())
    risk = EmpiricalRisk(
        nn.Linear(2, 1, bias=False), "squared_error", X, torch.zeros(50, 1)
    )
    return risk, torch.full((2,), 5e3)


@pytest.mark.parametrize("build", [_far_out, _alike])
def test_no_digits_are_lost_where_gradients_are_alike(build):
    risk, theta = build()
    rows = torch.cat(list(risk.per_example_gradients(theta))).double()
    exact = rows.var(0, correction=0)
    naive = rows.float().square().mean(0) - rows.float().mean(0).square()
    assert (naive.sum() - exact.sum()).abs() > 0.01 * exact.sum(), "no test"
    assert_near(covariance_trace(risk, theta).double(), exact.sum(), 1e-3)
    assert_near(covariance_diagonal(risk, theta).double(), exact, 1e-3)


def test_noise_measures_the_trace_of_hessian_times_covariance():
    case, rng, m = problem("mlp"), generator(), 3
    law = make_noise_law("gld_full", batch_size=m)
    H = HessianOperator(case.risk, case.theta)

    def energy():
        _, gradient = law.noisy_gradient(case.risk, case.theta, None, rng)
        noise = gradient - case.point.mean
        return m * noise @ (H @ noise)

    energies = torch.stack([energy() for _ in range(40 * BLOCK)])
    expected = (case.point.hessian @ case.point.covariance).trace()
    assert_mean(energies.view(-1, BLOCK).mean(1), expected)
