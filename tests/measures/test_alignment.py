"""The alignment table against dense matrices."""

import math

import pytest
import torch

from flatmin.measures import alignment
from flatmin.risk import QuadraticRisk

from ..curvature import _problems as networks
from . import _problems

close = torch.testing.assert_close
K = 4


def table(H, S, g, k):
    """Return every number of the table from dense matrices."""
    (h, U), (s, V) = torch.linalg.eigh(H), torch.linalg.eigh(S)
    h, U, s, V = h.flip(0), U.flip(1), s.flip(0), V.flip(1)
    D = len(h)
    top, other = U[:, :k], V[:, :k]
    product, iso = (H @ S).trace(), H.trace() * S.trace() / D
    low = sum(s[i] * V[:, i] @ H @ V[:, i] for i in range(k))
    return {
        "projection residual": k - (top.T @ other).square().sum(),
        "projection residual, random": k * (1 - k / D),
        "overlap": (top.T @ other).square().sum() / k,
        "gradient share": (top.T @ g).square().sum() / g.square().sum(),
        "Tr(H)": H.trace(),
        "Tr(Σ)": S.trace(),
        "‖H‖_F": H.norm(),
        "‖Σ‖_F": S.norm(),
        "Tr(HΣ)": product,
        "Tr(HΣ), low rank": low,
        "Tr(HΣ), low rank, bound": h.abs().max() * s[k:].sum(),
        "Tr(H)Tr(Σ)/D": iso,
        "anisotropy gain": product / iso,
        "trace alignment": product / (H.norm() * S.norm()),
        "a": U[:, 0] @ S @ U[:, 0] * H.trace() / (h[0] * S.trace()),
        "d": -math.log(h[k] / h[0]) / math.log(D) if h[k] > 0 else math.inf,
    }


def check_pairs(result, H, S):
    frame = result.pairs_to_frame()
    h, s = (torch.linalg.eigvalsh(M).flip(0)[:K] for M in (H, S))
    for name, expected in {
        "hessian": h,
        "covariance": s,
        "hessian_normalised": h / H.norm(),
        "covariance_normalised": s / S.norm(),
    }.items():
        close(torch.tensor(frame[name].to_numpy()), expected, rtol=1e-5, atol=1e-12)
    assert frame.index.tolist() == [1, 2, 3, 4]
    assert (frame.hessian_residual <= 1e-8 * h[0].item()).all()
    assert (frame.covariance_residual <= 1e-8 * s[0].item()).all()
    U, V = (torch.linalg.eigh(M)[1].flip(1)[:, :K] for M in (H, S))
    close(result.inner_products, (U.T @ V).abs(), rtol=1e-4, atol=1e-4)
    close(result.inner_products.diagonal(), result.cosines)


def check_table(result, expected):
    frame = result.to_frame()
    assert frame.index.tolist() == list(expected)
    for name, number in expected.items():
        assert frame.value[name] == pytest.approx(float(number), rel=1e-4, abs=1e-9)
        assert frame.stderr[name] == 0


def test_a_regression():
    risk, theta, H, S = _problems.regression()
    result = alignment(risk, theta, K, tol=1e-8)
    check_table(result, table(H, S, risk.gradient(theta), K))
    check_pairs(result, H, S)
    cosines = torch.linalg.eigh(H)[1].T[-1] @ torch.linalg.eigh(S)[1].T[-1]
    close(result.cosines[0], cosines.abs())
    close(result.angles.cos().square().mean(), result.overlap)


@pytest.mark.parametrize("select", [None, "0", "2.*"])
def test_a_network_and_its_layers(select):
    risk, theta = networks.empirical()
    dense = networks.oracle()
    H, S, g = dense.hessian, dense.covariance, dense.gradient
    if select is not None:
        at = risk.layout.indices(select)
        H, S, g = H[at][:, at], S[at][:, at], g[at]
    result = alignment(risk, theta, K, select=select, tol=1e-8)
    check_table(result, table(H, S, g, K))
    check_pairs(result, H, S)


def test_estimates_and_their_errors():
    risk, theta, H, S = _problems.regression()
    expected = table(H, S, risk.gradient(theta), K)
    drawn = ["Tr(H)", "‖H‖_F", "‖Σ‖_F", "Tr(HΣ)", "Tr(H)Tr(Σ)/D"]
    drawn += ["anisotropy gain", "trace alignment", "a"]
    scores = {name: [] for name in drawn}
    for seed in range(12):
        frame = alignment(
            risk, theta, K, max_matvecs=25, rtol=1e-3, rng=seed
        ).to_frame()
        for name in drawn:
            assert frame.stderr[name] > 0
            error = frame.value[name] - float(expected[name])
            scores[name].append(error / frame.stderr[name])
    for name, found in scores.items():
        assert sum(abs(score) < 3 for score in found) >= 10, (name, found)
        assert max(map(abs, found)) > 0.2, (name, found)


def test_proportional_matrices():
    A = torch.diag(torch.tensor([5.0, 2.0, 1.0, 0.5, 0.1], dtype=torch.float64))
    root = torch.diag(A.diagonal().sqrt())
    risk = QuadraticRisk(A, torch.cat([root, -root]))
    theta = torch.ones(5, dtype=torch.float64)
    result = alignment(risk, theta, 2)
    assert float(result.overlap) == pytest.approx(1)
    assert float(result.trace_alignment) == pytest.approx(1)
    assert float(result.first_alignment) == pytest.approx(1)
    assert result.residual < 1e-12
    share = (25 + 4) / (25 + 4 + 1 + 0.25 + 0.01)
    assert float(result.gradient_share) == pytest.approx(share)


def test_the_decay_at_its_ends():
    """Nothing positive left: any d holds. No pair left: none can be told."""
    slopes = _problems.randn(9, 3)
    for diagonal, k, expected in [
        ([4.0, 2.0, 1.0], 1, -math.log(0.5) / math.log(3)),
        ([4.0, -2.0, -1.0], 1, math.inf),
        ([4.0, 2.0, 1.0], 3, math.nan),
        ([-4.0, -2.0, -1.0], 1, math.nan),
    ]:
        risk = QuadraticRisk(torch.diag(torch.tensor(diagonal)).double(), slopes)
        found = float(alignment(risk, torch.ones(3).double(), k).decay)
        assert found == pytest.approx(expected, nan_ok=True)


def test_same_seed_same_numbers():
    risk, theta, _, _ = _problems.regression()
    first, second, other = (
        alignment(risk, theta, K, max_matvecs=25, rng=seed).to_frame()
        for seed in (3, 3, 4)
    )
    assert first.equals(second)
    assert not first.equals(other)


def test_it_prints_its_table():
    risk, theta, _, _ = _problems.regression()
    assert "anisotropy gain" in str(alignment(risk, theta, K))


def test_bad_input():
    risk, theta, _, _ = _problems.regression()
    with pytest.raises(ValueError, match=r"one θ, of shape \(D,\). Got \(2, 50\)"):
        alignment(risk, theta.expand(2, -1), K)
    with pytest.raises(ValueError, match=r"between 1 and min\(D, N - 1\) = 50"):
        alignment(risk, theta, 51)
    with pytest.raises(ValueError, match="selects by name"):
        alignment(risk, theta, K, select="0")


@pytest.mark.parametrize("select", [None, "0"])
def test_preconditioned_noise(select):
    risk, theta = networks.empirical()
    dense = networks.oracle()
    P = torch.randn(len(theta), generator=torch.Generator().manual_seed(3)).exp()
    H, g = dense.hessian, dense.gradient
    S = torch.diag(P).double() @ dense.covariance @ torch.diag(P).double()
    if select is not None:
        at = risk.layout.indices(select)
        H, S, g = H[at][:, at], S[at][:, at], g[at]
    result = alignment(risk, theta, K, select=select, preconditioner=P, tol=1e-8)
    expected = table(H, S, g, K)
    named = {name.replace("Σ", "PΣP"): value for name, value in expected.items()}
    check_table(result, named)
    check_pairs(result, H, S)
    sampled = alignment(
        risk, theta, K, select=select, preconditioner=P, max_matvecs=8, rtol=1e-3
    ).trace_product
    error = sampled.value - expected["Tr(HΣ)"]
    assert sampled.stderr > 0
    assert error.abs() < 4 * sampled.stderr


def test_noise_that_a_preconditioner_of_ones_leaves():
    risk, theta = networks.empirical()
    one = alignment(risk, theta, K, preconditioner=torch.ones(len(theta))).to_frame()
    plain = alignment(risk, theta, K).to_frame()
    assert one.to_numpy() == pytest.approx(plain.to_numpy(), rel=1e-10, nan_ok=True)
