"""Many θ of a network at once, against dense float64 autograd and each run alone."""

import pytest
import torch

from ._cases import CASES, N, make_risk, oracle, problem

pytestmark = pytest.mark.filterwarnings("ignore:The loss does not depend")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


def close(actual, expected, rtol=1e-9):
    """Compare by the size of the whole: a zero entry has no digits of its own."""
    assert actual.shape == expected.shape
    error = torch.linalg.vector_norm(actual.double() - expected)
    assert error <= rtol * torch.linalg.vector_norm(expected.double()) + 1e-14


def beside(name, *chains):
    """Return θ of a case as the first chain, and others beside it."""
    theta = problem(name).theta
    thetas = theta + 0.1 * normal(*chains, len(theta))
    thetas.view(-1, len(theta))[0] = theta
    return thetas


@pytest.mark.parametrize("variant", [(None, False), (3, True)])
@pytest.mark.parametrize("name", CASES)
def test_words_against_dense_autograd_and_alone(name, variant):
    """The first chain is the oracle's θ; the others are compared with a run alone."""
    risk, right = make_risk(name, *variant), oracle(name, weighted=variant[1])
    thetas, v = beside(name, 3, 1), normal(3, 1, N)
    batches = torch.tensor([[0, 2, 2], [6, 1, 0]]).expand(3, 1, 2, 3)
    value, gradient = risk.value_and_gradient(thetas)
    close(risk.value(thetas), value)
    close(risk.gradient(thetas), gradient)
    close(value[0, 0], right.value)
    close(gradient[0, 0], right.gradient)
    covariance = right.covariance
    close(risk.gradient_variances(thetas)[0, 0], covariance.diagonal())
    close(risk.weighted_gradient(thetas, v)[0, 0], right.gradients.T @ v[0, 0] / N)
    for found, alone in [
        (risk.value(thetas), risk.value),
        (risk.outputs(thetas), risk.outputs),
        (gradient, risk.gradient),
        (risk.squared_norms(thetas), risk.squared_norms),
        (risk.squared_gradient_sum(thetas), risk.squared_gradient_sum),
        (risk.value_gradient_and_variances(thetas)[0], risk.value),
        (risk.value_gradient_and_variances(thetas)[1], risk.gradient),
        (
            torch.cat(list(risk.per_example_gradients(thetas)), -2),
            lambda theta: torch.cat(list(risk.per_example_gradients(theta))),
        ),
    ]:
        close(found, torch.stack([alone(theta[0]) for theta in thetas])[:, None])
    for word, others in [
        ("weighted_gradient", v),
        ("value_and_noisy_gradient", v),
        ("batch_gradients", batches),
        ("value_and_batch_gradient", batches[:, :, 0]),
    ]:
        found = getattr(risk, word)(thetas, others)
        pairs = zip(thetas, others, strict=True)
        alone = [getattr(risk, word)(theta[0], other[0]) for theta, other in pairs]
        if isinstance(found, torch.Tensor):
            found, alone = (found,), [(one,) for one in alone]
        for part, single in zip(found, zip(*alone, strict=True), strict=True):
            close(part, torch.stack(single)[:, None])


@pytest.mark.parametrize("variant", [(None, False), (3, True)])
@pytest.mark.parametrize("name", CASES)
def test_products_against_dense_autograd_and_alone(name, variant):
    risk, right = make_risk(name, *variant), oracle(name, weighted=variant[1])
    thetas = beside(name, 2)
    v, u = normal(*thetas.shape, seed=1), normal(2, N, *risk.output_shape, seed=2)
    point = risk.linearize(thetas)
    close(point.hvp(v)[0], right.hessian @ v[0], rtol=1e-8)
    close(point.ggn(v)[0], right.gauss_newton @ v[0], rtol=1e-8)
    close(point.directional_derivatives(v)[0], right.gradients @ v[0], rtol=1e-8)
    alone = [risk.linearize(theta) for theta in thetas]
    for word, along in [
        ("hvp", v),
        ("ggn", v),
        ("fisher", v),
        ("jvp", v),
        ("vjp", u),
        ("directional_derivatives", v),
    ]:
        found = getattr(point, word)(along)
        pairs = zip(alone, along, strict=True)
        close(found, torch.stack([getattr(one, word)(w) for one, w in pairs]), 1e-8)
    close(risk.vjp(thetas, u), point.vjp(u))


@pytest.mark.parametrize("name", CASES)
def test_traces_of_the_gauss_newton_matrix(name):
    risk = make_risk(name, 3, True)
    thetas = beside(name, 2)
    exact = risk.gauss_newton_traces(thetas)
    alone = torch.stack([risk.gauss_newton_traces(theta) for theta in thetas])
    close(exact, alone)
    trace = oracle(name, weighted=True).gauss_newton.trace()
    close(exact[0].mean(), trace)
