"""``l2=`` and ``positions=`` of estimators, analyzers and the scorer."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flatmin import (
    CurvatureAnalyzer,
    NoiseCovarianceAnalyzer,
    NoisyDiffusionClassifier,
    NoisyDiffusionRegressor,
    SharpnessScorer,
    compare_dynamics,
)
from flatmin.risk import EmpiricalRisk

N, D, L2 = 12, 3, 0.5
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(N, D)), RNG.normal(size=N)
RIDGE = np.linalg.solve(2 * X.T @ X / N + L2 * np.eye(D), 2 * X.T @ Y / N)


class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(D, 1, bias=False)

    def forward(self, x):
        return self.layer(x)


def regressor(**settings):
    defaults = {"method": "gd", "lr": 0.2, "max_iter": 300, "l2": L2}
    shared = {"dtype": "float64", "random_state": 0}
    return NoisyDiffusionRegressor(Linear, **{**defaults, **shared, **settings})


@pytest.fixture(scope="module")
def fitted():
    return regressor().fit(X, Y, X_val=X[:5], y_val=Y[:5])


def loss_at(theta, X, Y):
    return np.mean((X @ theta - Y) ** 2) + L2 / 2 * theta @ theta


def test_it_ends_at_the_ridge(fitted):
    np.testing.assert_allclose(fitted.params_, RIDGE, atol=1e-9)
    last = fitted.history_.iloc[-1]
    assert last["loss"] == pytest.approx(loss_at(RIDGE, X, Y))
    assert last["valid_loss"] == pytest.approx(loss_at(RIDGE, X[:5], Y[:5]))
    assert last["gradient_norm"] == pytest.approx(0, abs=1e-9)
    assert fitted.risk_.l2 == fitted.make_risk(X[:5], Y[:5]).l2 == L2
    assert fitted.net_.make_risk(X[:5], Y[:5]).l2 == L2


def test_the_noise_of_sgd_is_about_it():
    reg = regressor(method="sgd", batch_size=N, max_iter=1).fit(X, Y)
    start = regressor(max_iter=0).fit(X, Y).params_
    rng_free = regressor(method="gd", max_iter=1).fit(X, Y).params_
    assert not np.allclose(reg.params_, rng_free)  # with replacement
    gradient = 2 * X.T @ (X @ start - Y) / N + L2 * start
    np.testing.assert_allclose(rng_free, start - 0.2 * gradient)


def test_analyzers_take_the_estimators_own(fitted):
    H = 2 * X.T @ X / N + L2 * np.eye(D)
    rows = 2 * (X @ RIDGE - Y)[:, None] * X
    centred = rows - rows.mean(0)
    for analyzer in (CurvatureAnalyzer(fitted), CurvatureAnalyzer(fitted).fit(X, Y)):
        assert analyzer.trace().value == pytest.approx(np.trace(H))
        np.testing.assert_allclose(analyzer.matvec(np.eye(D)), H, atol=1e-12)
    for matrix, right in (("ggn", H), ("fisher", H - L2 * np.eye(D))):
        analyzer = CurvatureAnalyzer(fitted, matrix=matrix).fit(X, Y)
        assert analyzer.trace().value == pytest.approx(np.trace(right))
        np.testing.assert_allclose(analyzer.diagonal().value, np.diag(right))
    noise = NoiseCovarianceAnalyzer(fitted, n_components=2, random_state=0).fit(X, Y)
    assert noise.trace().value == pytest.approx((centred**2).sum() / N)
    coordinates = noise.transform(X, Y)
    np.testing.assert_allclose(coordinates.mean(0), 0, atol=1e-12)
    basis = noise.eigen(2).eigenvectors
    np.testing.assert_allclose(coordinates, centred @ basis, atol=1e-9)
    scorer = SharpnessScorer(measure="trace", sigma=0.1)
    assert scorer(fitted, X, Y) == pytest.approx(-0.005 * np.trace(H))


def test_analyzers_of_a_module_are_told(fitted):
    module = fitted.module_
    H = 2 * X.T @ X / N
    for l2, right in ((None, H), (L2, H + L2 * np.eye(D))):
        settings = {"loss": "squared_error", "l2": l2}
        analyzer = CurvatureAnalyzer(module, **settings).fit(X, Y)
        assert analyzer.trace().value == pytest.approx(np.trace(right))
        scorer = SharpnessScorer(measure="trace", sigma=0.1, **settings)
        assert scorer(module, X, Y) == pytest.approx(-0.005 * np.trace(right))


@pytest.mark.parametrize(("name", "value"), [("l2", 0.0), ("positions", "all")])
def test_an_estimator_has_its_own(fitted, name, value):
    for analyzer in (CurvatureAnalyzer, NoiseCovarianceAnalyzer):
        with pytest.raises(ValueError, match=f"with its own {name}"):
            analyzer(fitted, **{name: value}).fit(X, Y)
        with pytest.raises(ValueError, match=f"with its own {name}"):
            analyzer(fitted, **{name: value}).fit()
    with pytest.raises(ValueError, match=f"with its own {name}"):
        SharpnessScorer(**{name: value})(fitted, X, Y)


@pytest.mark.parametrize(("name", "value"), [("l2", -1.0), ("positions", "tokens")])
def test_refused(fitted, name, value):
    with pytest.raises(ValueError, match=f"The {name!r} parameter"):
        regressor(**{name: value}).fit(X, Y)
    with pytest.raises(ValueError, match=f"The {name!r} parameter"):
        CurvatureAnalyzer(fitted.module_, loss="squared_error", **{name: value}).fit(
            X, Y
        )


def test_positions_decide_what_examples_count():
    weight = torch.tensor([1.0, 5.0], dtype=torch.float64)
    labels = (Y > 0).astype(int)
    settings = {"loss": nn.CrossEntropyLoss(weight), "dtype": "float64", "max_iter": 0}
    found, module = {}, nn.Linear(D, 2)
    for positions in ("all", "example"):
        clf = NoisyDiffusionClassifier(
            module, positions=positions, random_state=0, **settings
        ).fit(X, labels)
        found[positions] = clf.history_["loss"].iloc[-1]
        clf.set_params(positions="all")  # counts from the next fit on
        outputs = clf.module_(torch.as_tensor(X)).detach()
        assert clf.make_risk(X, labels).value(
            torch.as_tensor(clf.params_)
        ) == pytest.approx(found[positions])
    targets = torch.as_tensor(labels)
    right = F.cross_entropy(outputs, targets, weight=weight)
    assert found["all"] == pytest.approx(float(right))
    assert found["example"] == pytest.approx(float(F.cross_entropy(outputs, targets)))


def test_a_warmup_in_memory_knows_the_penalty(tmp_path):
    settings = {"memory": str(tmp_path), "warmup": {"max_iter": 5}, "max_iter": 0}
    with_one, without = (
        regressor(l2=l2, **settings).fit(X, Y).params_ for l2 in (L2, 0.0)
    )
    assert not np.allclose(with_one, without)


def test_comparisons_take_it():
    estimator = regressor(max_iter=300)
    table = compare_dynamics(["gd"], X, Y, estimator=estimator, n_seeds=1).table
    assert table["loss"].iloc[-1] == pytest.approx(loss_at(RIDGE, X, Y))


def test_a_sequence_in_an_analyzer():
    tokens = torch.as_tensor(RNG.integers(0, 4, (N, 5)))
    labels = tokens.where(torch.arange(5) < 1 + torch.arange(N)[:, None] % 5, -100)
    module = nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 4)).double()
    for positions in ("all", "example"):
        settings = {"loss": "next_token", "positions": positions}
        analyzer = CurvatureAnalyzer(module, **settings).fit(tokens, labels)
        risk = EmpiricalRisk(module, "next_token", tokens, labels, positions=positions)
        right = risk.linearize(risk.params())
        v = np.ones(risk.n_params)
        np.testing.assert_allclose(analyzer.matvec(v), right.hvp(torch.as_tensor(v)))
