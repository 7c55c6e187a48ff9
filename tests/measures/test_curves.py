"""The loss along segments and trained curves, beside closed forms and plain PyTorch."""

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from torch import nn
from torch.func import functional_call

from flatmin.measures import bezier_profile, segment_profile
from flatmin.risk import EmpiricalRisk, QuadraticRisk

from ._problems import randn

T = torch.linspace(0, 1, 25, dtype=torch.float64)


class Ring(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([1.0, 0.0], dtype=torch.float64))

    def forward(self, x):
        return x * self.w.square().sum()


def ring():
    """(x² + y² - 1)², and (1, 0)."""
    one = torch.ones(1, 1, dtype=torch.float64)
    risk = EmpiricalRisk(Ring(), "squared_error", one, one[0])
    return risk, risk.params()


def network(dtype=torch.float64):
    """A network with its data, and two points."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).to(dtype)
    X, y = randn(20, 4).to(dtype), torch.arange(20) % 3
    risk = EmpiricalRisk(module, "cross_entropy", X, y)
    return module, X, y, risk, risk.params(), 2 * randn(risk.n_params, seed=2).to(dtype)


def plain_loss(module, X, y, theta):
    named, at = {}, 0
    for name, parameter in module.named_parameters():
        named[name] = theta[at : at + parameter.numel()].view_as(parameter)
        at += parameter.numel()
    return nn.functional.cross_entropy(functional_call(module, named, X), y)


def test_a_quadratic_along_a_segment():
    """L(t) - chord = -t(1 - t) dᵀAd / 2 with d = b - a."""
    B = randn(6, 6)
    for A in (B + B.T, B @ B.T):
        risk = QuadraticRisk(A, torch.zeros(1, 6).double(), randn(6, seed=1))
        a, b = randn(6, seed=2), randn(6, seed=3)
        bend = float((b - a) @ A @ (b - a)) / 2
        found = segment_profile(risk, a, b)
        torch.testing.assert_close(found.loss - found.chord, -T * (1 - T) * bend)
        assert found.barrier == pytest.approx(max(0, -bend / 4))
        assert found.argmax == (0.5 if bend < 0 else 0)
        assert float(found) == found.barrier
        # The whole path is a + t d: its loss is a parabola with these coefficients.
        delta = a - risk.minimum
        loss = delta @ A @ delta / 2 + T * (delta @ A @ (b - a)) + T**2 * bend
        torch.testing.assert_close(found.loss, loss)
        assert found.height == pytest.approx(float(loss.max() - max(loss[0], loss[-1])))
        assert found.mean_loss == pytest.approx(float(np.trapezoid(loss, T)))


def test_barrier_and_height_differ_where_the_ends_do():
    """From L = 0 up a straight slope with a bump: 1 - cos over a line."""
    risk = QuadraticRisk(-torch.eye(1).double(), torch.zeros(1, 1).double())
    # -θ²/2 from -2 (L = -2) to 1 (L = -1/2): 0 at θ = 0; the chord there is -1.
    found = segment_profile(risk, np.array([-2.0]), np.array([1.0]), n_points=31)
    assert found.height == pytest.approx(0.5)
    assert found.barrier == pytest.approx(9 / 8)  # t(1 - t) 3²/2 at 1/2
    assert found.argmax == 0.5


def test_a_curve_goes_round_where_the_segment_climbs():
    """16 s² (1 - s c²)², s = t(1 - t): c² = B(4,4)/B(5,5) = 4.5, barrier 4/81."""
    risk, b = ring()
    assert segment_profile(risk, -b, b).barrier == pytest.approx(1)
    assert segment_profile(risk, -b, b).argmax == 0.5
    found = bezier_profile(risk, -b, b, n_draws=20, n_points=1001)
    assert found.barrier == pytest.approx(4 / 81, rel=0.02)
    assert found.mean_loss == pytest.approx(2 / 105, rel=0.01)
    c = found.theta_mid.abs()
    torch.testing.assert_close(
        c[1], torch.tensor(4.5).double().sqrt(), rtol=0.01, atol=0
    )
    assert c[0] < 0.02
    other = bezier_profile(risk, -b, b, n_draws=20, rng=7)
    assert other.theta_mid[1].abs() == pytest.approx(float(c[1]), rel=0.01)
    assert not torch.equal(other.theta_mid, found.theta_mid)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_segment_by_hand(dtype):
    module, X, y, risk, a, b = network(dtype)
    found = segment_profile(risk, a, b)
    points = [((1 - t) * a.double() + t * b.double()).to(dtype) for t in T]
    right = torch.stack([plain_loss(module, X, y, point) for point in points]).double()
    rtol = 1e-12 if dtype == torch.float64 else 1e-6
    torch.testing.assert_close(found.loss, right.detach(), rtol=rtol, atol=0)
    rise = right - (1 - T) * right[0] - T * right[-1]
    assert found.barrier == pytest.approx(float(rise.max()), abs=found.rounding)
    assert found.rounding < 30 * torch.finfo(dtype).eps * float(right.max())
    frame = found.to_frame()
    np.testing.assert_array_equal(frame.index, T)
    np.testing.assert_array_equal(frame["loss"] - frame["chord"] <= found.barrier, True)


def test_a_curve_by_hand():
    """The training, written down with autograd through the curve."""
    module, X, y, risk, a, b = network()
    settings = {"lr": 0.02, "n_iter": 15, "n_draws": 3}
    found = bezier_profile(risk, a, b, **settings, rng=3)
    rng = torch.Generator().manual_seed(3)
    scale = float((b - a).norm()) / len(a) ** 0.5
    z = torch.randn(len(a), generator=rng, dtype=torch.float64)
    c = ((a + b) / 2 + 0.01 * scale * z).requires_grad_()

    def curve(t):
        return (1 - t) ** 2 * a + 2 * t * (1 - t) * c + t**2 * b

    optimizer = torch.optim.Adam([c], lr=0.02 * scale)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: 1 - i / 15)
    for _ in range(15):
        u = torch.rand(3, generator=rng, dtype=torch.float64)
        ts = (torch.arange(3) + u) / 3
        loss = torch.stack([plain_loss(module, X, y, curve(t)) for t in ts]).mean()
        (c.grad,) = torch.autograd.grad(loss, c)
        optimizer.step()
        schedule.step()
    torch.testing.assert_close(found.theta_mid, c.detach())
    right = torch.stack([plain_loss(module, X, y, curve(t)) for t in T])
    torch.testing.assert_close(found.loss, right.detach())
    assert found.mean_loss < segment_profile(risk, a, b).mean_loss


def test_a_seed_decides_the_curve_and_nothing_is_moved():
    *_, risk, a, b = network(torch.float32)
    before = a.clone(), b.clone(), risk.params()
    one, two = (bezier_profile(risk, a, b, n_iter=5) for _ in range(2))
    assert torch.equal(one.theta_mid, two.theta_mid)
    assert one.theta_mid.dtype == torch.float32
    assert not one.theta_mid.requires_grad
    for old, new in zip(before, (a, b, risk.params()), strict=True):
        assert torch.equal(old, new)
    # The ends are themselves, bit for bit.
    ends = float(risk.value(a)), float(risk.value(b))
    assert (float(one.loss[0]), float(one.loss[-1])) == ends


def test_equal_ends():
    risk, b = ring()
    for found in (segment_profile(risk, b, b), bezier_profile(risk, b, b, n_iter=3)):
        assert (found.barrier, found.argmax, found.height) == (0, 0, 0)


def test_a_training_that_climbs_says_so():
    risk, b = ring()
    with pytest.warns(ConvergenceWarning, match="mean loss.*lower lr=9"):
        bezier_profile(risk, -b, b, lr=9, n_iter=2)


@pytest.mark.parametrize("profile", [segment_profile, bezier_profile])
def test_ends_that_are_none(profile):
    risk, b = ring()
    with pytest.raises(ValueError, match=r"theta_b must have shape \(2,\). Got \(3,\)"):
        profile(risk, b, torch.zeros(3))
    with pytest.raises(ValueError, match=r"theta_a must have shape \(2,\)"):
        profile(risk, torch.zeros(4, 2), b)
    with pytest.raises(ValueError, match=r"theta_a must be finite.* 1 of 2 coord"):
        profile(risk, torch.tensor([1.0, torch.nan]), b)
    with pytest.raises(TypeError, match=r"theta_b must be a Tensor of real numbers"):
        profile(risk, b, [0.0, 1.0])
    with pytest.raises(FloatingPointError, match="loss along the curve must be finite"):
        profile(risk, b * 1e200, b)


def test_an_end_that_overflows_in_the_risks_dtype():
    *_, risk, a, _ = network(torch.float32)
    with pytest.raises(ValueError, match=r"theta_b must be finite in torch.float32"):
        segment_profile(risk, a, a.double() * 0 + 1e300)


def test_numbers_out_of_range():
    b = torch.ones(2)
    for name, value in {"n_points": 2, "n_iter": 0, "n_draws": 1.5, "lr": 0}.items():
        with pytest.raises(ValueError, match=f"{name} must be an? .*Got {value}"):
            bezier_profile(None, b, b, **{name: value})
    with pytest.raises(ValueError, match=r"n_points must be .* at least 3. Got 2"):
        segment_profile(None, b, b, n_points=2)
