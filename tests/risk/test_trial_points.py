"""A head or a gate of zeros hides what is before it; training opens it."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flatmin import EmpiricalRisk
from flatmin.risk.example_sums.trial_points import trial_points, trial_scalars
from tests.oracles import cross_entropy, dense


class ConstantSlope(torch.autograd.Function):
    """tanh, whose slope PyTorch takes for a constant."""

    @staticmethod
    def forward(ctx, x):
        y = torch.tanh(x)
        ctx.slope = 1 - y * y
        return y

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.slope.detach()


class Head(nn.Module):
    """A layer, something behind it, and a head that begins at zero."""

    def __init__(self, behind):
        super().__init__()
        self.layer, self.head = nn.Linear(3, 4), nn.Linear(4, 2)
        nn.init.zeros_(self.head.weight)
        self.behind = behind

    def forward(self, x):
        return self.head(self.behind(self.layer(x)))


class Gate(nn.Module):
    """A part that a gate of zero, too, keeps from having an effect."""

    def __init__(self, part):
        super().__init__()
        self.layer, self.part = nn.Linear(4, 4), part
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, h):
        return torch.tanh(h) + self.part(self.layer(h), self.gate)


class Reversed(nn.Module):
    """Works on the examples from the last to the first."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(3, 4), nn.Linear(4, 2)
        nn.init.zeros_(self.head.weight)

    def forward(self, x):
        places = list(range(len(x)))[::-1]
        return self.head(torch.tanh(self.layer(x[places]))[places])


def at_most_ten(h):
    """An expert that takes ten examples of those that are together."""
    asks = h[:, :1] > h[:, 1:2]
    return torch.where(asks & (asks.long().cumsum(0) <= 10), 2 * h, h)


def graded(h):
    return torch.tanh(h) if torch.is_grad_enabled() else F.hardtanh(h)


@pytest.fixture
def data():
    rng = torch.Generator().manual_seed(0)
    X = torch.randn(40, 3, generator=rng, dtype=torch.float64)
    return X, torch.randint(2, (40,), generator=rng)


def make(module, data):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = module().double()
    return network, EmpiricalRisk(network, "cross_entropy", *data)


def elsewhere(theta):
    rng = torch.Generator().manual_seed(1)
    return theta + torch.randn(theta.shape, generator=rng, dtype=theta.dtype)


def test_one_point_where_nothing_is_hidden(data):
    _, risk = make(lambda: nn.Linear(3, 2), data)
    risk._model.bind(risk.params())
    scalars = trial_scalars(risk._model, risk._loss, risk._few)
    assert len(trial_points(risk._model, scalars)) == 1


def test_another_where_a_head_is_zero_and_theta_is_bound_again(data):
    _, risk = make(lambda: Head(torch.tanh), data)
    theta = risk.params()
    risk._model.bind(theta)
    scalars = trial_scalars(risk._model, risk._loss, risk._few)
    first, other = trial_points(risk._model, scalars)
    torch.testing.assert_close(first, theta, rtol=0, atol=0)
    assert bool((other != 0).all())
    torch.testing.assert_close(risk._model.theta(), theta, rtol=0, atol=0)


def test_a_point_that_is_not_finite_is_left_out(data):
    def part(h, gate):
        return h * torch.log(1 - 1e9 * gate.square())

    _, risk = make(lambda: Head(Gate(part)), data)
    risk._model.bind(risk.params())
    scalars = trial_scalars(risk._model, risk._loss, risk._few)
    assert len(trial_points(risk._model, scalars)) == 1


def less_mean(h, gate):
    return gate * (h - h.mean(0))


@pytest.mark.parametrize("make_part", [lambda: Gate(less_mean), lambda: at_most_ten])
def test_examples_that_share_behind_a_head_of_zeros_are_refused(data, make_part):
    with pytest.raises(ValueError, match="must not depend on the others"):
        make(lambda: Head(make_part()), data)


def test_one_function_with_a_graph_and_without(data):
    _, risk = make(lambda: Head(graded), data)
    theta = elsewhere(risk.params())
    value, _ = risk.value_and_gradient(theta)
    torch.testing.assert_close(risk.value(theta), value)


def test_no_second_derivative_behind_a_head_of_zeros(data):
    _, risk = make(lambda: Head(ConstantSlope.apply), data)
    theta = risk.params()
    with pytest.raises(ValueError, match="needs the second derivatives"):
        risk.linearize(theta).hvp(torch.ones_like(theta))


def test_rows_behind_a_head_of_zeros(data):
    network, risk = make(Reversed, data)
    theta = risk.params()
    risk.squared_norms(theta)  # the trial
    theta = elsewhere(theta)
    rows = dense(network, cross_entropy, *data, theta).gradients
    torch.testing.assert_close(risk.squared_norms(theta), rows.square().sum(1))
    assert risk.paths["per-example sums"].startswith("reference")
