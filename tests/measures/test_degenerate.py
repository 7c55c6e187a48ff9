"""Measures where a ratio is 0/0, a scale is extreme or a number is not finite.

Each has the right value, from float64 formulas without flatmin, or its error, or tells
what it leaves out.
"""

import math
from functools import cache

import pytest
import torch
from scipy import stats
from torch import nn

from flatmin import measures as fm
from flatmin.curvature import (
    GradientCovarianceOperator,
    HessianOperator,
    covariance_diagonal,
    covariance_trace,
    ggn_trace,
)
from flatmin.linalg import Estimate
from flatmin.measures._estimate import quotient
from flatmin.risk import EmpiricalRisk, LinearRegressionRisk, QuadraticRisk

from .. import oracles
from ._problems import attention, randn

DTYPES = [torch.float32, torch.float64]
X, Y = randn(30, 4), randn(30, seed=1)
APART = "differ between examples by more than rounding. Got Tr"
AT_REST = "gradient that is more than rounding. Got a norm of"


def linear(X, y, dtype, theta=None):
    """A linear model without bias; every quantity of it has a formula."""
    module = nn.Linear(X.shape[1], 1, bias=False)
    with torch.no_grad():
        module.weight.copy_(torch.linspace(-0.5, 0.7, X.shape[1]))
    risk = EmpiricalRisk(module.to(dtype), "squared_error", X.to(dtype), y.to(dtype))
    return risk, risk.params() if theta is None else theta.to(dtype)


def scaled(dtype, power=6):
    """Columns of sizes 1e-power to 1e+power, and slopes that every one of them has."""
    return linear(X * torch.logspace(-power, power, 4).double(), 3e6 * Y, dtype)


def network(X, y, dtype):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1)).to(dtype)
    risk = EmpiricalRisk(module, "squared_error", X.to(dtype), y.to(dtype))
    return risk, risk.params(), module


def equal(dtype):
    """Thirty times one example: Σ = 0, up to rounding."""
    return network(X[:1].repeat(30, 1), Y[:1].repeat(30), dtype)[:2]


def one(dtype):
    return network(X[:1], Y[:1], dtype)[:2]


def dense(module, X, y, theta):
    return oracles.dense(module, lambda f, y: (f.squeeze(1) - y) ** 2, X, y, theta)


def fitted(dtype):
    """θ fits all examples, and what is left of the residuals is rounding."""
    theta = randn(4, seed=3)
    return linear(X, X @ theta, dtype, theta)


def at_zero(dtype):
    """The same, with residuals that are 0."""
    return linear(X, 0 * Y, dtype, torch.zeros(4))


@cache
def formulas(risk, theta):
    """Return L, g₀, H and Σ of a linear model, of its data as they are in its dtype."""
    X, y = (part.double() for part in (risk.X, risk.y))
    theta = theta.double()
    r = X @ theta - y
    rows = 2 * r.unsqueeze(1) * X
    noise = rows - rows.mean(0)
    N = len(X)
    return r.square().mean(), rows.mean(0), 2 / N * X.T @ X, noise.T @ noise / N


class Known:
    """A linear risk's formulas; flatmin's own risk holds its data inside."""

    def __init__(self, X, y, dtype):
        self.X, self.y = X.to(dtype), y.to(dtype)


def exponent(h, s):
    return stats.linregress(h.log(), s.log()).slope


def rank(S):
    return S.trace() ** 2 / S.square().sum()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("power", [4, 6])
def test_scales_of_features(dtype, power):
    """Each coordinate by itself: the smallest variance is 1e-48 of the largest."""
    risk, theta = scaled(dtype, power)
    inputs = X * torch.logspace(-power, power, 4).double()
    L, g, H, S = formulas(Known(inputs, 3e6 * Y, dtype), theta)
    h, s = H.diagonal(), S.diagonal()
    found = fm.gradient_signal_to_noise(risk, theta)
    assert float(found) == pytest.approx(float((g**2 / s).mean()), rel=1e-4)
    assert (int(found.n_used), found.left_out) == (4, {})
    law = fm.covariance_exponent(risk, theta)
    assert float(law) == pytest.approx(exponent(h, s), rel=1e-4)
    assert (law.n_points, law.left_out) == (4, {})
    spectrum = fm.noise_spectrum(risk, theta, 1)
    assert float(spectrum) == pytest.approx(float(rank(S)), rel=1e-4)
    noise = fm.gradient_noise(risk, theta)
    assert float(noise) == pytest.approx(float(S.trace() / (g @ g)), rel=1e-4)
    scale = float((H @ S).trace() / (g @ H @ g))
    assert float(fm.curvature_noise_scale(risk, theta)) == pytest.approx(
        scale, rel=1e-4
    )
    mu = float((H @ S).trace() / (2 * L * H.square().sum()))
    assert float(fm.loss_scaled_alignment(risk, theta)) == pytest.approx(mu, rel=1e-4)


ZERO_NOISE = {
    "gradient_noise": lambda *at: fm.gradient_noise(*at),
    "curvature_noise_scale": lambda *at: fm.curvature_noise_scale(*at),
    "loss_scaled_alignment": lambda *at: fm.loss_scaled_alignment(*at),
}
NO_NOISE = {
    "alignment": (lambda *at: fm.alignment(*at, 1), APART),
    "noise_spectrum": (
        lambda risk, theta: float(fm.noise_spectrum(risk, theta, 1)),
        f"effective rank needs gradients that {APART}",
    ),
    "share": (lambda *at: fm.noise_spectrum(*at, 1).share, APART),
    "gradient_signal_to_noise": (
        lambda *at: fm.gradient_signal_to_noise(*at),
        "differ by more than rounding. Got none of ",
    ),
    "covariance_exponent": (lambda *at: fm.covariance_exponent(*at), "Got 0 of "),
    "minibatch_gaussianity": (
        lambda risk, theta: fm.minibatch_gaussianity(
            risk, theta, batch_size=2, directions=torch.ones(len(theta), 1).to(theta)
        ),
        "direction without noise but rounding.* Got directions .0. with",
    ),
}
ONE_EXAMPLE = {
    "alignment": "k must be an integer between 1 and|differ between examples",
    "noise_spectrum": "k must be an integer between 1 and min.D, N - 1. = 0. Got 1",
    "share": "k must be an integer between 1 and min.D, N - 1. = 0. Got 1",
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("situation", [equal, one])
@pytest.mark.parametrize("name", ZERO_NOISE)
def test_without_noise_its_scales_are_zero(name, situation, dtype):
    found = ZERO_NOISE[name](*situation(dtype))
    assert float(found) == 0
    assert float(getattr(found, "stderr", 0.0)) == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("situation", [equal, one, fitted, at_zero])
@pytest.mark.parametrize("name", NO_NOISE)
def test_without_noise_there_is_no_ratio_to_it(name, situation, dtype):
    measure, message = NO_NOISE[name]
    if situation is one:
        message = ONE_EXAMPLE.get(name, message)
    with pytest.raises(ValueError, match=message):
        measure(*situation(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_hessians(dtype):
    """Their variance is 0; what is not resolved of it is told."""
    risk, theta, module = network(X[:1].repeat(30, 1), Y[:1].repeat(30), dtype)
    H = dense(module, X[:1].to(dtype), Y[:1].to(dtype), theta).hessian
    found = fm.non_uniformity(risk, theta)
    resolved = (30 * torch.finfo(dtype).eps) ** 0.5 * float(torch.linalg.norm(H, 2))
    assert float(found) == 0
    assert 0.3 * resolved < float(found.stderr) <= 1.01 * resolved
    alone = fm.non_uniformity(*one(dtype))
    assert float(alone) == float(alone.stderr) == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("situation", [fitted, at_zero])
@pytest.mark.parametrize(
    ("measure", "message"),
    [
        (lambda *at: float(fm.gradient_noise(*at)), "rounding for both.* 0/0"),
        (fm.curvature_noise_scale, "needs a gradient g₀ that is more than rounding"),
        (fm.loss_scaled_alignment, "divides by the loss, .* Got L = "),
    ],
)
def test_a_fit_of_all_examples(measure, message, situation, dtype):
    with pytest.raises(ValueError, match=message):
        measure(*situation(dtype))


@pytest.mark.parametrize("measure", [fm.sam_sharpness, fm.asam_sharpness])
def test_a_step_along_rounding_is_refused(measure):
    with pytest.raises(ValueError, match=AT_REST):
        measure(*fitted(torch.float32))
    assert float(measure(*at_zero(torch.float32))) == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_sharpness_at_a_fit_of_all_examples(dtype):
    risk, theta = fitted(dtype)
    H = 2 / len(X) * X.T @ X
    largest = torch.linalg.eigvalsh(H)[-1]
    assert float(fm.max_eigenvalue(risk, theta)) == pytest.approx(float(largest))
    trace = 1e-4 / 2 * float(H.trace())
    assert float(fm.trace_sharpness(risk, theta)) == pytest.approx(trace)
    found = fm.expected_sharpness(risk, theta)
    assert abs(float(found) - trace) < 4 * float(found.stderr)
    edge = fm.edge_of_stability(risk, theta, lr=0.1)
    assert float(edge) == pytest.approx(0.05 * float(largest))
    assert float(fm.negative_mass(risk, theta)) < 1e-6
    norm = float(theta.double() @ H @ theta.double())
    assert float(fm.fisher_rao_norm(risk, theta)) == pytest.approx(norm)
    assert abs(float(fm.trace_hessian_covariance(risk, theta))) < 1e-11  # 0


def test_a_minimum_with_noise_has_an_infinite_scale():
    slopes = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    noise = fm.gradient_noise(QuadraticRisk(torch.eye(2), slopes), torch.zeros(2))
    assert float(noise) == math.inf
    assert float(noise.noise_norm(1)) == 1


def test_some_chains_of_a_batch():
    """One of them at rest, one not."""
    slopes = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    risk = QuadraticRisk(torch.eye(2), slopes)
    at = torch.tensor([[0.0, 0.0], [2.0, 0.0]])
    assert fm.gradient_noise(risk, at).simple_noise_scale.tolist() == [math.inf, 0.25]
    with pytest.raises(ValueError, match="needs a gradient g₀"):
        fm.curvature_noise_scale(risk, at)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [2, 3])
def test_few_examples(n, dtype):
    risk, theta, module = network(X[:n], Y[:n], dtype)
    exact = dense(module, X[:n].to(dtype), Y[:n].to(dtype), theta)
    g, S = exact.gradient, exact.covariance
    ratio = float((g**2 / S.diagonal()).mean())
    found = fm.gradient_signal_to_noise(risk, theta)
    assert (float(found), found.left_out) == (pytest.approx(ratio, rel=1e-3), {})
    spectrum = fm.noise_spectrum(risk, theta, 1)
    assert float(spectrum) == pytest.approx(float(rank(S)), rel=1e-4)
    if n == 2:
        assert float(spectrum) == pytest.approx(1, rel=1e-4)
    noise = float(fm.gradient_noise(risk, theta))
    assert noise == pytest.approx(float(S.trace() / (g @ g)), rel=1e-4)


def test_one_parameter():
    x = X[:, :1]
    risk, theta = linear(x, Y, torch.float64)
    _, g, _, S = formulas(Known(x, Y, torch.float64), theta)
    assert float(fm.gradient_signal_to_noise(risk, theta)) == pytest.approx(
        float(g[0] ** 2 / S[0, 0])
    )
    assert float(fm.noise_spectrum(risk, theta, 1)) == pytest.approx(1)
    table = fm.alignment(risk, theta, 1)
    assert float(table.overlap) == pytest.approx(1)
    assert float(table.trace_alignment) == pytest.approx(1)
    assert float(table.anisotropy_gain) == pytest.approx(1)
    assert table.undefined == {"d": "there is no λ_{k+1} for k = D"}
    assert table.to_frame().loc["d"].isna().all()
    with pytest.raises(ValueError, match=r"three coordinates.* Got 1 of 1"):
        fm.covariance_exponent(risk, theta)


class Root(nn.Module):
    """√|w| has no derivative at w = 0."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([0.0, 1.0, 2.0]))
        self.v = nn.Linear(6, 1, bias=False)

    def forward(self, x):
        return self.v(torch.cat([x * self.w.abs().sqrt(), x], 1))


def root():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Root().double()
    risk = EmpiricalRisk(module, "squared_error", X[:, :3], Y, hvp="finite_difference")
    return risk, risk.params()


WHERE = r"at 1 of \d coordinates, of w \(1\)"


@pytest.mark.parametrize(
    "measure",
    [
        fm.gradient_noise,
        fm.gradient_signal_to_noise,
        fm.curvature_noise_scale,
        fm.loss_scaled_alignment,
        fm.covariance_exponent,
        fm.covariance_exponents,
        fm.sam_sharpness,
        fm.asam_sharpness,
        fm.trace_hessian_covariance,
        covariance_trace,
        covariance_diagonal,
        lambda *at: fm.alignment(*at, 1),
        lambda *at: fm.noise_spectrum(*at, 1),
        lambda *at: fm.minibatch_gaussianity(*at, batch_size=2),
        lambda *at: fm.trace_hessian_covariance(*at, method="low_rank", k=1),
        lambda *at: GradientCovarianceOperator(*at).to_dense(),
        lambda *at: GradientCovarianceOperator(*at, select="w").trace(),
    ],
)
def test_no_derivative_in_one_parameter(measure):
    with pytest.raises(FloatingPointError, match=WHERE):
        measure(*root())


def test_the_other_parameters_can_be_measured():
    risk, theta = root()
    w = theta[:3].sqrt()
    inputs = torch.cat([X[:, :3] * w, X[:, :3]], 1)
    S = formulas(Known(inputs, Y, torch.float64), theta[3:])[3]
    found = fm.noise_spectrum(risk, theta, 1, select="v")
    assert float(found) == pytest.approx(float(rank(S)))
    operator = GradientCovarianceOperator(risk, theta, select="v")
    torch.testing.assert_close(operator.trace(), S.trace())


def test_a_product_of_an_analytic_risk():
    A = torch.diag(torch.tensor([1.0, math.nan, 2.0]))
    operator = HessianOperator(QuadraticRisk(A, torch.zeros(1, 3)), torch.zeros(3))
    with pytest.raises(
        FloatingPointError, match=r"HessianOperator must be finite\. Got"
    ):
        operator.matvec(torch.ones(3))


def large(dtype):
    """Losses of 1e40, beyond single precision."""
    return linear(1e20 * X, Y, dtype)


@pytest.mark.parametrize(
    "measure",
    [
        fm.expected_sharpness,
        fm.adaptive_expected_sharpness,
        fm.sam_sharpness,
        fm.asam_sharpness,
        fm.gradient_noise,
        fm.gradient_signal_to_noise,
        fm.curvature_noise_scale,
        fm.loss_scaled_alignment,
        fm.covariance_exponent,
        lambda *at: fm.alignment(*at, 1),
        lambda *at: fm.noise_spectrum(*at, 1),
    ],
)
def test_an_infinite_loss(measure):
    with pytest.raises(
        FloatingPointError, match=r"loss L\(θ\) must be finite\. Got inf"
    ):
        measure(*large(torch.float32))


def test_a_large_loss_in_double_precision():
    risk, theta = large(torch.float64)
    _, g, H, S = formulas(Known(1e20 * X, Y, torch.float64), theta)
    step = 0.1 * g / g.norm()
    rise = float(g @ step + step @ H @ step / 2)
    assert float(fm.sam_sharpness(risk, theta, rho=0.1)) == pytest.approx(rise)
    noise = float(S.trace() / (g @ g))
    assert float(fm.gradient_noise(risk, theta)) == pytest.approx(noise)


def test_losses_that_overflow_on_the_way():
    """The loss is 1e38 and perturbed ones are infinite."""
    risk, theta = linear(5e18 * X, Y, torch.float32)
    with pytest.raises(
        FloatingPointError, match=r"perturbed .* in \d+ of 20; lower sig"
    ):
        fm.expected_sharpness(risk, theta, sigma=3.0, n_draws=20)
    with pytest.raises(
        FloatingPointError, match=r"after the step .* Got inf; lower rho"
    ):
        fm.sam_sharpness(risk, theta, rho=30.0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_squares_of_gradients_that_overflow(dtype):
    """Norms in single precision would be infinite, and the step 0."""
    risk, theta = linear(1e12 * X, 1e12 * Y, dtype)
    _, g, H, _ = formulas(Known(1e12 * X, 1e12 * Y, dtype), theta)
    step = 0.1 * g / g.norm()
    rise = float(g @ step + step @ H @ step / 2)
    found = fm.sam_sharpness(risk, theta, rho=0.1)
    assert float(found) == pytest.approx(rise, rel=1e-4)


def test_traces_that_are_not_finite():
    risk, theta = linear(1e25 * X, Y, torch.float32)
    with pytest.raises(FloatingPointError, match=r"must be finite\. Got (inf|nan)"):
        ggn_trace(risk, theta)


def test_gradients_that_cancel_are_left_out_at_any_scale():
    """The biases of attention's keys; a relative test alone takes them for noise."""
    risk, theta, bias = attention()
    law = fm.covariance_exponent(risk, theta, max_matvecs=len(theta))
    assert law.left_out["0.self_attn.in_proj_bias"] >= len(bias)
    found = fm.gradient_signal_to_noise(risk, theta)
    assert found.left_out == {"0.self_attn.in_proj_bias": len(bias)}


def test_layers_without_a_fit_are_told():
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1), nn.Linear(1, 1))
    risk = EmpiricalRisk(module.double(), "squared_error", X[:, :3], Y)
    found = fm.covariance_exponents(risk, risk.params())
    assert set(found) | set(found.left_out) == {"0", "2", "3"}
    assert "Got 2 of 2" in found.left_out["3"]


def test_one_curvature_gives_no_line():
    h = torch.full((5,), 2.0, dtype=torch.float64)
    slopes = torch.diag(torch.arange(1.0, 6.0)).double()
    risk = QuadraticRisk(torch.diag(h), torch.cat([slopes, -slopes]))
    with pytest.raises(ValueError, match=r"different Hᵢᵢ\. Got 2 at all 5"):
        fm.covariance_exponent(risk, torch.zeros(5).double())


def test_directions_that_are_chance_are_not_compared():
    """H and Σ of rank 2, and k = 3."""
    A = torch.diag(torch.tensor([3.0, 2.0, 0.0, 0.0])).double()
    slopes = torch.diag(torch.tensor([1.0, 2.0, 0.0, 0.0])).double()
    risk = QuadraticRisk(A, torch.cat([slopes, -slopes]))
    table = fm.alignment(risk, torch.ones(4).double(), 3)
    assert set(table.undefined) == {"overlap", "projection residual", "gradient share"}
    assert "2 of H and 2 of Σ are more than rounding" in str(table)
    frame = table.to_frame()
    assert frame.loc[list(table.undefined)].isna().all(axis=None)
    assert frame.loc["Tr(HΣ)", "value"] == pytest.approx((3 + 2 * 4) * 2 / 8)
    assert table.cosines.isnan().tolist() == [False, False, True]
    assert float(table.decay) == math.inf  # λ₄ = 0
    two = fm.alignment(risk, torch.ones(4).double(), 2)
    assert (float(two.overlap), two.undefined) == (pytest.approx(1), {})


def test_no_curvature():
    slopes = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    risk = QuadraticRisk(torch.zeros(2, 2), slopes, torch.zeros(2))
    with pytest.raises(ValueError, match="Got H = 0"):
        fm.alignment(risk, torch.ones(2), 1)
    with pytest.raises(ValueError, match=r"must be above 0\. Got 0"):
        fm.negative_mass(risk, torch.ones(2))


def test_a_gain_needs_a_trace():
    slopes = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    risk = QuadraticRisk(torch.diag(torch.tensor([1.0, -1.0])), slopes)
    table = fm.alignment(risk, torch.ones(2), 1)
    assert table.undefined == {"anisotropy gain": "Tr(H) is not clear of 0"}
    assert math.isnan(float(table.anisotropy_gain.stderr))
    assert float(table.trace_alignment) == pytest.approx(2**-0.5)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_bases_of_any_lengths(scale):
    """Independent columns of sizes far apart span what those of length 1 span."""
    U, V = randn(12, 3), randn(12, 3, seed=1)
    lengths = torch.tensor([1.0, scale, 1 / scale]).double()
    torch.testing.assert_close(fm.overlap(U * lengths, V), fm.overlap(U, V))
    torch.testing.assert_close(fm.cosines(U * lengths, V), fm.cosines(U, V))


@pytest.mark.parametrize("dtype", DTYPES)
def test_columns_that_differ_by_rounding_are_dependent(dtype):
    column = randn(12, 1).to(dtype)
    near = column * (1 + torch.finfo(dtype).eps)
    with pytest.raises(ValueError, match="linearly independent"):
        fm.overlap(torch.cat([column, near], 1), randn(12, 2).to(dtype))


@pytest.mark.parametrize(
    "measure", [fm.cosines, fm.overlap, fm.principal_angles, fm.projection_residual]
)
@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_bases_are_finite(measure, number):
    U = randn(5, 2)
    U[1, 1] = number
    with pytest.raises(ValueError, match="finite"):
        measure(U, randn(5, 2, seed=1))
    with pytest.raises(ValueError, match="finite"):
        measure(randn(5, 2, seed=1), U)


def test_a_column_of_zeros_has_no_cosine():
    with pytest.raises(ValueError, match=r"not 0\. Got a column of norm 0\.0"):
        fm.cosines(torch.zeros(3, 1), torch.ones(3, 1))


def test_kinks_are_no_rounding():
    """Inputs of 0 lie on a kink of ReLU, which a step of a rounding crosses."""
    rng = torch.Generator().manual_seed(0)
    inputs = torch.randn(200, 4, generator=rng)
    inputs[0] = 0
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1))
    risk = EmpiricalRisk(module, "squared_error", inputs, inputs.sum(1))
    found = fm.gradient_signal_to_noise(risk, risk.params())
    exact = dense(module, inputs, inputs.sum(1), risk.params())
    variances = exact.covariance.diagonal()
    some = variances > 1e-12
    ratio = (exact.gradient**2 / variances)[some].mean()
    assert float(found) == pytest.approx(float(ratio), rel=1e-3)
    assert int(found.n_used) == int(some.sum())


def test_linear_regression_in_chains():
    """NaN in one chain names how many, without parameters' names."""
    risk = LinearRegressionRisk(X, Y)
    at = torch.stack([torch.zeros(4), torch.full((4,), math.nan)]).double()
    with pytest.raises(FloatingPointError, match="Got nan, in 1 of 2"):
        fm.gradient_noise(risk, at)
    with pytest.raises(FloatingPointError, match="Got nan, in 1 of 2"):
        fm.expected_sharpness(risk, at, n_draws=2)


def test_the_error_of_a_product_that_is_zero():
    """(0 ± 3) · (2 ± 1) / (4 ± 1): the first factor's error is left, 3 · 2 / 4."""
    zero, two, four = (
        Estimate(torch.tensor(value).double(), torch.tensor(error).double())
        for value, error in [(0.0, 3.0), (2.0, 1.0), (4.0, 1.0)]
    )
    found = quotient([zero, two], [four])
    assert (float(found), float(found.stderr)) == (0, 1.5)
    found = quotient([two], [four])  # relative errors 1/2 and 1/4
    assert float(found.stderr) == pytest.approx(0.5 * (0.25 + 0.0625) ** 0.5)


class Raised(nn.Linear):
    """Outputs whose squares are 1 + 1e-8 θ²."""

    def forward(self, x):
        return (1 + 1e-8 * super().forward(x).square()).sqrt()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_rise_below_the_rounding_of_the_loss(dtype):
    """1e-8 s² E ξ² = 1e-10, where float32 tells 1 from 1 + 1e-7."""
    risk = EmpiricalRisk(
        Raised(1, 1, bias=False), "squared_error", X.new_ones(4, 1), X.new_zeros(4, 1)
    ).to(dtype=dtype)
    theta = torch.ones(1, dtype=dtype)
    found = fm.expected_sharpness(risk, theta, sigma=0.1, n_draws=1000)
    assert abs(float(found) - 1e-10) < 4 * float(found.stderr)
    if dtype == torch.float32:
        with pytest.raises(ValueError, match=r"rise of the loss .* raise rho"):
            fm.sam_sharpness(risk, theta, rho=0.1)
    else:
        rise = 1e-8 * (1.1**2 - 1)
        assert float(fm.sam_sharpness(risk, theta, rho=0.1)) == pytest.approx(
            rise, rel=1e-4
        )


@pytest.mark.parametrize("scale", [1e-10, 1.0, 1e10])
def test_what_is_rounding_of_h_scales_with_h(scale):
    """H = s diag(4, 3, 1e-17): two directions stand clear of rounding, at any s."""
    A = scale * torch.tensor([4.0, 3.0, 1e-17], dtype=torch.float64).diag()
    slopes = torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64).diag()
    risk = QuadraticRisk(A, torch.cat([slopes, -slopes]))
    theta = torch.zeros(3, dtype=torch.float64)
    result = fm.alignment(risk, theta, 3, rng=0)
    expected = torch.tensor([1.0, 1.0, math.nan], dtype=torch.float64)
    torch.testing.assert_close(result.cosines, expected, equal_nan=True)
    values = scale * torch.tensor([4.0, 3.0, 1e-17], dtype=torch.float64)
    torch.testing.assert_close(
        result.hessian_eigenvalues, values, rtol=1e-9, atol=1e-14 * scale
    )
