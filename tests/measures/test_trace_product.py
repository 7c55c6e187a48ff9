"""Tr(HΣ) by its routes, against dense matrices and each other."""

import pytest
import torch

from flatmin.measures import trace_hessian_covariance
from flatmin.risk import QuadraticRisk

from ..curvature import _problems as networks
from . import _problems

close = torch.testing.assert_close


@pytest.mark.parametrize("width", [1, 3], ids=["D < N", "D > N"])
@pytest.mark.parametrize("matrix", ["hessian", "ggn"])
def test_exact(width, matrix):
    """By D products of the matrix or by N, whichever is fewer; with weights."""
    risk, theta = networks.empirical(width)
    dense = networks.oracle(width)
    H = dense.hessian if matrix == "hessian" else dense.gauss_newton
    result = trace_hessian_covariance(risk, theta, method="exact", matrix=matrix)
    close(result.value, (H @ dense.covariance).trace())
    assert (float(result.stderr), float(result.bound)) == (0, 0)
    assert result.n_matvecs == min(risk.n_params, networks.N)


@pytest.mark.parametrize("method", ["exact", "sampled", "low_rank"])
@pytest.mark.parametrize("select", ["0", ["0.bias", "2.weight"]])
def test_a_selection_is_a_block(method, select):
    risk, theta = networks.empirical()
    dense, at = networks.oracle(), risk.layout.indices(select)
    block = dense.hessian[at][:, at], dense.covariance[at][:, at]
    result = trace_hessian_covariance(risk, theta, method=method, select=select, k=11)
    # N = 12, so that 11 pairs are all of Σ and the sampled route is exact.
    close(result.value, (block[0] @ block[1]).trace())
    assert result.bound < 1e-10


@pytest.mark.parametrize("max_matvecs", [6, 40])
def test_sampled(max_matvecs):
    risk, theta, H, S = _problems.regression()
    expected, scores = (H @ S).trace(), []
    for seed in range(30):
        result = trace_hessian_covariance(
            *(risk, theta),
            method="sampled",
            rtol=1e-3,
            max_matvecs=max_matvecs,
            rng=seed,
        )
        assert 0 < result.n_matvecs <= max_matvecs
        assert result.stderr > 0
        scores.append(float((result.value - expected) / result.stderr))
    within = sum(abs(score) < 3 for score in scores)
    assert within >= 24  # of six draws the error itself is uncertain
    assert min(scores) < 0 < max(scores)


def test_quadratic_forms_of_the_sampled_route_are_those_of_drawn_noise():
    """εᵀHε/m of the law that draws N(0, Σ/m) has the same mean."""
    risk, theta, H, _ = _problems.regression()
    rng = torch.Generator().manual_seed(0)
    forms = []
    for _ in range(2000):
        z = torch.randn(_problems.N, generator=rng, dtype=torch.float64)
        noise = risk.weighted_gradient(theta, z - z.mean()) * _problems.N**0.5
        forms.append(noise @ H @ noise)
    forms = torch.stack(forms)
    result = trace_hessian_covariance(risk, theta, method="exact")
    assert abs(forms.mean() - result.value) < 4 * forms.std() / 2000**0.5


@pytest.mark.parametrize("k", [1, 5, 20])
def test_low_rank_is_within_its_bound(k):
    risk, theta, H, S = _problems.regression()
    result = trace_hessian_covariance(risk, theta, method="low_rank", k=k)
    values, vectors = torch.linalg.eigh(S)
    top, V = values[-k:], vectors[:, -k:]
    close(result.value, (top * (V * (H @ V)).sum(0)).sum(), rtol=1e-6, atol=0)
    bound = torch.linalg.eigvalsh(H).abs().max() * (values.sum() - top.sum())
    close(result.bound, bound, rtol=1e-6, atol=0)
    assert 0 < (H @ S).trace() - result.value <= result.bound


def test_the_routes_agree_on_a_network():
    risk, theta = networks.empirical(width=12)  # D = 99, N = 12
    exact, sampled, low = (
        trace_hessian_covariance(
            *(risk, theta), method=method, k=11, max_matvecs=10, rtol=1e-4
        )
        for method in ("exact", "sampled", "low_rank")
    )
    assert abs(sampled.value - exact.value) <= 4 * sampled.stderr
    assert abs(low.value - exact.value) <= low.bound + 1e-6 * abs(exact.value)


def test_auto():
    risk, theta, _, _ = _problems.regression()
    assert trace_hessian_covariance(risk, theta).stderr == 0
    assert trace_hessian_covariance(risk, theta, max_matvecs=30).stderr > 0


def test_chains():
    risk, theta, H, _ = _problems.regression()
    at = torch.stack([theta, 0 * theta, -theta])
    covariances = risk.gradient_covariance(at)
    close(
        trace_hessian_covariance(risk, at).value,
        (H @ covariances).diagonal(dim1=-2, dim2=-1).sum(-1),
    )


def test_single_precision():
    risk, theta = networks.empirical(dtype=torch.float32)
    dense = networks.oracle()
    result = trace_hessian_covariance(risk, theta)
    assert result.value.dtype == torch.float64
    expected = (dense.hessian @ dense.covariance).trace()
    close(result.value, expected, rtol=1e-4, atol=0)


def test_noise_along_a_saddles_way_out():
    risk = QuadraticRisk(
        torch.diag(torch.tensor([-3.0, 1.0])), torch.tensor([[2.0, 0.0], [-2.0, 0.0]])
    )
    assert float(trace_hessian_covariance(risk, torch.zeros(2))) == -12


@pytest.mark.parametrize("name", ["method", "matrix"])
def test_unknown_names(name):
    risk, theta, _, _ = _problems.regression()
    with pytest.raises(ValueError, match=f"Unknown {name} 'exactly'"):
        trace_hessian_covariance(risk, theta, **{name: "exactly"})


@pytest.mark.parametrize("method", ["exact", "sampled", "low_rank"])
def test_preconditioned_noise(method):
    risk, theta = networks.empirical()
    dense = networks.oracle()
    P = torch.arange(1.0, len(theta) + 1).double()
    S = torch.diag(P) @ dense.covariance @ torch.diag(P)
    k = networks.N - 1
    found = trace_hessian_covariance(
        risk, theta, method=method, k=k, preconditioner=P, max_matvecs=networks.N
    )
    close(found.value, (dense.hessian @ S).trace())
