"""Steps to a loss: the first row of the table that is low enough."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from flatmin import NoisyDiffusionRegressor, compare_dynamics
from flatmin.comparison import steps_to_loss

X = np.linspace(-1, 1, 12).reshape(-1, 1)
Y = 3 * X[:, 0]
LR = 0.2


def line():
    layer = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(layer.weight)
    return layer


@pytest.fixture(scope="module", params=[1, 5])
def comparison(request):
    model = NoisyDiffusionRegressor(
        line,
        lr=LR,
        batch_size=4,
        max_iter=40,
        record_every=request.param,
        dtype="float64",
    )
    methods = {"gd": "gd", "wild": {"method": "gd", "lr": 20.0}, "sgd": "sgd"}
    return request.param, compare_dynamics(
        methods, X, Y, estimator=model, n_seeds=[3, 4], quench=5
    )


def exact(loss):
    """Return the first iterate of gradient descent, L = (1 - 2ηa)^{2t} 9a."""
    a = float((X**2).mean())
    losses = 9 * a * (1 - 2 * LR * a) ** (2 * np.arange(41))
    return int((losses <= loss).argmax())


def test_gradient_descent_in_closed_form(comparison):
    every, result = comparison
    found = steps_to_loss(result, 0.5)
    first = exact(0.5)
    for seed in (3, 4):
        row = found.loc["gd", seed]
        assert row["above"] < first <= row["steps"]
        assert row["steps"] - row["above"] == every
        assert (row["reached"], row["last"]) == (True, 40)
    assert list(found.index) == list(
        result.units[["method", "seed"]].itertuples(index=False, name=None)
    )


def test_against_the_table(comparison):
    _, result = comparison
    found = steps_to_loss(result, 0.5)
    rows = result.table.query("method == 'sgd' and seed == 4 and phase == 'noise'")
    low = rows[rows["loss"] <= 0.5]["iteration"]
    assert found.loc[("sgd", 4), "steps"] == low.min()


def test_what_is_not_reached_is_censored(comparison):
    _, result = comparison
    found = steps_to_loss(result, 1e-30)
    assert not found["reached"].any()
    assert found["steps"].isna().all()
    assert (found.loc["gd", "last"] == 40).all()
    at_once = steps_to_loss(result, 1e9)
    assert (at_once["steps"] == 0).all()
    assert at_once["above"].isna().all()


def test_bad_arguments(comparison):
    _, result = comparison
    with pytest.raises(TypeError, match=r"must be a ComparisonResult.*Got DataFrame"):
        steps_to_loss(pd.DataFrame(), 0.1)
    with pytest.raises(ValueError, match=r"loss must be a finite number. Got nan"):
        steps_to_loss(result, float("nan"))
    assert torch.is_grad_enabled()
