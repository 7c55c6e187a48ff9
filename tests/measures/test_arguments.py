"""Small NumPy numbers do not overflow, and what is no risk or point is named."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from flatmin import linalg, measures
from flatmin.curvature import HessianOperator, ggn_trace, hessian_eigenpairs
from flatmin.datasets import corrupt_labels, make_cubic_regression
from flatmin.dynamics import simulate
from flatmin.measures import GradientNoise
from flatmin.risk import EmpiricalRisk, LinearRegressionRisk, QuadraticRisk

KINDS = [np.uint8, np.int8, np.int16]
A = torch.diag(torch.linspace(0.1, 3, 60, dtype=torch.float64))
RISK = QuadraticRisk(A, torch.randn(100, 60, generator=torch.manual_seed(0)).double())
THETA = torch.linspace(-1, 1, 60, dtype=torch.float64)


def bound(lr, m, n):
    """Multiply out (1/η) √(m(N - 1)/(N - m)) in Python's integers."""
    return math.sqrt(m * (n - 1) / (n - m)) / lr


@pytest.mark.parametrize("kind", KINDS)
def test_the_bound_of_small_integers(kind):
    found = measures.non_uniformity_bound(kind(1), kind(50), kind(100))
    assert found == pytest.approx(bound(1, 50, 100))


def test_the_bound_of_the_report():
    found = measures.non_uniformity_bound(0.1, np.uint8(20), np.uint8(200))
    assert found == pytest.approx(bound(0.1, 20, 200))  # 47.0, where uint8 gave 8.8


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_are_taken_as_python_s(kind):
    calls = {
        "random_projection_residual": lambda k: measures.random_projection_residual(
            k(20), k(100)
        ),
        "expected_sharpness": lambda k: float(
            measures.expected_sharpness(RISK, THETA, sigma=k(20), n_draws=k(100))
        ),
        "trace_sharpness": lambda k: float(
            measures.trace_sharpness(RISK, THETA, sigma=k(20), max_matvecs=k(100))
        ),
        "sam_sharpness": lambda k: float(
            measures.sam_sharpness(RISK, THETA, rho=k(20))
        ),
        "edge_of_stability": lambda k: float(
            measures.edge_of_stability(RISK, THETA, lr=k(100))
        ),
        "alignment": lambda k: float(
            measures.alignment(RISK, THETA, k(50), max_matvecs=k(100)).residual
        ),
        "noise_spectrum": lambda k: float(
            measures.noise_spectrum(RISK, THETA, k(50)).eigenvalues.sum()
        ),
        "eigsh": lambda k: float(
            linalg.eigsh(HessianOperator(RISK, THETA), k(50), rng=0).eigenvalues.sum()
        ),
        "hessian_eigenpairs": lambda k: float(
            hessian_eigenpairs(RISK, THETA, k(50)).eigenvalues.sum()
        ),
        "trace": lambda k: float(
            linalg.trace(linalg.DenseOperator(A), max_matvecs=k(100), rng=0).value
        ),
        "density": lambda k: float(
            linalg.spectral_density(
                linalg.DenseOperator(A), n_probes=k(20), n_steps=k(100), rng=0
            ).moment(k(3))[0]
        ),
        "ggn_trace": lambda k: float(
            ggn_trace(RISK, THETA, rng=torch.Generator(), max_sweeps=k(100)).value
        ),
        "gaussianity": lambda k: float(
            measures.minibatch_gaussianity(
                RISK, THETA, batch_size=k(90), k=k(2), n_batches=k(100)
            ).skewness.sum()
        ),
        "diffusion_norm": lambda k: float(
            GradientNoise(*torch.ones(2), *torch.ones(2).bool()).diffusion_norm(
                k(100), k(100)
            )
        ),
        "make_cubic_regression": lambda k: make_cubic_regression(k(100))[1].sum(),
        "corrupt_labels": lambda k: corrupt_labels(
            np.arange(200) % 3, n=k(100), random_state=0
        )[1].sum(),
        "simulate": lambda k: float(
            simulate(RISK, "gd", THETA, lr=0.1, n_iter=k(100), n_chains=k(2))[
                "gd"
            ].theta.sum()
        ),
    }
    for name, call in calls.items():
        assert call(kind) == pytest.approx(call(int), rel=1e-12), name


def test_short_floats_are_taken_as_python_s():
    for call in (
        lambda k: measures.expected_sharpness(RISK, THETA, sigma=k(300), n_draws=3),
        lambda k: measures.trace_sharpness(RISK, THETA, sigma=k(300)),
        lambda k: measures.edge_of_stability(RISK, THETA, lr=k(60000)),
        lambda k: measures.sam_sharpness(RISK, THETA, rho=k(300)),
    ):
        assert float(call(np.float16)) == pytest.approx(float(call(float)), rel=1e-12)
    found = measures.non_uniformity_bound(np.float16(0.5), 4, 100)
    assert found == pytest.approx(bound(0.5, 4, 100))


WRONG = [None, "x", 3, nn.Linear(2, 2), np.ones(2), EmpiricalRisk]


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_no_risk_and_no_point(wrong):
    theta = torch.zeros(60).double()
    for name in (
        *("alignment", "expected_sharpness", "sam_sharpness", "trace_sharpness"),
        *("gradient_noise", "non_uniformity", "fisher_rao_norm", "noise_spectrum"),
        *("max_eigenvalue", "covariance_exponent", "trace_hessian_covariance"),
    ):
        with pytest.raises(TypeError, match=r"^risk must be"):
            getattr(measures, name)(wrong, theta)
        # An array is a point, of another risk.
        is_array = isinstance(wrong, np.ndarray)
        refused = ValueError if is_array else TypeError
        how = r"have shape \(60,\).* Got \(2,\)" if is_array else "be a Tensor"
        with pytest.raises(refused, match=rf"^theta must {how}"):
            getattr(measures, name)(RISK, wrong)
    for operator in (HessianOperator, hessian_eigenpairs):
        with pytest.raises(TypeError, match=r"^risk must be"):
            operator(
                wrong, theta, **({"k": 1} if operator is hessian_eigenpairs else {})
            )
    for function in (linalg.eigsh, linalg.trace, linalg.diagonal):
        rest = {"k": 1} if function is linalg.eigsh else {}
        with pytest.raises(TypeError, match=r"^operator must be a LinearOperator"):
            function(wrong, **rest)


@pytest.mark.parametrize(
    ("theta", "message"),
    [
        (THETA + 1j, "theta must hold real numbers. Got torch.complex128"),
        (THETA.to("meta"), "theta must hold numbers"),
        (THETA.long(), "theta must have a floating dtype"),
        (THETA[1:], r"theta must have shape \(60,\).*Got \(59,\)"),
    ],
)
def test_points_that_do_not_fit(theta, message):
    for measure in (
        measures.gradient_noise,
        measures.max_eigenvalue,
        RISK.value.__func__,
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            measure(RISK, theta)


@pytest.mark.parametrize(
    "make",
    [
        linalg.DenseOperator,
        lambda a: linalg.DiagonalOperator(a[0]),
        lambda a: linalg.ScaledIdentityOperator(a[0, 0], 3),
        lambda a: linalg.LowRankOperator(a[0].real, a),
        lambda a: linalg.LowRankOperator(a[0], a.real),
        lambda a: linalg.DenseOperator(a.real).matvec(a[0]),
        lambda a: measures.cosines(a, a.real),
        lambda a: measures.overlap(a.real, a),
        lambda a: measures.subspace_share(a[0], a.real),
        lambda a: LinearRegressionRisk(a, a[0].real),
        lambda a: LinearRegressionRisk(a.real, a[0]),
        lambda a: QuadraticRisk(a, a.real),
    ],
)
def test_complex_tensors_are_refused(make):
    with pytest.raises(TypeError, match=r"must hold real numbers. Got torch.complex64"):
        make(torch.eye(3) + 1j)


def test_a_mask_is_no_index_of_an_analytic_risk_either():
    risk = LinearRegressionRisk(torch.eye(4)[:, :2], torch.ones(4))
    theta, mask = torch.zeros(2), torch.tensor([True, False, False, True])
    for call in (risk.batch_gradient, risk.value_and_batch_gradient):
        with pytest.raises(
            TypeError, match=r"indices must be integers. Got torch.bool"
        ):
            call(theta, mask)
    with pytest.raises(TypeError, match="batches must be integers"):
        risk.batch_gradients(theta, mask[None])
    for beyond in (4, 5, 100, -1):
        outside = torch.tensor([beyond])
        for call in (risk.batch_gradient, risk.value_and_batch_gradient):
            with pytest.raises(ValueError, match="indices must lie between 0 and 3"):
                call(theta, outside)
        with pytest.raises(ValueError, match="batches must lie between 0 and 3"):
            risk.batch_gradients(theta, outside[None])
    found = risk.batch_gradient(theta, mask.nonzero().flatten())
    torch.testing.assert_close(found, torch.tensor([-1.0, 0.0]))  # (-2 e₁ + 0) / 2
