"""Many θ of a network at once, against dense float64 autograd and each run alone."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flatmin.risk import EmpiricalRisk
from flatmin.risk.chains import ways
from flatmin.risk.quantities import chain_gradients

from ._cases import CASES, Apply, N, make_risk, oracle, problem

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


# Whole or in weighted chunks of 3, 3 and 1: in turns, and both of the first.
VARIANTS = [
    *((name, [(None, False), (3, True)][i % 2]) for i, name in enumerate(CASES)),
    ("mlp", (3, True)),
]


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
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


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
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


@pytest.mark.parametrize("name", ["mlp", "mlp, labels of two kinds", "tied", "LSTM"])
def test_traces_of_the_gauss_newton_matrix(name):
    risk = make_risk(name, 3, True)
    thetas = beside(name, 2)
    exact = risk.gauss_newton_traces(thetas)
    alone = torch.stack([risk.gauss_newton_traces(theta) for theta in thetas])
    close(exact, alone)
    trace = oracle(name, weighted=True).gauss_newton.trace()
    close(exact[0].mean(), trace)


@pytest.mark.parametrize(
    ("name", "batches"),
    [
        ("mlp", "vmap"),
        ("convolutional", "vmap"),
        ("batch norm, frozen", "vmap"),
        ("in place on the input", "vmap"),
        ("branching", "reference: one chain at a time, since under vmap Runtime"),
    ],
)
def test_paths_tell_what_was_taken(name, batches):
    """A branch on X is no obstacle where all chains share it."""
    risk, thetas = problem(name).risk(), beside(name, 2)
    assert not any("chains" in quantity for quantity in risk.paths)
    risk.gradient(thetas)
    risk.batch_gradient(thetas, torch.tensor([[0], [1]]))
    assert risk.paths["gradients of chains"] == "vmap"
    assert risk.paths["minibatch gradients of chains"].startswith(batches)


def network_of_an_embedding(how):
    def forward(parts, X):
        weight = parts["words"].weight
        embedded = {
            "module": lambda: parts["words"](X),
            "functional": lambda: F.embedding(X, weight, 0),
            "builtin": lambda: torch.embedding(weight, X, 0),
        }[how]()
        return parts["head"](embedded.tanh().mean(1))

    words = nn.Embedding(6, 3, padding_idx=0)
    return Apply(forward, words=words, head=nn.Linear(3, 2))


@pytest.mark.parametrize("how", ["module", "functional", "builtin"])
def test_padding_that_no_trial_meets(how):
    """vmap gives it a gradient where weight and tokens both are batched."""
    X = 1 + torch.arange(160).view(40, 4) % 5
    X[38, 2] = 0
    y, module = torch.arange(40) % 2, network_of_an_embedding(how)
    risk = EmpiricalRisk(module, "cross_entropy", X, y, dtype="float64")
    thetas = risk.params() + normal(3, risk.n_params)
    found = risk.batch_gradient(thetas, torch.tensor([[38, 2], [1, 38], [3, 4]]))
    assert not found[:, :3].any()
    assert "padding" in risk.paths["minibatch gradients of chains"]
    close(risk.gradient(thetas)[2], risk.gradient(thetas[2]))


def test_a_way_that_fails_later_is_given_up():
    """Small inputs go through vmap; a large one meets a branch on θ."""

    def forward(parts, X):
        outputs = parts["linear"](X)
        if X.max() > 10 and outputs.sum() > 0:
            return 2 * outputs
        return outputs

    X = normal(20, 3).clamp(-1, 1)
    module = Apply(forward, linear=nn.Linear(3, 2)).double()
    risk = EmpiricalRisk(module, "squared_error", X, normal(20, 2), chunk_size=1)
    thetas = risk.params() + normal(3, 8)
    risk.gradient(thetas)
    assert risk.paths["gradients of chains"] == "vmap"
    risk._data.X[7, 0] = 20.0  # what no trial has seen
    close(risk.gradient(thetas), torch.stack([risk.gradient(t) for t in thetas]))
    assert risk.paths["gradients of chains"].startswith("reference")


def test_blocks_bound_the_memory(monkeypatch):
    """No call of the network holds more numbers than the budget; sums are the same."""
    risk, thetas = problem("mlp").risk(), beside("mlp", 30)
    v, batches = normal(30, N), torch.arange(6).view(2, 3).expand(30, 2, 3)
    words = {
        "value": (),
        "value_and_noisy_gradient": (v,),
        "value_gradient_and_variances": (),
        "batch_gradients": (batches,),
        "squared_norms": (),
    }
    whole = {word: getattr(risk, word)(thetas, *args) for word, args in words.items()}
    seen = []
    original = chain_gradients.chain_losses_and_gradient

    def watched(model, loss, thetas, chunk, **cotangents):
        seen.append(len(thetas))
        return original(model, loss, thetas, chunk, **cotangents)

    monkeypatch.setattr(chain_gradients, "chain_losses_and_gradient", watched)
    size = risk._chain_ways.size_of_chain("minibatch gradients", 3)
    monkeypatch.setattr(ways, "ROW_BUDGET", 4 * size)
    for word, args in words.items():
        torch.testing.assert_close(getattr(risk, word)(thetas, *args), whole[word])
    assert max(seen) == 4
    assert sum(seen) == 60


def test_a_large_chain_goes_alone(monkeypatch):
    risk, thetas = problem("mlp").risk(), beside("mlp", 2)
    monkeypatch.setattr(ways, "_SMALL", 1)
    alone = torch.stack([risk.gradient(theta) for theta in thetas])
    assert torch.equal(risk.gradient(thetas), alone)
    assert not any("chains" in name for name in risk.paths)


def test_inputs_in_a_mapping_and_targets_left_out():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(3, 4)

        def forward(self, a, b):
            return self.head(a + b).transpose(1, 2)

    X = {"a": normal(6, 5, 3), "b": normal(6, 5, 3, seed=1)}
    y = torch.arange(30).view(6, 5) % 4
    y[0, :2] = y[3] = -100
    risk = EmpiricalRisk(Two().double(), "cross_entropy", X, y, chunk_size=4)
    thetas = risk.params() + normal(3, 16)
    for theta, value in zip(thetas, risk.value(thetas), strict=True):
        W, b = theta[:12].view(4, 3), theta[12:]
        outputs = ((X["a"] + X["b"]) @ W.T + b).transpose(1, 2)
        close(value, F.cross_entropy(outputs, y))
    close(
        risk.squared_norms(thetas),
        torch.stack([risk.squared_norms(theta) for theta in thetas]),
    )
    assert risk.squared_norms(thetas)[:, 3].eq(0).all()
    indices = torch.tensor([[0, 3], [1, 1], [5, 0]])
    close(
        risk.batch_gradient(thetas, indices),
        torch.stack(list(map(risk.batch_gradient, thetas, indices))),
    )


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda r, t: r.value(t[..., :-1]), r"\(\*chains, 35\).*Got \(2, 34\)"),
        (
            lambda r, t: r.weighted_gradient(t, torch.ones(N)),
            r"v must have shape \(2, 7",
        ),
        (lambda r, t: r.batch_gradient(t, torch.tensor([0])), "must have 2 axes"),
        (lambda r, t: r.batch_gradient(t, torch.tensor([[0]] * 3)), r"\(2,\) in front"),
        (lambda r, t: r.batch_gradient(t, torch.tensor([[99]] * 2)), "between 0 and 6"),
        (lambda r, t: r.linearize(t).hvp(t[0]), r"v must have shape \(2, 35\)"),
        (lambda r, t: r.set_params(t), r"θ must have shape \(35,\)"),
    ],
)
def test_what_does_not_fit(ask, message):
    risk = problem("mlp").risk()
    with pytest.raises(ValueError, match=message):
        ask(risk, torch.ones(2, risk.n_params, dtype=torch.float64))
    assert risk.paths.get("minibatch gradients of chains", "vmap") == "vmap"


def test_chains_that_are_not_finite_leave_the_others_alone():
    risk, thetas = make_risk("mlp"), beside("mlp", 3)
    thetas[1] = torch.nan
    gradient = risk.gradient(thetas)
    assert gradient[1].isnan().all()
    close(gradient[2], risk.gradient(thetas[2]))
    with pytest.raises(FloatingPointError, match="in 1 of 3 chains"):
        risk.linearize(thetas).hvp(torch.ones_like(thetas))
