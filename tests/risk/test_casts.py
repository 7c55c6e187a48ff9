"""Modules that compute in less than θ's precision inside: told, and tried as strictly.

The reference is float64 autograd of the same network without the cast.
"""

import pytest
import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from flatmin.risk import EmpiricalRisk, rounding
from flatmin.risk.autodiff.casts import LowestDtype
from flatmin.risk.trials import random_like

from .test_second_derivatives import WrongSecond, data, make, reference

X, Y = data()
DOUBLE, SINGLE, HALF = torch.float64, torch.float32, torch.bfloat16


def in_single(function):
    return lambda h: function(h.float()).to(h.dtype)


def by_copy(function):
    # In C++, where the module's casts cannot be left out.
    return lambda h: function(torch.empty_like(h, dtype=SINGLE).copy_(h)).to(h.dtype)


class ForwardModeOff(torch.autograd.Function):
    """tanh, whose forward mode is off by a per cent, and whose pullback is none."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.tanh()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        return g * (1 - ctx.saved_tensors[0] ** 2)

    @staticmethod
    def jvp(ctx, t):
        return 1.01 * t * (1 - ctx.saved_tensors[0] ** 2)


class GradientOff(torch.autograd.Function):
    """tanh, whose gradient is off by a per cent."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    def backward(ctx, g):
        return 1.01 * g * (1 - ctx.saved_tensors[0].tanh() ** 2)


class SecondOff(torch.autograd.Function):
    """x², whose second derivative is off by a per cent."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 2 * g * (x.detach() - 1.01 * x.detach() + 1.01 * x)


@pytest.mark.parametrize("cast", [in_single, by_copy])
@pytest.mark.parametrize("dtype", [DOUBLE, SINGLE])
def test_what_is_right_has_the_digits_of_the_lower(cast, dtype):
    module = make(cast(torch.tanh))
    rows, J, H = reference(make(torch.tanh), X, Y)
    risk = EmpiricalRisk(module, "cross_entropy", X, Y, chunk_size=3, dtype=dtype)
    theta = risk.params()
    v = torch.linspace(-1, 1, risk.n_params, dtype=dtype)
    point = risk.linearize(theta)
    for found, wanted in (
        (risk.gradient(theta), rows.mean(0)),
        (risk.squared_norms(theta), rows.square().sum(1)),
        (point.hvp(v), H @ v.double()),
        (point.jvp(v), (J @ v.double())),
    ):
        off = (found.double() - wanted.view(found.shape)).norm() / wanted.norm()
        assert off < 2e-6
    told = "the module computes in float32 inside"
    precision, _, change = risk.paths.get("precision", "").partition(", which changed ")
    assert precision == (told if dtype == DOUBLE else "")
    if dtype == DOUBLE:
        assert float(change.removeprefix("H v by ").split()[0]) < 2e-6
    assert told in str(risk.audit())
    assert risk.audit().fails == ()
    assert risk._model.in_float64 is False  # the audit had a copy


@pytest.mark.parametrize("cast", [in_single, by_copy])
@pytest.mark.parametrize("function", [WrongSecond.apply, SecondOff.apply])
@pytest.mark.parametrize("dtype", [DOUBLE, SINGLE])
def test_a_wrong_rule_behind_a_cast_is_refused(cast, function, dtype):
    risk = EmpiricalRisk(make(cast(function)), "cross_entropy", X, Y, dtype=dtype)
    theta = risk.params()
    with pytest.raises(ValueError, match="from differences of the gradient"):
        risk.linearize(theta).hvp(torch.ones_like(theta))


def test_a_wrong_forward_mode_behind_a_cast_is_not_taken():
    module = make(in_single(ForwardModeOff.apply))
    risk = EmpiricalRisk(module, "cross_entropy", X, Y)
    theta = risk.params()
    v = torch.linspace(-1, 1, risk.n_params, dtype=DOUBLE)
    J = reference(make(torch.tanh), X, Y)[1]
    found = risk.linearize(theta).jvp(v)
    torch.testing.assert_close(found, (J @ v).view(found.shape), rtol=1e-5, atol=1e-6)
    risk.linearize(theta).ggn(v)
    assert "forward mode is off by" in risk.paths["ggn"]


def test_an_audit_finds_a_wrong_gradient_behind_a_cast():
    module = make(in_single(GradientOff.apply))
    with pytest.warns(UserWarning, match="is not the derivative of L"):
        audit = EmpiricalRisk(module, "cross_entropy", X, Y).audit()
    failing = {check.identity for check in audit.fails}
    assert "vᵀ∇L = (L(θ + hv) - L(θ - hv)) / 2h" in failing


@pytest.mark.parametrize("dtype", [DOUBLE, SINGLE])
def test_too_few_digits_are_refused_and_the_way_out_is_right(dtype):
    module = make(lambda h: h.to(HALF).tanh().to(h.dtype))
    risk = EmpiricalRisk(module, "cross_entropy", X, Y, dtype=dtype)
    theta = risk.params()
    v = torch.linspace(-1, 1, risk.n_params, dtype=dtype)
    with pytest.raises(ValueError, match="casts to bfloat16 in the module change it"):
        risk.linearize(theta).hvp(v)
    with pytest.raises(ValueError, match="No way to it is right"):
        risk.linearize(theta).jvp(v)
    assert risk.paths["precision"] == "the module computes in bfloat16 inside"
    found = risk.to(hvp="finite_difference").linearize(theta).hvp(v)
    H = reference(make(torch.tanh), X, Y)[2]
    torch.testing.assert_close(found.double(), H @ v.double(), rtol=1e-4, atol=1e-6)


def test_a_finite_difference_tries_the_casts_on_a_few_examples(monkeypatch):
    tried, right = [], rounding.losses_and_gradient

    def noted(model, loss, chunk, slopes):
        tried.append(len(chunk.X))
        return right(model, loss, chunk, slopes)

    monkeypatch.setattr(rounding, "losses_and_gradient", noted)
    examples = X.repeat(4, *(1 for _ in X.shape[1:])), Y.repeat(4)
    assert len(examples[1]) > 16
    risk = EmpiricalRisk(
        make(in_single(torch.tanh)), "cross_entropy", *examples, hvp="finite_difference"
    )
    theta = risk.params()
    v = torch.linspace(-1, 1, risk.n_params, dtype=theta.dtype)
    H = reference(make(torch.tanh), X, Y)[2]
    found = risk.linearize(theta).hvp(v).double()
    torch.testing.assert_close(found, H @ v.double(), rtol=1e-4, atol=1e-6)
    assert tried == [16, 16]


@pytest.mark.parametrize("dtype", [DOUBLE, SINGLE])
def test_how_much_float16_changes_a_product_that_passes_is_told(dtype):
    module = make(lambda h: h.half().to(h.dtype).tanh())
    risk = EmpiricalRisk(module, "cross_entropy", X, Y, dtype=dtype)
    theta = risk.params()
    assert risk.paths["precision"] == "the module computes in float16 inside"
    v = torch.linspace(-1, 1, risk.n_params, dtype=dtype)
    found = risk.linearize(theta).hvp(v).double()
    right = reference(make(torch.tanh), X, Y)[2] @ v.double()
    off = float((found - right).norm() / right.norm())
    told = risk.paths["precision"].partition(", which changed H v by ")[2]
    assert told.endswith(" at the θ of the trial")
    told = float(told.split()[0])
    assert 1e-5 < told <= 1e-3
    assert told / 5 < off < 5 * told  # of another vector


class HalfLayer(nn.Module):
    """Three layers, the second in another precision; the last begins at zero."""

    def __init__(self, dtype):
        super().__init__()
        self.inner, self.outer = nn.Linear(4, 6), nn.Linear(6, 3)
        self.middle, self.lower = nn.Linear(6, 6), dtype
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, x):
        h = torch.tanh(self.inner(x)).to(self.lower)
        weight, bias = (p.to(self.lower) for p in self.middle.parameters())
        return self.outer(torch.tanh(F.linear(h, weight, bias)).to(x.dtype))


def test_the_audit_tells_what_float16_changes_at_another_theta():
    torch.manual_seed(0)
    module, identity = HalfLayer(torch.float16).double(), "H v of the module's casts"
    risk, plain = EmpiricalRisk(module, "cross_entropy", X, Y), HalfLayer(DOUBLE)
    rng = torch.Generator().manual_seed(0)
    step = 2 * torch.randn(risk.n_params, generator=rng, dtype=DOUBLE)
    for theta, verdict in [(risk.params(), "holds"), (risk.params() + step, "fails")]:
        audit, v = risk.audit(theta), random_like(theta, 0)
        (check,) = [c for c in audit.checks if c.identity.startswith(identity)]
        nn.utils.vector_to_parameters(theta, plain.double().parameters())
        right = reference(plain, X, Y)[2] @ v
        off = float((risk.linearize(theta).hvp(v) - right).norm() / right.norm())
        assert check.verdict == verdict
        assert check.difference == pytest.approx(off, rel=0.2)


@pytest.mark.parametrize(
    ("function", "lowest"),
    [
        (lambda w: w.exp(), DOUBLE),
        (lambda w: w.float().double(), SINGLE),
        (lambda w: w.view(-1).half().double(), torch.float16),
        (lambda w: w * torch.arange(3, dtype=SINGLE).double(), DOUBLE),  # a constant
        (lambda w: w * (w > 0).float().double(), DOUBLE),  # a mask
        (lambda w: torch.view_as_real(w.to(torch.complex64)).double(), SINGLE),
    ],
)
def test_only_what_depends_on_the_parameters_counts(function, lowest):
    w = torch.ones(3, dtype=DOUBLE, requires_grad=True)
    with LowestDtype([w]) as seen:
        function(w)
    assert seen.found == lowest
