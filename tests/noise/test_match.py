"""The size that ``match`` gives to a law: measured how, how often, and where not."""

import pytest
import torch

from flatmin.noise import MatchedState, UndefinedNoiseError, make_noise_law
from flatmin.risk import QuadraticRisk

from ._problems import generator, problem


def curvature(point, covariance):
    return (point.hessian @ covariance).trace()


def own_covariance(name, point):
    """Return C₀ of a law for m = 3."""
    if name == "gld_fisher":
        return point.gradients.T @ point.gradients / len(point.gradients) / 3
    if name == "gld_diagonal":
        return point.covariance.diag().diag() / 3
    return point.sgd_trace / (3 * len(point.mean)) * torch.eye(len(point.mean)).double()


@pytest.mark.parametrize("name", ["gld_dynamic", "gld_fisher"])
def test_a_drawn_factor_is_as_wrong_as_it_says(name):
    # 71 parameters: more than those for which both traces are exact.
    case = problem("cnn")
    point = case.point
    squared = curvature(point, point.covariance) / 3
    squared = squared / curvature(point, own_covariance(name, point))
    law, rng = make_noise_law(name, batch_size=3, match="curvature"), generator()
    states = [law.refresh(case.risk, case.theta, rng) for _ in range(40)]
    factors = torch.stack([state.factor for state in states])
    stderrs = torch.stack([state.stderr for state in states])
    scores = (factors - squared.sqrt()) / stderrs
    assert 0.6 < scores.square().mean().sqrt() < 1.6
    assert factors.mean() == pytest.approx(float(squared.sqrt()), rel=0.08)
    assert (stderrs < 0.3 * factors).all()


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("label_noise", {"centred": False, "flip_probability": 0.9}),
        ("projected", {"n_components": 3, "keep": "bulk", "on": "step"}),
    ],
)
def test_what_is_measured_is_the_noise_about_its_mean(name, settings, monkeypatch):
    # Both have a mean that is not g₀, and it has a curvature as well.
    case = problem("mlp")
    law = make_noise_law(name, batch_size=3, **settings)
    inner = law.refresh(case.risk, case.theta, generator())
    exact = law._exact_curvatures(case.risk, case.theta, inner)
    monkeypatch.setattr("flatmin.noise._match._N_DRAWS", 600)
    drawn = law._sampled_curvatures(case.risk, case.theta, inner, generator())
    for (value, _), (mean, stderr) in zip(exact, drawn, strict=True):
        assert abs(value - mean) < 4 * stderr
        assert stderr < 0.15 * mean


@pytest.mark.parametrize("name", ["gld_dynamic", "gld_fisher", "gld_diagonal"])
def test_a_drawn_frobenius_norm_is_as_wrong_as_it_says(name):
    case = problem("cnn")
    covariance = case.point.covariance / 3
    own = own_covariance(name, case.point)
    expected = float((covariance.norm() / own.norm()).sqrt())
    law, rng = make_noise_law(name, batch_size=3, match="frobenius"), generator()
    states = [law.refresh(case.risk, case.theta, rng) for _ in range(40)]
    factors = torch.stack([state.factor for state in states])
    stderrs = torch.stack([state.stderr for state in states])
    assert 0.6 < ((factors - expected) / stderrs).square().mean().sqrt() < 1.6
    assert factors.mean() == pytest.approx(expected, rel=0.05)
    assert (stderrs < 0.15 * factors).all()
    noise = law.covariance(case.risk, case.theta, states[0]).to_dense()
    ratio = float(noise.norm() / covariance.norm())
    assert abs(ratio - 1) < 8 * float(stderrs[0] / factors[0])


@pytest.mark.parametrize("match", ["curvature", "frobenius"])
def test_few_parameters_are_exact(match):
    case = problem("mlp")
    law = make_noise_law("gld_dynamic", match=match)
    state = law.refresh(case.risk, case.theta, generator())
    assert state.stderr == 0


@pytest.mark.parametrize(("refresh_every", "n_held"), [(1, 50), (10, 5), (80, 1)])
def test_the_factor_is_measured_every_fifty_iterations(refresh_every, n_held):
    case, rng = problem("quadratic"), generator()
    law = make_noise_law("gld_const", match="curvature")
    law.refresh_every = refresh_every
    state, factors = None, []
    for _ in range(3 * n_held):
        # The curvature stays, and Tr(HΣ) of this risk as well: change the law's own.
        law.set_params(sigma=1e-3 * (1 + len(factors)))
        state = law.refresh(case.risk, case.theta, rng, state)
        factors.append(float(state.factor))
    changes = [i for i in range(1, len(factors)) if factors[i] != factors[i - 1]]
    assert changes == [n_held, 2 * n_held]


def test_what_the_noise_is_refreshed_to_in_between_counts():
    case, rng = problem("regression_chains"), generator()
    law = make_noise_law("gld_diagonal", batch_size=3, match="curvature")
    state = law.refresh(case.risk, case.theta, rng)
    later = law.refresh(case.risk, case.theta + 1, rng, state)
    assert isinstance(later, MatchedState)
    assert torch.equal(later.factor, state.factor)
    own = make_noise_law("gld_diagonal", batch_size=3)
    there = own.trace(
        case.risk, case.theta, own.refresh(case.risk, case.theta + 1, rng)
    )
    expected = state.factor.square() * there
    torch.testing.assert_close(law.trace(case.risk, case.theta, later), expected)


@pytest.mark.parametrize(
    ("diagonal", "sentence"),
    [
        ((1.0, -3.0), r"Got -1 ± 0 of SGD's noise and -1 ± 0 of the law's"),
        ((0.0, 0.0), r"Got 0 ± 0 of SGD's noise and 0 ± 0 of the law's"),
    ],
)
def test_curvature_that_is_not_positive_is_refused(diagonal, sentence):
    # Σ = I/2 for these slopes, and isotropic noise meets the same curvature.
    slopes = torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]])
    risk = QuadraticRisk(torch.diag(torch.tensor(diagonal)), slopes)
    law = make_noise_law("gld_dynamic", batch_size=1, match="curvature")
    with pytest.raises(UndefinedNoiseError, match=sentence):
        law.refresh(risk, torch.zeros(2), generator())


def test_one_chain_of_many_is_enough_to_refuse():
    class Cubic(QuadraticRisk):
        def hessian(self, theta):
            return theta[..., :1, None] * self.matrix

    risk = Cubic(torch.eye(2), torch.tensor([[1.0, 0], [-1, 0]]))
    law = make_noise_law("gld_dynamic", match="curvature")
    law.refresh(risk, torch.ones(3, 2), generator())
    theta = torch.tensor([[1.0, 0], [-2, 0], [1, 0]])
    with pytest.raises(UndefinedNoiseError, match="Got -1 ± 0 of SGD's noise"):
        law.refresh(risk, theta, generator())


def test_sgd_is_its_own_curvature_at_a_saddle_too():
    slopes = torch.tensor([[1.0, 0], [-1, 0]])
    risk = QuadraticRisk(torch.diag(torch.tensor([-1.0, 1])), slopes)
    for name in ("sgd", "gld_full"):
        law = make_noise_law(name, batch_size=1, match="curvature")
        state = law.refresh(risk, torch.zeros(2), generator())
        assert law.trace(risk, torch.zeros(2), state) == 1
