"""One law made of another: every law inside, the step, and what is refused."""

import pytest
import torch
from torch import nn

from flatmin.linalg import ScaledIdentityOperator
from flatmin.noise import METHODS, GLDFull, NoiseLaw, Projected, Step, make_noise_law
from flatmin.risk import EmpiricalRisk, QuadraticRisk

from ._problems import generator, problem

OWN_MEAN = {"sam", "gradient_penalty"}  # that is not g₀
INSIDE = [x for x in METHODS if x not in {"projected", "alpha_stable"} | OWN_MEAN]


def projection(matrix, k, keep):
    top = torch.linalg.eigh(matrix).eigenvectors[:, -k:]
    P = top @ top.T
    return P if keep == "top" else torch.eye(len(P), dtype=P.dtype) - P


def make(name, keep="top", **settings):
    known = METHODS[name]._get_param_names()
    inside = {"n_components": 3, "tol": 1e-10}
    inside = {key: value for key, value in inside.items() if key in known}
    return Projected(
        make_noise_law(name, **inside),
        n_components=4,
        keep=keep,
        batch_size=3,
        tol=1e-10,
        **settings,
    )


@pytest.mark.parametrize("keep", ["top", "bulk"])
@pytest.mark.parametrize("name", INSIDE)
def test_the_covariance_of_every_law_inside_is_projected(name, keep):
    case, law = problem("mlp"), make(name, keep)
    told = {"step": Step(0, 0.1)} if law.takes_step else {}
    state = law.refresh(case.risk, case.theta, generator(), **told)
    inside = law.law.set_params(
        **({"batch_size": 3} if hasattr(law.law, "batch_size") else {})
    )
    inner = inside.refresh(case.risk, case.theta, generator(), **told)
    P = projection(case.point.hessian, 4, keep)
    C = inside.covariance(case.risk, case.theta, inner).to_dense()
    got = law.covariance(case.risk, case.theta, state)
    scale = C.abs().max()
    assert (got.to_dense() - P @ C @ P).abs().max() <= 1e-7 * scale
    trace = law.trace(case.risk, case.theta, state)
    assert (trace - (P @ C @ P).trace()).abs() <= 1e-7 * C.trace().abs()
    noise = law.noisy_gradient(case.risk, case.theta, state, generator(), **told)[1]
    noise = noise - case.point.mean
    assert (P @ noise - noise).abs().max() <= 1e-7 * (1 + noise.abs().max())


@pytest.mark.parametrize("match", ["none", "trace"])
def test_a_small_bulk_of_an_estimated_trace(match):
    """Beside 40 of 430 eigenvalues 2 % of Tr(G) is left, as much as its error."""
    torch.manual_seed(0)
    X = 1 + 0.3 * torch.randn(60, 10, dtype=torch.float64)
    y = torch.randint(0, 10, (60,))
    net = nn.Sequential(nn.Linear(10, 20), nn.Tanh(), nn.Linear(20, 10)).double()
    risk = EmpiricalRisk(net, "cross_entropy", X, y)
    theta = risk.params()
    target = risk.gradient_variances(theta).sum() / 6
    law = Projected(
        make_noise_law("gld_ggn", match="none"),
        n_components=40,
        keep="bulk",
        batch_size=6,
        match=match,
        tol=1e-6,
    )
    offs = []
    for seed in range(6):
        state = law.refresh(risk, theta, generator(seed))
        found = law.trace_estimate(risk, theta, state)
        exact = law.covariance(risk, theta, state).to_dense().trace()
        assert 0 < found.stderr <= 0.025 * found.value
        assert (found.value - exact).abs() <= 4 * found.stderr
        if match == "trace":
            offs.append(exact / target - 1)
            assert offs[-1].abs() <= 8 * state.stderr / state.factor
    # The size is drawn anew at each refresh, and right in the mean.
    assert abs(sum(offs)) <= 6 * 0.03


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n_inputs", [5, 40])  # D of 30 and of 205
def test_what_rounding_leaves_of_a_bulk_is_not_scaled_up(n_inputs, dtype):
    """G has rank 15 at most, for three examples of five outputs."""
    torch.manual_seed(0)
    X, y = torch.randn(3, n_inputs, dtype=dtype), torch.tensor([0, 1, 2])
    net = nn.Linear(n_inputs, 5).to(dtype)
    risk = EmpiricalRisk(net, "cross_entropy", X, y)
    theta, inner = risk.params(), make_noise_law("gld_ggn")
    law = Projected(inner, n_components=16, keep="bulk", match="trace", tol=1e-6)
    state = law.refresh(risk, theta, generator())
    assert state.factor == 0
    assert law.trace(risk, theta, state) == 0
    gradient = law.noisy_gradient(risk, theta, state, generator())[1]
    torch.testing.assert_close(gradient, risk.gradient(theta))


def test_a_projected_step_has_a_projected_mean():
    case = problem("mlp")
    step, noise = make("gd", on="step"), make("gld_full", on="step")
    P = projection(case.point.hessian, 4, "top")
    for law in (step, noise):
        state = law.refresh(case.risk, case.theta, generator())
        draw = law.noisy_gradient(case.risk, case.theta, state, generator(1))[1]
        inside = GLDFull(batch_size=3).noisy_gradient(
            case.risk, case.theta, None, generator(1)
        )[1]
        expected = P @ (case.point.mean if law is step else inside)
        torch.testing.assert_close(draw, expected, atol=1e-8, rtol=0)


def test_noise_along_the_first_eigenvector_has_the_variance_of_sgd():
    case = problem("mlp")
    law = Projected(n_components=1, batch_size=3, tol=1e-10)
    state = law.refresh(case.risk, case.theta, generator())
    u = torch.linalg.eigh(case.point.hessian).eigenvectors[:, -1]
    expected = u @ case.point.covariance @ u / 3 * torch.outer(u, u)
    C = law.covariance(case.risk, case.theta, state).to_dense()
    torch.testing.assert_close(C, expected, rtol=0, atol=1e-7 * float(expected.norm()))


class Asks(NoiseLaw):
    """Somebody's law that must be told the step."""

    name = "asks"

    def noisy_gradient(self, risk, theta, state, rng, *, step):
        loss, gradient = risk.value_and_gradient(theta)
        return loss, gradient + step.lr * torch.ones_like(theta)

    def covariance(self, risk, theta, state):
        raise AssertionError


def test_the_step_is_passed_on():
    risk = QuadraticRisk(torch.diag(torch.tensor([3.0, 1.0])), torch.zeros(4, 2))
    law = Projected(Asks(), n_components=1)
    assert law.takes_step
    assert not Projected().takes_step
    step, theta = Step(3, 0.25), torch.zeros(2)
    state = law.refresh(risk, theta, generator(), step=step)
    _, gradient = law.noisy_gradient(risk, theta, state, generator(), step=step)
    torch.testing.assert_close(gradient, torch.tensor([0.25, 0.0]))


def test_the_law_inside_ages_with_the_iterations():
    # Measured every 50 iterations: at the sixth refresh of one in ten.
    case, rng = problem("quadratic"), generator()
    inside = make_noise_law("gld_dynamic", match="curvature")
    law, state, ages = Projected(inside, n_components=2), None, []
    for _ in range(7):
        state = law.refresh(case.risk, case.theta, rng, state)
        ages.append(state.inner.age)
    assert ages == [0, 10, 20, 30, 40, 0, 10]
    assert inside.refresh_every == 1, "the user's law is left alone"


@pytest.mark.parametrize("match", ["trace", "curvature"])
@pytest.mark.parametrize("kind", ["mlp", "cnn"])  # exact, and from draws
def test_a_match_of_small_steps_has_their_size(kind, match, monkeypatch):
    monkeypatch.setattr("flatmin.noise._match._N_DRAWS", 30 if kind == "mlp" else 600)
    case, point = problem(kind), problem(kind).point
    law = make("svag", match=match)
    state = law.refresh(case.risk, case.theta, generator())
    C = law.covariance(case.risk, case.theta, state).to_dense()
    H = torch.eye(len(C)).double() if match == "trace" else point.hessian
    expected = 4 * (H @ point.covariance).trace() / 3  # l Σ/m, as svag itself
    rel = 0.2 if kind == "cnn" and match == "curvature" else 1e-6
    assert float((H @ C).trace()) == pytest.approx(float(expected), rel=rel)


def test_heavy_tails_inside_have_an_infinite_norm():
    case, law = problem("mlp"), make("alpha_stable")
    law.check(case.risk)
    state = law.refresh(case.risk, case.theta, generator())
    assert law.trace(case.risk, case.theta, state) == torch.inf
    P = projection(case.point.hessian, 4, "top")
    noise = law.noisy_gradient(case.risk, case.theta, state, generator())[1]
    noise = noise - case.point.mean
    assert (P @ noise - noise).abs().max() <= 1e-7 * noise.abs().max()
    with pytest.raises(ValueError, match="has no covariance"):
        law.covariance(case.risk, case.theta, state)


def test_what_rounding_leaves_of_nothing_is_not_scaled_up():
    # The noise inside lies in the eigenspace: nothing is left of it in the bulk.
    case, law = problem("mlp"), make("gld_first_eigenvector", "bulk", match="trace")
    state = law.refresh(case.risk, case.theta, generator())
    assert law.trace(case.risk, case.theta, state) == 0
    noisy = law.noisy_gradient(case.risk, case.theta, state, generator())[1]
    torch.testing.assert_close(noisy, case.point.mean)


def test_the_law_inside_is_told_the_step_where_its_curvature_is_drawn():
    class Random(Asks):
        def noisy_gradient(self, risk, theta, state, rng, *, step):
            loss, gradient = risk.value_and_gradient(theta)
            z = torch.randn(theta.shape, generator=rng, dtype=theta.dtype)
            return loss, gradient + step.lr * z

        def covariance(self, risk, theta, state):
            return ScaledIdentityOperator(theta.new_tensor(0.01), risk.n_params)

    case = problem("cnn")
    law = Projected(Random(), n_components=4, match="curvature", tol=1e-10)
    told = {"step": Step(0, 0.1)}
    state = law.refresh(case.risk, case.theta, generator(), **told)
    top = torch.linalg.eigvalsh(case.point.hessian)[-4:].sum() * 0.01
    sgd = (case.point.hessian @ case.point.covariance).trace() / 20
    factor = float((sgd / top).sqrt())
    assert abs(float(state.factor) - factor) < 4 * float(state.stderr)
    assert 0 < state.stderr < 0.3 * factor


@pytest.mark.parametrize(
    ("law", "sentence"),
    [
        (Projected("gld_full"), r"must be a NoiseLaw.*Got 'gld_full'; make one by"),
        (Projected(keep="middle"), r"keep of projected must be one of"),
        (Projected(on="loss"), r"on of projected must be one of"),
        (Projected(make_noise_law("sam")), r"needs a law whose mean is g₀. Got SAM"),
        (
            Projected(make_noise_law("label_noise", centred=False), match="trace"),
            r"needs a law whose mean is g₀. Got Lab.*use on='step'",
        ),
        (Projected(Projected(on="step")), r"needs a law whose mean is g₀. Got Pr"),
        (
            Projected(Projected(make_noise_law("alpha_stable")), match="trace"),
            r"needs a law with a covariance.*Got match='trace' .* use match='none'",
        ),
        (Projected(n_components=4, keep="bulk"), r"needs n_components below .* 4"),
        (Projected(make_noise_law("sgd", batch_size=0)), r"batch_size of sgd must be"),
    ],
)
def test_what_does_not_fit(law, sentence):
    with pytest.raises(ValueError, match=sentence):
        law.check(QuadraticRisk(torch.eye(4), torch.eye(9, 4)))
