"""The check of equation 2: right about noise that is Gaussian, and that is not."""

import pytest
import torch
from scipy import stats

from flatmin.measures import minibatch_gaussianity
from flatmin.risk import QuadraticRisk

from ..curvature import _problems as networks
from . import _problems


def risk_of(slopes):
    """One coordinate for each column; the gradients at 0 are the slopes."""
    return QuadraticRisk(torch.eye(slopes.shape[1]).double(), slopes.double())


def check(slopes, **options):
    D = slopes.shape[1]
    return minibatch_gaussianity(
        *(risk_of(slopes), torch.zeros(D).double()),
        directions=torch.eye(D).double(),
        **options,
    )


def test_cumulants_are_exact():
    slopes = _problems.randn(40, 2).exp()
    result = check(slopes, batch_size=9)
    for i, column in enumerate(slopes.T):
        skewness, kurtosis = stats.skew(column), stats.kurtosis(column)
        assert float(result.skewness[i]) == pytest.approx(skewness / 3)
        assert float(result.excess_kurtosis[i]) == pytest.approx(kurtosis / 9)


def test_cumulants_are_those_of_drawn_minibatches():
    slopes = _problems.randn(40, 1).exp()
    rng = torch.Generator().manual_seed(0)
    batches = torch.randint(40, (200_000, 4), generator=rng)
    means = slopes[batches, 0].mean(1)
    result = check(slopes, batch_size=4)
    assert float(result.skewness[0]) == pytest.approx(stats.skew(means), abs=0.05)
    kurtosis = stats.kurtosis(means)
    assert float(result.excess_kurtosis[0]) == pytest.approx(kurtosis, abs=0.2)


def test_gaussian_noise_passes():
    """Of as many quantiles as no test of 1000 batches can tell from the normal."""
    quantiles = torch.linspace(0, 1, 20_002, dtype=torch.float64)[1:-1]
    normal = torch.special.ndtri(quantiles).unsqueeze(1)
    p_values = [check(normal, batch_size=1, rng=seed).p_value for seed in range(60)]
    assert stats.kstest(p_values, "uniform").pvalue > 1e-3


def test_heavy_tails_and_small_batches_are_found():
    slopes = _problems.randn(400, 1) ** 5
    small, large = (check(slopes, batch_size=m) for m in (2, 200))
    assert small.p_value < 1e-10
    assert float(small.distance[0]) > 2 * float(large.distance[0])
    assert float(small.excess_kurtosis[0]) > 5
    assert float(small) == float(small.distance.max())


def test_large_batches_of_ordinary_noise_pass():
    slopes = _problems.randn(400, 3).exp()
    assert check(slopes, batch_size=4).p_value < 1e-6
    assert check(slopes, batch_size=2000).p_value > 1e-3


def test_lengths_and_signs_of_directions_do_not_matter():
    slopes = _problems.randn(40, 2).exp()
    risk, theta = risk_of(slopes), torch.zeros(2).double()
    V = _problems.randn(2, 2, seed=1)
    one, other = (
        minibatch_gaussianity(risk, theta, batch_size=3, directions=v)
        for v in (V, V * torch.tensor([-3.0, 0.5]).double())
    )
    torch.testing.assert_close(one.distance[1], other.distance[1])
    torch.testing.assert_close(one.skewness[0], -other.skewness[0])
    torch.testing.assert_close(one.excess_kurtosis, other.excess_kurtosis)


def test_a_networks_leading_directions():
    risk, theta = networks.empirical()
    dense = networks.oracle()
    v = torch.linalg.eigh(dense.covariance)[1][:, -1]
    slopes = (dense.gradients - dense.gradient) @ v
    result = minibatch_gaussianity(risk, theta, batch_size=5, k=3)
    kurtosis = stats.kurtosis(slopes) / 5
    assert float(result.excess_kurtosis[0]) == pytest.approx(kurtosis)
    frame = result.to_frame()
    assert frame.shape == (3, 4)
    assert frame.p_value.min() * 3 >= result.p_value
    again = minibatch_gaussianity(risk, theta, batch_size=5, k=3)
    assert frame.equals(again.to_frame())


def test_bad_input():
    risk, theta = risk_of(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])), torch.zeros(2)
    with pytest.raises(ValueError, match=r"batch_size must be .* Got 0"):
        minibatch_gaussianity(risk, theta.double(), batch_size=0)
    with pytest.raises(ValueError, match=r"Got directions \[1\] with vᵀΣv = \[0\.0\]"):
        minibatch_gaussianity(
            risk, theta.double(), batch_size=2, directions=torch.eye(2).double()
        )
