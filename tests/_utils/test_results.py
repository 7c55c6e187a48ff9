"""How results show themselves: one line, a table or an array, with known numbers."""

import numpy as np
import pytest
import torch

from flatmin import analysis, linalg, measures
from flatmin.dynamics import simulate
from flatmin.risk import EmpiricalRisk, QuadraticRisk

A = torch.diag(torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64))
SLOPES = torch.cat([A, -A])  # Σ = A²/3
RISK = QuadraticRisk(A, SLOPES)
THETA = torch.ones(3, dtype=torch.float64)
DENSE = linalg.DenseOperator(A)


def network_laws():
    net = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Linear(4, 1))
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(30, 2, generator=generator)
    y = torch.randn(30, generator=generator)
    risk = EmpiricalRisk(net.double(), "squared_error", X.double(), y.double())
    return measures.covariance_exponents(risk, risk.params())


def analyzer(kind):
    net = torch.nn.Linear(2, 1, bias=False)
    torch.nn.init.zeros_(net.weight)
    X = np.eye(2, dtype=np.float32)
    return kind(net, loss="squared_error").fit(X, np.array([1.0, -3.0]))


RESULTS = {
    "trace": lambda: linalg.trace(DENSE),
    "diagonal": lambda: linalg.diagonal(DENSE),
    "norm": lambda: linalg.frobenius_norm(DENSE),
    "eigsh": lambda: linalg.eigsh(DENSE, 2),
    "sqrt": lambda: linalg.sqrt_matvec(DENSE, THETA),
    "density": lambda: linalg.spectral_density(DENSE),
    "alignment": lambda: measures.alignment(RISK, THETA, 2),
    "segment": lambda: measures.segment_profile(RISK, -THETA, THETA),
    "gaussianity": lambda: measures.minibatch_gaussianity(
        RISK, THETA, batch_size=2, k=2
    ),
    "noise": lambda: measures.gradient_noise(RISK, THETA),
    "signal": lambda: measures.gradient_signal_to_noise(RISK, THETA),
    "noise spectrum": lambda: measures.noise_spectrum(RISK, THETA, 2),
    "power law": lambda: measures.covariance_exponent(RISK, THETA),
    "trace product": lambda: measures.trace_hessian_covariance(RISK, THETA),
    "expected": lambda: measures.expected_sharpness(RISK, THETA, n_draws=3),
}


@pytest.mark.parametrize("name", RESULTS)
def test_a_repr_is_one_line_without_arrays(name):
    shown = repr(RESULTS[name]())
    assert "\n" not in shown
    assert "tensor(" not in shown
    assert "array(" not in shown


def test_a_repr_has_the_numbers_and_shapes():
    assert repr(RESULTS["trace"]()) == "Estimate(value=7, stderr=0, n_matvecs=0)"
    shape = "<float64 of shape (3,)>"
    expected = f"Estimate(value={shape}, stderr={shape}, n_matvecs=0)"
    assert repr(RESULTS["diagonal"]()) == expected
    # Tr(AΣ) = Tr(A³)/3
    expected = "TraceProduct(value=24.3333, stderr=0, n_matvecs=3, bound=0)"
    assert repr(RESULTS["trace product"]()) == expected


def test_one_array_is_an_array():
    array = np.asarray(RESULTS["diagonal"]())
    assert (array.dtype, array.tolist()) == (np.float64, [4, 2, 1])
    assert np.asarray(RESULTS["sqrt"]()) == pytest.approx([2, 2**0.5, 1])
    assert np.asarray(RESULTS["trace"](), dtype=np.float32) == np.float32(7)
    found = np.asarray(analyzer(analysis.CurvatureAnalyzer).diagonal())
    assert (found.dtype, found.tolist()) == (np.float32, [1, 1])  # (2/N) XᵀX
    assert np.asarray(analyzer(analysis.CurvatureAnalyzer).trace()) == 2
    # n₁ = (-1, -3) and n₂ = -n₁: gradients 2x(θx - y) of (-2, 0) and (0, 6)
    noise = analyzer(analysis.NoiseCovarianceAnalyzer)
    assert np.asarray(noise.diagonal()).tolist() == [1, 9]
    value = np.array(RESULTS["diagonal"](), copy=True)
    value[0] = 0
    assert value.tolist() == [0, 2, 1]


def test_one_number_is_a_float():
    assert float(RESULTS["trace"]()) == 7
    assert float(RESULTS["norm"]()) == pytest.approx(21**0.5)
    assert float(analyzer(analysis.NoiseCovarianceAnalyzer).trace()) == 10
    target = {"reached": lambda theta: theta[:, 0] < 3}
    runs = simulate(
        QuadraticRisk(torch.eye(1), torch.zeros(1, 1)),
        "gd",
        torch.full((1,), 4.0),
        lr=0.5,
        n_iter=3,
        n_chains=4,
        **target,
    )
    found = runs["gd"].mean_exit_time()  # four chains after one step each
    assert (float(found), float(found.stderr)) == (1, 0.5)


def test_a_table_is_one_in_a_notebook():
    alignment = RESULTS["alignment"]()
    assert "Tr(HΣ)" in alignment._repr_html_()
    assert "24.33" in alignment._repr_html_()
    assert "barrier" not in RESULTS["segment"]()._repr_html_()
    assert "chord" in RESULTS["segment"]()._repr_html_()
    assert "p_value" in RESULTS["gaussianity"]()._repr_html_()
    laws = network_laws()
    assert "correlation" in laws._repr_html_()
    frame = laws.to_frame()
    assert frame["exponent"].to_dict() == {k: float(v) for k, v in laws.items()}
    curvature = analyzer(analysis.CurvatureAnalyzer)
    noise = analyzer(analysis.NoiseCovarianceAnalyzer)
    for result, word in [
        (curvature.eigen(1), "residual"),
        (curvature.trace(), "hessian"),
        (curvature.diagonal(), "weight"),
        (curvature.density(), "50.0%"),
        (noise.alignment(1), "overlap"),
    ]:
        html = result._repr_html_()
        assert html.startswith("<div>")
        assert word in html


def test_what_is_made_of_estimates_counts_their_products():
    noise = measures.curvature_noise_scale(RISK, THETA)
    assert noise.n_matvecs == 3
    edge = measures.edge_of_stability(RISK, THETA, lr=0.1)
    assert edge.n_matvecs == measures.max_eigenvalue(RISK, THETA).n_matvecs
    assert measures.non_uniformity(RISK, THETA).n_matvecs > 0
