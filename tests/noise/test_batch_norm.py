"""The laws on a risk whose BatchNorm takes the statistics of the full batch."""

import pytest
import torch
from torch import nn
from torch.autograd.functional import hessian, jacobian
from torch.nn import functional as F

from flatmin.noise import METHODS, GLDConst, Step, step_for
from flatmin.risk import EmpiricalRisk

from .. import oracles
from ._dense import RATE, Point, dense_covariance
from ._problems import generator

N, C = 12, 2
# Settings with which a law needs nothing of single examples.
MADE_WITHOUT_EXAMPLES = {
    "gd": {},
    "sam": {"rho": 0.1},
    "gradient_penalty": {"norm": "full", "weight": 0.3},
    "gld_const": {"match": "none", "sigma": 0.3},
    "gld_hessian": {"match": "none", "n_components": 3},
    "gld_first_eigenvector": {"match": "none"},
    "gld_random_subspace": {"match": "none", "n_components": 3},
    "gld_shuffled": {"match": "none", "n_components": 3},
    "gld_ggn": {"match": "none"},
    "anti_pgd": {"match": "none"},
    "alpha_stable": {"match": "none", "alpha": 2.0},
}


def numbers(*shape):
    return torch.randn(shape, generator=generator(), dtype=torch.float64)


@pytest.fixture(scope="module")
def problem():
    """Return a risk, g₀ as a function of θ, and a Point without gradients."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Tanh(), nn.Linear(2, C)
        module = nn.Sequential(*layers).double()
    X, y = numbers(N, 3), torch.arange(N) % C
    risk = EmpiricalRisk(module, "cross_entropy", X, y, batch_norm="batch")
    call = oracles.function_of(module)

    def outputs(theta):
        return call(theta, X)

    def loss(theta):
        return F.cross_entropy(outputs(theta), y)

    theta = risk.params()
    J = jacobian(outputs, theta)
    p = outputs(theta).softmax(1)
    inner = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
    G = torch.einsum("ncd,nce,nef->df", J, inner, J) / N
    unknown = torch.full((N, len(theta)), torch.nan, dtype=torch.float64)
    point = Point(unknown[:, 0], unknown, hessian(loss, theta), G.detach())
    return risk, lambda t: jacobian(loss, t), point


def laws():
    for name, kind in METHODS.items():
        law = kind(**MADE_WITHOUT_EXAMPLES.get(name, {}))
        yield pytest.param(law, name in MADE_WITHOUT_EXAMPLES, id=name)
        for match in ("trace", "curvature", "frobenius", "hessian_trace"):
            if match in getattr(kind, "matches", ("trace",)) and hasattr(law, "match"):
                options = {**MADE_WITHOUT_EXAMPLES.get(name, {}), "match": match}
                yield pytest.param(kind(**options), False, id=f"{name}-{match}")


@pytest.mark.parametrize(("law", "is_right"), list(laws()))
def test_a_law_has_its_covariance_or_is_refused(law, is_right, problem):
    risk, gradient, point = problem
    theta, rng, step = risk.params(), generator(), Step(0, RATE)
    if not is_right:
        with pytest.raises(
            ValueError, match=f"^The law {law.name}.* needs the loss"
        ) as e:
            law.check(risk)
        only_its_match = law.name in MADE_WITHOUT_EXAMPLES
        assert (
            "Use match='none', or batch_norm='frozen'" in str(e.value)
        ) == only_its_match
        return
    law.check(risk)
    if hasattr(law, "tol"):
        law.tol = 1e-10
    state = law.refresh(risk, theta, rng, **step_for(law.refresh, step))
    expected = dense_covariance(law, [point], theta.shape, generator())
    found = law.covariance(risk, theta, state)
    assert torch.allclose(found.to_dense(), expected, rtol=1e-6, atol=1e-9)
    trace = law.trace(risk, theta, state)
    assert torch.allclose(trace, expected.trace(), rtol=1e-6)
    told = step_for(law.noisy_gradient, step)
    draws = [law.noisy_gradient(risk, theta, state, rng, **told) for _ in range(300)]
    assert torch.allclose(draws[0][0], risk.value(theta))
    noise = torch.stack([drawn for _, drawn in draws])
    there = theta
    if law.name == "sam":
        there = theta + law.rho * gradient(theta) / gradient(theta).norm()
    mean = gradient(there)
    if law.name == "gradient_penalty":
        mean = mean + 2 * law.weight * point.hessian @ mean
    off = noise.mean(0) - mean
    assert float(off.norm()) <= 4 * float((expected.trace() / 300).sqrt()) + 1e-12


def test_a_law_within_another(problem):
    risk, _, point = problem
    settings = {"n_components": 2, "keep": "top", "tol": 1e-10}
    law = METHODS["projected"](GLDConst(sigma=0.3), **settings)
    law.check(risk)
    theta = risk.params()
    state = law.refresh(risk, theta, generator())
    U = torch.linalg.eigh(point.hessian).eigenvectors[:, -2:]
    found = law.covariance(risk, theta, state).to_dense()
    assert torch.allclose(found, 0.09 * U @ U.T, atol=1e-7)
    within = METHODS["projected"](METHODS["gld_full"](), **settings)
    with pytest.raises(ValueError, match=r"^The law projected needs the loss"):
        within.check(risk)
