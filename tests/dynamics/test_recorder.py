"""What a row holds."""

import math

import pytest
import torch
from torch import nn

from flatmin.dynamics import Recorder
from flatmin.noise import make_noise_law
from flatmin.risk import EmpiricalRisk

from ._problems import risk

LAW = make_noise_law("gld_const", sigma=0.5)


def record(recorder, theta=None, **options):
    theta = recorder.risk.params() if theta is None else theta
    state = LAW.refresh(recorder.risk, theta, torch.Generator())
    return recorder.record(3, "noise", theta, law=LAW, state=state, **options)


def score(outputs):
    return float(outputs.sum())


def test_a_row_is_measured_at_theta():
    training = risk()
    theta = training.params()
    row = record(Recorder(training, score, metrics={"two": lambda risk, theta: 2}))
    loss, gradient = training.value_and_gradient(theta)
    assert row == {
        "iteration": 3,
        "phase": "noise",
        "loss": float(loss),
        "train_score": score(training.outputs(theta)),
        "gradient_norm": pytest.approx(float(gradient.norm())),
        "noise_norm": pytest.approx(0.5 * math.sqrt(26)),
        "two": 2.0,
    }


@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e25])
def test_a_gradient_norm_has_no_square_of_single_precision(scale):
    net = nn.Linear(2, 1, bias=False)
    X, y = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.5]])
    net.weight.data.zero_()

    def loss(outputs, targets):
        return scale * (outputs - targets).square().mean(1)

    row = record(Recorder(EmpiricalRisk(net, loss, X, y), score))
    assert row["gradient_norm"] == pytest.approx(5 * scale, rel=1e-6)  # 2 · 0.5 · 5


def test_validation_data_add_two_columns():
    training, validation = risk(), risk(scale=2.0)
    row = record(
        Recorder(
            training, score, validation_risk=validation, validation_score=lambda o: 0.5
        )
    )
    assert row["valid_loss"] == float(validation.value(training.params()))
    assert row["valid_score"] == 0.5


def test_metrics_get_a_copy():
    training = risk()
    theta = training.params()
    before = theta.clone()
    record(
        Recorder(training, score, metrics={"a": lambda r, t: t.zero_().sum()}), theta
    )
    assert torch.equal(theta, before)


def test_nothing_is_measured_where_the_loss_is_not_finite():
    training = risk()
    called = []
    recorder = Recorder(training, score, metrics={"a": lambda r, t: called.append(t)})
    row = record(recorder, torch.full((26,), 1e300, dtype=torch.float64))
    assert row == {"iteration": 3, "phase": "noise", "loss": math.inf}
    assert called == []


@pytest.mark.parametrize(
    ("metrics", "error", "match"),
    [
        ({"loss": score}, ValueError, "does not use yet. Got 'loss'"),
        ({"epoch": score}, ValueError, "does not use yet. Got 'epoch'"),
        ({"a": "b"}, TypeError, r"metrics\['a'\] must be a function .* Got 'b'"),
    ],
)
def test_metrics_that_cannot_be(metrics, error, match):
    with pytest.raises(error, match=match):
        Recorder(risk(), score, metrics=metrics)


def test_metrics_return_numbers():
    recorder = Recorder(risk(), score, metrics={"a": lambda risk, theta: None})
    with pytest.raises(TypeError, match=r"metrics\['a'\] must return .* Got None"):
        record(recorder)


def undefined(kind):
    raise kind("it is 0/0 here")


@pytest.mark.parametrize(
    "kind", [ValueError, FloatingPointError, torch.linalg.LinAlgError]
)
def test_a_metric_that_is_not_defined_in_a_later_row_is_nan(kind):
    calls = iter([lambda: 1, lambda: undefined(kind), lambda: undefined(kind)])
    recorder = Recorder(risk(), score, metrics={"a": lambda r, t: next(calls)()})
    assert record(recorder)["a"] == 1
    with pytest.warns(UserWarning, match=r"metrics\['a'\] is NaN .* it is 0/0 here"):
        assert math.isnan(record(recorder, is_first=False)["a"])
    assert math.isnan(record(recorder, is_first=False)["a"])  # and is not told again


def test_what_a_metric_raises_in_the_first_row_is_raised():
    metrics = {"a": lambda risk, theta: undefined(ValueError)}
    with pytest.raises(ValueError, match="0/0"):
        record(Recorder(risk(), score, metrics=metrics))


def test_what_is_wrong_with_a_metric_is_raised_in_any_row():
    calls = iter([1, "x"])
    recorder = Recorder(risk(), score, metrics={"a": lambda r, t: next(calls)})
    record(recorder)
    with pytest.raises(TypeError, match="must return a number"):
        record(recorder)
