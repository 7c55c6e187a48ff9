"""A comparison of methods that train with the statistics of the full batch."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flatmin import NoisyDiffusionClassifier, compare_dynamics
from flatmin.measures import max_eigenvalue

RNG = np.random.default_rng(0)
X, y = RNG.normal(size=(20, 4)), np.arange(20) % 2
X_test, y_test = RNG.normal(size=(8, 4)), np.arange(8) % 2


def net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 2)
        return nn.Sequential(*layers).double()


def compare(methods):
    estimator = NoisyDiffusionClassifier(
        net(), lr=0.3, max_iter=6, record_every=3, batch_norm="batch", dtype="float64"
    )
    return compare_dynamics(
        methods,
        X,
        y,
        X_test=X_test,
        y_test=y_test,
        estimator=estimator,
        n_seeds=1,
        quench=2,
        end_metrics={"top": max_eigenvalue},
    )


def test_its_units_train_so():
    result = compare(["gd", "gld_const"])
    assert set(result.units["status"]) == {"done"}
    table = result.table[result.table["method"] == "gd"]
    end = table[table["phase"] == "quench"].iloc[-1]
    start = table[table["phase"] == "noise"].iloc[0]
    # The same by hand, from the start of the seed to the end of the quench.
    module = net().train()
    module[1].momentum = 1.0
    optimizer, losses = torch.optim.SGD(module.parameters(), lr=0.3), []
    for i in range(9):
        loss = F.cross_entropy(module(torch.from_numpy(X)), torch.from_numpy(y))
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        if i < 8:
            optimizer.step()
    assert start["loss"] == pytest.approx(losses[0], rel=1e-9)
    assert end["loss"] == pytest.approx(losses[-1], rel=1e-9)
    module[1].running_var *= 19 / 20  # PyTorch's has one less as divisor
    logits = module.eval()(torch.from_numpy(X_test))
    test_loss = F.cross_entropy(logits, torch.from_numpy(y_test)).item()
    assert end["test_loss"] == pytest.approx(test_loss, rel=1e-9)
    assert end["top"] > 0


def test_a_method_that_needs_examples_says_so():
    units = compare(["gd", "sgd"]).units.set_index("method")
    assert units["status"].to_dict() == {"gd": "done", "sgd": "failed"}
    assert units["message"]["sgd"].startswith("The law sgd needs the loss of each")
