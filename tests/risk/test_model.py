"""The layout of θ, copies of a risk, and modules that need care."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flatmin.risk import EmpiricalRisk, ParameterLayout

from .. import oracles
from ._cases import CASES, Apply, make_risk, mlp, problem


def test_layout_lists_what_can_be_trained():
    layout = ParameterLayout.of(problem("frozen").module)
    assert layout.names == ("2.weight", "2.bias")
    assert layout.shapes == ((3, 4), (3,))
    assert layout.sizes == (12, 3)
    assert layout.slice("2.bias") == slice(12, 15)
    with pytest.raises(KeyError, match=r"Got '0.weight'"):
        layout.slice("0.weight")


def test_layout_cuts_without_a_copy_and_joins_again():
    layout, theta = ParameterLayout.of(nn.Linear(3, 2)), torch.arange(8.0)
    parts = layout.unflatten(theta)
    assert parts["weight"].data_ptr() == theta.data_ptr()
    assert torch.equal(layout.flatten(parts), theta)


def test_layout_lists_a_shared_layer_once():
    names = ParameterLayout.of(problem("shared").module).names
    assert names == ("0.weight", "0.bias", "4.weight", "4.bias")


class Tied(nn.Module):
    """One weight under three names, and two biases."""

    def __init__(self):
        super().__init__()
        self.w, self.v = nn.Linear(3, 3), nn.Linear(3, 3)
        self.u = nn.Linear(3, 3, bias=False)
        self.v.weight = self.u.weight = self.w.weight

    def forward(self, x):
        return self.u(torch.tanh(self.v(torch.tanh(self.w(x)))))


@pytest.mark.parametrize(
    ("select", "names"),
    [
        ("v", ("w.weight", "v.bias")),
        (["v"], ("w.weight", "v.bias")),
        ("u", ("w.weight",)),
        ("v.weight", ("w.weight",)),
        ("u.*", ("w.weight",)),
        ("*.bias", ("w.bias", "v.bias")),
        ("w", ("w.weight", "w.bias")),
    ],
)
def test_a_shared_parameter_goes_by_each_of_its_names(select, names):
    module = Tied().double()
    X, y = torch.randn(9, 3, dtype=torch.float64), torch.arange(9) % 3
    risk = EmpiricalRisk(module, "cross_entropy", X, y)
    assert risk.layout.names == ("w.weight", "w.bias", "v.bias")
    assert risk.layout.chosen(select) == names
    assert risk.layout.slice("v.weight") == risk.layout.slice("w.weight")
    parts = [dict(module.named_parameters())[name] for name in names]
    loss = F.cross_entropy(module(X), y)
    gradients = torch.autograd.grad(loss, parts, create_graph=True)
    flat = nn.utils.parameters_to_vector(gradients)
    v = torch.linspace(-1, 1, len(flat), dtype=torch.float64)
    Hv = nn.utils.parameters_to_vector(torch.autograd.grad(flat @ v, parts))
    found = risk.linearize(risk.params(), select=select).hvp(v)
    torch.testing.assert_close(found, Hv)


def test_what_has_no_parameters_is_refused_as_before():
    layout = ParameterLayout.of(Tied())
    with pytest.raises(ValueError, match="Got 'x'"):
        layout.chosen("x")
    with pytest.raises(KeyError, match=r"Got 'u.bias'"):
        layout.slice("u.bias")


def test_params_are_where_the_risk_began_or_was_set_to():
    p = problem("mlp")
    risk, start = p.risk(), oracles.flat_parameters(p.module)
    risk.gradient(p.theta)
    assert torch.equal(risk.params(), start)
    risk.set_params(p.theta)
    risk.gradient(start)
    assert torch.equal(risk.params(), p.theta)
    with pytest.raises(ValueError, match="θ must have shape"):
        risk.set_params(p.theta[1:])


@pytest.mark.parametrize("name", CASES)
def test_a_deep_copy_answers_for_itself(name):
    assert_twins(make_risk(name), copy.deepcopy(make_risk(name)), problem(name).theta)


@pytest.mark.parametrize("name", ["mlp", "shared", "convolutional, one channel"])
def test_a_pickle_answers_for_itself(name):
    risk = make_risk(name)
    assert_twins(risk, pickle.loads(pickle.dumps(risk)), problem(name).theta)


def assert_twins(risk, twin, theta):
    risk.set_params(theta)
    twin.set_params(0 * theta)  # moves the twin alone
    assert torch.equal(risk.params(), theta)
    assert not twin.params().any()
    assert torch.equal(twin.gradient(theta), risk.gradient(theta))
    Hv = risk.linearize(theta).hvp(theta)
    assert torch.equal(twin.linearize(theta).hvp(theta), Hv)


def test_a_pickle_holds_θ_once_bound_and_once_as_given():
    module = nn.Sequential(*(nn.Linear(50, 50) for _ in range(10)))
    risk = EmpiricalRisk(
        module, "squared_error", torch.zeros(1, 50), torch.zeros(1, 50)
    )
    assert len(pickle.dumps(risk)) < 2.2 * 4 * risk.n_params


def test_a_parameter_tied_across_modules_moves_in_all_of_them():
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    module = nn.Sequential(first, nn.Tanh(), second).double()
    X, y = problem("tied").X, problem("tied").y
    risk = EmpiricalRisk(module, "squared_error", X, y)
    theta = torch.linspace(-1, 1, 24, dtype=torch.float64)
    expected = oracles.dense(module, oracles.squared_error, X, y, theta)
    for _ in range(2):
        torch.testing.assert_close(risk.gradient(theta), expected.gradient)
        Hv = risk.linearize(theta).hvp(theta)
        torch.testing.assert_close(Hv, expected.hessian @ theta)


@pytest.mark.parametrize("path", ["functional", "bound"])
def test_the_module_may_write_into_its_input(path):
    p = problem("in place on the input")
    risk, X = make_risk("in place on the input"), p.X.clone()
    for _ in range(3):
        if path == "functional":
            risk.linearize(p.theta).hvp(p.theta)
        else:
            risk.gradient(p.theta)
    assert torch.equal(p.X, X)


def test_statistics_of_a_frozen_batch_norm_do_not_move():
    p = problem("batch norm, frozen")
    risk, before = p.risk(), p.module[1].running_mean.clone()
    for _ in range(2):
        risk.gradient(p.theta)
    assert torch.equal(p.module[1].running_mean, before)
    assert p.module.training


def test_unused_parameters_are_named_and_get_zeros():
    p = problem("unused")
    with pytest.warns(UserWarning, match=r"parts.spare.weight', 'parts.spare.bias'"):
        risk = p.risk()
    spare = slice(*sorted(risk.layout.slice("parts.spare.weight").indices(99)[:2]))
    assert not risk.gradient(p.theta)[spare].any()
    assert not risk.linearize(p.theta).hvp(p.theta)[spare].any()


def test_a_parameter_that_only_some_examples_use_is_used():
    # Of "branching" the first example takes one branch alone: no warning here.
    problem("branching").risk()


@pytest.mark.parametrize(
    "module",
    [
        nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5)),
        nn.TransformerEncoderLayer(4, 1, 4, dropout=0.5, batch_first=True),
        nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5, inplace=True)),
    ],
    ids=["dropout", "attention", "in place"],
)
def test_dropout_is_switched_off_with_a_warning(module):
    X, y = torch.ones(2, 4), torch.zeros(2, dtype=torch.long)
    with pytest.warns(UserWarning, match="active dropout"):
        risk = EmpiricalRisk(module, "cross_entropy", X, y)
    assert risk.value(risk.params()) == risk.value(risk.params())
    EmpiricalRisk(module.eval(), "cross_entropy", X, y)  # silent


def test_dropout_with_probability_zero_is_none():
    module = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.0))
    EmpiricalRisk(module, "cross_entropy", torch.ones(2, 4), torch.zeros(2))


def test_randomness_in_the_forward_pass_is_refused():
    module = Apply(lambda p, X: F.dropout(p["layer"](X)), layer=nn.Linear(4, 3))
    with pytest.raises(ValueError, match="same output for the same input"):
        EmpiricalRisk(module, "cross_entropy", torch.ones(20, 4), torch.zeros(20))


class _DroppingLSTM(nn.LSTM):
    def forward(self, X):
        return super().forward(F.dropout(X, 0.5, self.training))[0][:, -1]


def test_a_recurrent_layer_of_ones_own_is_in_eval_mode():
    module = nn.Sequential(_DroppingLSTM(3, 4, batch_first=True), nn.Linear(4, 2))
    X, y = torch.ones(20, 5, 3), torch.zeros(20, dtype=torch.long)
    risk = EmpiricalRisk(module.eval(), "cross_entropy", X, y)
    expected = F.cross_entropy(module(X), y)
    torch.testing.assert_close(risk.value(risk.params()), expected.detach())


def test_hooks_of_the_module_are_neither_lost_nor_multiplied():
    module = mlp()
    module[0].register_forward_hook(lambda _module, _inputs, outputs: 2 * outputs)
    X, y = torch.ones(2, 4), torch.zeros(2)
    risk = EmpiricalRisk(module, "cross_entropy", X, y)
    expected = F.cross_entropy(module(X), y.long())
    torch.testing.assert_close(risk.value(risk.params()), expected.detach())
    assert len(module[0]._forward_hooks) == 1


class Steep(nn.Module):
    """Forgets gradients, and wants that of its input, as force fields do."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))

    def forward(self, X):
        self.zero_grad()
        with torch.enable_grad():
            X = X.requires_grad_()
            (slope,) = torch.autograd.grad(self.net(X).sum(), X, create_graph=True)
        return slope


@pytest.mark.filterwarnings("ignore:The loss does not depend")
def test_a_module_may_use_autograd_itself():
    rng = torch.Generator().manual_seed(0)
    X, y = torch.randn(2, 5, 2, generator=rng, dtype=torch.float64)
    module = Steep().double()
    loss = (module(X.clone()) - y).square().mean()
    params = list(module.parameters())
    slopes = torch.autograd.grad(
        loss, params, allow_unused=True, materialize_grads=True
    )
    expected = torch.cat([slope.flatten() for slope in slopes])
    risk = EmpiricalRisk(module, "squared_error", X, y)
    for _ in range(2):
        torch.testing.assert_close(risk.gradient(risk.params()), expected)
    assert not X.requires_grad
    assert risk._data.X.grad is None


def test_gradients_reach_no_tensor_but_the_parameters():
    head = nn.Linear(2, 1)
    risk = EmpiricalRisk(
        nn.Linear(3, 2), "squared_error", torch.ones(4, 3), torch.ones(4),
        output_transform=head,
    )  # fmt: skip
    assert risk.gradient(risk.params()).any()
    assert head.weight.grad is None
