"""gld_hessian over the whole spectrum, where D is too large to be dense."""

import pytest
import torch

from flatmin.linalg import AbsoluteOperator, _density, trace
from flatmin.noise import _hessian, make_noise_law

from ._problems import generator, problem


@pytest.fixture(autouse=True)
def never_dense(monkeypatch):
    monkeypatch.setattr(_hessian, "_LARGEST_DENSE", 0)


@pytest.mark.parametrize(
    "match", ["trace", pytest.param("none", marks=pytest.mark.slow)]
)
def test_the_noise_has_the_covariance_of_the_dense_one(match):
    case = problem("mlp")
    settings = {"n_components": "full", "match": match, "noise_scale": 2.0}
    law = make_noise_law("gld_hessian", batch_size=3, **settings)
    law.check(case.risk)
    state = law.refresh(case.risk, case.theta, generator())
    assert isinstance(state, AbsoluteOperator)
    covariance = law.covariance(case.risk, case.theta, state)

    point = case.risk.linearize(case.theta)
    eye = torch.eye(case.risk.n_params, dtype=case.theta.dtype)
    hessian = torch.stack([point.hvp(v) for v in eye])
    values, vectors = torch.linalg.eigh(hessian)
    magnitude = vectors @ values.abs().diag() @ vectors.mT
    expected = 4 * magnitude
    if match == "trace":
        target = case.risk.gradient_variances(case.theta).sum() / 3
        expected = expected * (target / magnitude.trace())
    # Two roots, each to 5 %; the quadrature is exact where a Krylov space ends.
    assert (covariance.to_dense() - expected).norm() <= 0.1 * expected.norm()
    torch.testing.assert_close(
        law.trace(case.risk, case.theta, state), expected.trace()
    )

    rng = generator(1)
    n = 100
    draws = torch.stack([state.sample(rng) for _ in range(n)])
    error = (draws.mT @ draws / n - expected).norm() / expected.norm()
    effective_rank = float(expected.trace() / torch.linalg.matrix_norm(expected, 2))
    assert error < 0.05 + 3 * (effective_rank / n) ** 0.5


def test_the_trace_tells_its_error(monkeypatch):
    monkeypatch.setattr(_density, "_MAX_DENSE", 0)  # or Tr|H| were exact
    case = problem("mlp")
    law = make_noise_law("gld_hessian", n_components="full", match="none")
    exact = torch.linalg.eigvalsh(case.point.hessian).abs().sum()
    for seed in range(5):
        state = law.refresh(case.risk, case.theta, generator(seed))
        found = law.trace_estimate(case.risk, case.theta, state)
        assert 0 < found.stderr < 0.3 * exact
        assert (found.value - exact).abs() <= 4 * found.stderr
        told = trace(law.covariance(case.risk, case.theta, state))
        assert (told.value, told.stderr) == (found.value, found.stderr)
        stored = law.restore_state(law.store_state(state), case.risk)
        assert stored.trace_stderr() == found.stderr
