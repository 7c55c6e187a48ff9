"""The exponent of Σᵢᵢ against Hᵢᵢ."""

import pytest
import torch
from scipy import stats

from flatmin.curvature import HessianOperator
from flatmin.linalg import diagonal
from flatmin.measures import covariance_exponent, covariance_exponents
from flatmin.risk import QuadraticRisk

from ..curvature import _problems as networks
from . import _problems


def diagonal_risk(h, variances):
    """H = diag(h) and Σ = diag(variances)."""
    root = torch.diag((variances * len(h)).sqrt())
    return QuadraticRisk(torch.diag(h), torch.cat([root, -root]))


@pytest.mark.parametrize("exponent", [1.0, 1.5, 2.0])
def test_a_power_law_is_found(exponent):
    h = torch.linspace(0.1, 5, 30, dtype=torch.float64)
    risk = diagonal_risk(h, 3 * h**exponent)
    result = covariance_exponent(risk, torch.zeros(30).double())
    assert float(result) == result.exponent == pytest.approx(exponent)
    assert result.intercept == pytest.approx(float(torch.tensor(3.0).log()))
    assert result.correlation == pytest.approx(1)
    assert (result.n_points, result.stderr < 1e-7) == (30, True)


def test_scatter_makes_the_error():
    h = torch.linspace(-2, 2, 100, dtype=torch.float64).exp()
    scores = []
    for seed in range(30):
        scatter = (0.5 * _problems.randn(100, seed=seed)).exp()
        risk = diagonal_risk(h, h**1.5 * scatter)
        result = covariance_exponent(risk, torch.zeros(100).double())
        scores.append((result.exponent - 1.5) / result.stderr)
    assert stats.kstest(scores, "norm").pvalue > 1e-3


def test_what_has_no_logarithm_is_left_out():
    h = torch.tensor([-1.0, 0.0, 1.0, 2.0, 4.0, 8.0]).double()
    risk = diagonal_risk(h, torch.tensor([1.0, 1.0, 1.0, 2.0, 4.0, 0.0]).double())
    result = covariance_exponent(risk, torch.zeros(6).double())
    assert (result.n_points, result.exponent) == (3, pytest.approx(1))
    with pytest.raises(ValueError, match="Got 2 of 6"):
        covariance_exponent(diagonal_risk(h, (h > 3).double()), torch.zeros(6).double())


def test_estimated_entries_have_to_stand_clear_of_zero():
    h = torch.cat([torch.linspace(1, 5, 40), torch.zeros(60)]).double()
    risk = diagonal_risk(h, torch.cat([h[:40] ** 2, torch.ones(60).double()]))
    dense = risk.matrix + 0.02
    risk = QuadraticRisk(dense, risk.slopes)
    result = covariance_exponent(risk, torch.zeros(100).double(), max_matvecs=40)
    assert 35 <= result.n_points <= 45
    assert result.exponent == pytest.approx(2, abs=0.3)


def test_rounding_alone_is_no_noise():
    risk, theta, bias = _problems.attention()
    H = diagonal(HessianOperator(risk, theta), max_matvecs=len(theta)).value
    found = covariance_exponents(risk, theta, max_matvecs=len(theta))
    part = risk.layout.layers()["0.self_attn"]
    usable = H[part] > 0
    usable[torch.isin(torch.arange(len(theta))[part], bias)] = False
    assert found["0.self_attn"].n_points == int(usable.sum())


def test_the_layers_of_a_network():
    risk, theta = networks.empirical()
    dense = networks.oracle()
    H, S = dense.hessian.diagonal(), dense.covariance.diagonal()
    found = covariance_exponents(risk, theta)
    assert list(found) == ["0", "2"]
    for name, part in risk.layout.layers().items():
        h, s = H[part], S[part]
        usable = (h > 0) & (s > 0)
        line = stats.linregress(h[usable].log(), s[usable].log())
        assert found[name].exponent == pytest.approx(line.slope)
        assert found[name].stderr == pytest.approx(line.stderr)
        alone = covariance_exponent(risk, theta, select=name)
        assert alone.exponent == pytest.approx(line.slope)
        assert alone.n_points == found[name].n_points == int(usable.sum())


def test_a_layer_that_cannot_be_fitted_is_left_out():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = torch.nn.Sequential(
            torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1, bias=False)
        )
        X, y = torch.randn(9, 3), torch.zeros(9)
    module.append(torch.nn.Linear(1, 1))  # two parameters
    risk = networks.EmpiricalRisk(module, "squared_error", X, y)
    assert "3" not in covariance_exponents(risk, risk.params())
