"""Expected sharpness against its closed form."""

import math

import pytest
import torch

from flatmin.measures import (
    adaptive_expected_sharpness,
    asam_sharpness,
    expected_sharpness,
    sam_sharpness,
)
from flatmin.risk import EmpiricalRisk, LinearRegressionRisk, QuadraticRisk

A = torch.diag(torch.tensor([5.0, 1.0, 0.25], dtype=torch.float64))
THETA = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)


def quadratic():
    """Return ½ (θ - c)ᵀA(θ - c), the mean over four centres with mean zero."""
    rng = torch.Generator().manual_seed(0)
    centres = torch.randn(4, 3, generator=rng, dtype=torch.float64)
    return QuadraticRisk(A, centres - centres.mean(0))


def variance_of_a_draw(sigma):
    """Return Var[s gᵀz + (s²/2) zᵀAz] = s²‖g‖² + (s⁴/2) Tr(A²)."""
    gradient = quadratic().gradient(THETA)
    return sigma**2 * gradient.square().sum() + sigma**4 / 2 * A.square().sum()


@pytest.mark.parametrize("sigma", [0.01, 0.1, 1.0])
def test_closed_form_of_a_quadratic(sigma):
    result = expected_sharpness(quadratic(), THETA, sigma=sigma, n_draws=4000)
    expected = sigma**2 / 2 * A.trace()
    assert abs(result.value - expected) < 4 * result.stderr
    exact = (variance_of_a_draw(sigma) / 4000).sqrt()
    assert result.stderr == pytest.approx(float(exact), rel=0.1)


@pytest.mark.parametrize(
    ("measure", "sigma", "units"),
    [
        (expected_sharpness, 0.01, torch.ones(3).double()),
        (adaptive_expected_sharpness, 0.05, THETA.abs()),
    ],
)
def test_the_default_sigma(measure, sigma, units):
    """Var[s (u g)ᵀz + (s²/2) zᵀMz] with M = uuᵀ ∘ A tells which s it was."""
    result = measure(quadratic(), THETA, n_draws=4000)
    M = torch.outer(units, units) * A
    slope = units * (A @ THETA)
    variance = sigma**2 * slope.square().sum() + sigma**4 / 2 * M.square().sum()
    assert abs(result.value - sigma**2 / 2 * M.trace()) < 4 * result.stderr
    exact = (variance / 4000).sqrt()
    assert result.stderr == pytest.approx(float(exact), rel=0.1)


@pytest.mark.parametrize(
    ("measure", "rho", "units"),
    [(sam_sharpness, 0.05, torch.ones(3).double()), (asam_sharpness, 0.5, THETA.abs())],
)
def test_the_default_rho(measure, rho, units):
    """The rise along ρ u²g/‖u g‖ is gᵀd + ½ dᵀAd."""
    g = A @ THETA
    d = rho * units**2 * g / (units * g).norm()
    rise = float(g @ d + d @ A @ d / 2)
    assert float(measure(quadratic(), THETA)) == pytest.approx(rise, rel=1e-9)


def test_the_standard_error_is_calibrated():
    sigma, expected = 0.5, 0.5**2 / 2 * A.trace()
    scores = []
    for seed in range(200):
        result = expected_sharpness(
            quadratic(), THETA, sigma=sigma, n_draws=30, rng=seed
        )
        scores.append((result.value - expected) / result.stderr)
    scores = torch.stack(scores)
    assert abs(scores.mean()) < 4 / math.sqrt(200)
    assert 0.85 < scores.std() < 1.2


def test_it_is_the_mean_over_draws_that_can_be_repeated():
    sigma, rng = 0.1, torch.Generator().manual_seed(7)
    risk = quadratic()
    rises = torch.stack(
        [
            risk.value(THETA + sigma * torch.randn(3, generator=rng, dtype=A.dtype))
            - risk.value(THETA)
            for _ in range(20)
        ]
    )
    result = expected_sharpness(risk, THETA, sigma=sigma, n_draws=20, rng=7)
    assert result.value == pytest.approx(float(rises.mean()), rel=1e-12)
    assert result.stderr == pytest.approx(float(rises.std() / 20**0.5), rel=1e-12)
    absolute = expected_sharpness(
        risk, THETA, sigma=sigma, n_draws=20, rng=7, absolute=True
    )
    assert absolute.value == pytest.approx(float(rises.abs().mean()), rel=1e-12)
    assert absolute.value > result.value
    assert (result.n_matvecs, float(result)) == (0, float(result.value))


def test_at_a_minimum_the_rise_is_its_size():
    at = torch.zeros(3, dtype=torch.float64)
    signed = expected_sharpness(quadratic(), at)
    absolute = expected_sharpness(quadratic(), at, absolute=True)
    assert signed.value == absolute.value > 0


def test_common_random_numbers():
    """Twice the curvature is twice the sharpness, to the last digits."""
    at = torch.zeros(3, dtype=torch.float64)
    flat, sharp = (QuadraticRisk(a * A, torch.zeros(1, 3).double()) for a in (1, 2))
    results = [expected_sharpness(risk, at, n_draws=5) for risk in (flat, sharp)]
    assert results[1].value == pytest.approx(2 * float(results[0].value), rel=1e-12)
    again = expected_sharpness(flat, at, n_draws=5, rng=0)
    assert again.value == results[0].value
    other = expected_sharpness(flat, at, n_draws=5, rng=1)
    assert other.value != results[0].value


def test_random_draws():
    first, second = (expected_sharpness(quadratic(), THETA, rng=None) for _ in range(2))
    assert first.value != second.value


def test_a_generator_is_drawn_from_and_no_other():
    rng = torch.Generator().manual_seed(3)
    before = torch.get_rng_state()
    first = expected_sharpness(quadratic(), THETA, rng=rng)
    second = expected_sharpness(quadratic(), THETA, rng=rng)
    assert first.value != second.value
    assert first.value == expected_sharpness(quadratic(), THETA, rng=3).value
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("shape", [(3,), (5, 3), (2, 4, 3)])
def test_chains(shape):
    thetas = torch.zeros(shape, dtype=torch.float64)
    result = expected_sharpness(quadratic(), thetas, sigma=0.1, n_draws=2000)
    assert result.value.shape == result.stderr.shape == shape[:-1]
    expected = 0.1**2 / 2 * A.trace()
    assert ((result.value - expected).abs() < 5 * result.stderr).all()


def test_theta_is_left_alone():
    before = THETA.clone()
    expected_sharpness(quadratic(), THETA)
    assert torch.equal(THETA, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_networks_risk(dtype):
    """A linear model is a quadratic with H = (2/N) XᵀX."""
    rng = torch.Generator().manual_seed(0)
    X, y = (torch.randn(30, n, generator=rng, dtype=dtype) for n in (4, 1))
    module = torch.nn.Linear(4, 1, bias=False).to(dtype)
    risk = EmpiricalRisk(module, "squared_error", X, y)
    theta = risk.params()
    result = expected_sharpness(risk, theta, sigma=0.1, n_draws=2000)
    expected = 0.1**2 / 2 * 2 * X.square().sum() / 30
    assert abs(result.value - expected) < 4 * result.stderr
    assert result.value.dtype == result.stderr.dtype == torch.float64
    analytic = LinearRegressionRisk(X, y.squeeze(1))
    same = expected_sharpness(analytic, theta, sigma=0.1, n_draws=2000)
    assert float(result) == pytest.approx(float(same), rel=1e-4)


@pytest.mark.parametrize("sigma", [0, -0.1, math.nan, math.inf])
def test_sigma_must_be_a_size(sigma):
    with pytest.raises(ValueError, match=f"sigma must be .* above 0. Got {sigma}"):
        expected_sharpness(quadratic(), THETA, sigma=sigma)


@pytest.mark.parametrize("n_draws", [1, 0, -3])
def test_a_standard_error_needs_two_draws(n_draws):
    with pytest.raises(
        ValueError, match=f"n_draws must be an integer of at least 2. Got {n_draws}"
    ):
        expected_sharpness(quadratic(), THETA, n_draws=n_draws)


@pytest.mark.parametrize(("size", "refused"), [(1e5, True), (1e3, False)])
def test_perturbations_that_rounding_changes_are_refused(size, refused):
    centre = size * (1 + torch.arange(8) / 8)
    risk = QuadraticRisk(0.25 * torch.eye(8), torch.zeros(1, 8), centre)
    if refused:
        with pytest.raises(ValueError, match=r"larger than the rounding of θ in .*32"):
            expected_sharpness(risk, centre, sigma=0.01)
        centre = centre.double()
        risk = QuadraticRisk(0.25 * torch.eye(8).double(), 0 * centre[None], centre)
    found = expected_sharpness(risk, centre, sigma=0.01, n_draws=2000)
    assert abs(found.value - 1e-4) < 4 * found.stderr < 1e-5
    with pytest.raises(ValueError, match="larger than the rounding"):
        adaptive_expected_sharpness(risk, centre, sigma=1e-17)
