"""BatchNorm in analyzers, the scorer and the monitor: frozen, of the batch, refused."""

import copy
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd.functional import hessian
from torch.nn import functional as F

from flatmin import (
    CurvatureAnalyzer,
    FlatnessMonitor,
    NoiseCovarianceAnalyzer,
    SharpnessScorer,
)

from .. import oracles

RNG = np.random.default_rng(0)
X, y = RNG.normal(size=(12, 3)), np.arange(12) % 3
NAMED = "pass batch_norm='frozen' to say so, or batch_norm='batch'"


@pytest.fixture
def net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3)
        return nn.Sequential(*layers).double().train()


def loss_of(net, *, train, X=X):
    """Return θ, and L as a function of it, by PyTorch alone."""
    module = copy.deepcopy(net).train(train)
    call = oracles.function_of(module)

    def loss(theta):
        logits = call(theta, torch.from_numpy(X))
        return F.cross_entropy(logits, torch.from_numpy(y))

    return oracles.flat_parameters(module), loss


def curvature(net, **settings):
    settings = {"loss": "cross_entropy", "tol": 1e-10, "random_state": 0} | settings
    return CurvatureAnalyzer(net, **settings)


def top(H, k=3):
    return torch.linalg.eigvalsh(H).flip(0)[:k].numpy()


@pytest.mark.parametrize("batch_norm", [None, "frozen", "batch"])
def test_eigenvalues(net, batch_norm):
    analyzer = curvature(net, batch_norm=batch_norm)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pairs = analyzer.fit(X, y).eigen(3)
    said = [str(w.message) for w in caught if "BatchNorm" in str(w.message)]
    assert len(said) == (batch_norm is None)
    assert all(NAMED in text for text in said)
    theta, loss = loss_of(net, train=batch_norm == "batch")
    np.testing.assert_allclose(pairs.eigenvalues, top(hessian(loss, theta)), 1e-7)


def test_it_warns_once(net):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        analyzer = curvature(net).fit(X, y)
        analyzer.transform(X, y), analyzer.score(X, y), analyzer.eigen(2)
    assert len(caught) == 1
    net.eval()
    curvature(net).fit(X, y)  # where a warning would be an error
    SharpnessScorer(loss="cross_entropy")(net, X, y)


def test_error_is_that_of_the_risk(net):
    with pytest.raises(ValueError, match=r"'1' is a BatchNorm in train mode"):
        curvature(net, batch_norm="error").fit(X, y)
    curvature(net.eval(), batch_norm="error").fit(X, y)


@pytest.mark.parametrize("matrix", ["ggn", "fisher"])
def test_the_trace_of_g_with_the_statistics_of_the_batch(net, matrix):
    analyzer = curvature(net, batch_norm="batch", matrix=matrix).fit(X, y)
    dense = analyzer.matvec(np.eye(39))
    trace = analyzer.trace()
    np.testing.assert_allclose(float(trace), np.trace(dense), rtol=1e-9)
    assert trace.n_matvecs == 39  # by products
    assert analyzer.cost("trace").gradients == 1 + 2 * 39


@pytest.mark.parametrize(
    "call",
    [
        lambda a: a.transform(X, y),
        lambda a: a.score(X, y),
        lambda a: a.cost("transform"),
        lambda a: a.cost("score"),
        lambda a: a.set_params(matrix="empirical_fisher").fit(X, y),
    ],
)
def test_what_needs_examples_is_refused(net, call):
    analyzer = curvature(net, batch_norm="batch").fit(X, y)
    assert np.isfinite(analyzer.density().nodes).all()
    with pytest.raises(ValueError, match="needs the loss of each example by itself"):
        call(analyzer)


def test_the_covariance_of_gradients_is_refused(net):
    settings = {"loss": "cross_entropy", "batch_norm": "batch"}
    with pytest.raises(ValueError, match=r"^The covariance .* batch_norm='frozen'"):
        NoiseCovarianceAnalyzer(net, **settings).fit(X, y)


@pytest.mark.parametrize("measure", ["trace", "max_eigenvalue"])
def test_sharpness(net, measure):
    scorer = SharpnessScorer(loss="cross_entropy", measure=measure, batch_norm="batch")
    theta, loss = loss_of(net, train=True)
    H = hessian(loss, theta)
    expected = {"trace": 0.01**2 / 2 * float(H.trace()), "max_eigenvalue": top(H)[0]}
    np.testing.assert_allclose(-scorer(net, X, y), expected[measure], rtol=1e-3)
    with pytest.warns(UserWarning, match=NAMED):
        SharpnessScorer(loss="cross_entropy", measure=measure)(net, X, y)


def test_a_measure_of_examples_is_refused(net):
    scorer = SharpnessScorer(
        loss="cross_entropy",
        measure=lambda risk, theta: risk.squared_norms(theta).mean(),
        batch_norm="batch",
    )
    with pytest.raises(ValueError, match=r"^squared_norms needs the loss"):
        scorer(net, X, y)


def test_a_monitor_has_no_batch():
    with pytest.raises(ValueError, match="a part of the examples, which has other"):
        FlatnessMonitor(X, y, loss="cross_entropy", batch_norm="batch")
