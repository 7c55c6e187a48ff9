"""What is fitted stays with the model of the fit, whatever becomes of that."""

import copy
import pickle

import numpy as np
import pytest
import torch
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from flatmin import CurvatureAnalyzer, NoiseCovarianceAnalyzer
from flatmin.risk import ModuleLoss

from ._problems import blobs, classifier, network, skorch_classifier, truth

X, y = blobs()
X_new, y_new = blobs(30, seed=1)
KINDS = [CurvatureAnalyzer, NoiseCovarianceAnalyzer]
close = np.testing.assert_allclose


def normalised(seed=0):
    """Return a network in eval mode whose BatchNorm has seen data."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3)
        )
    net(torch.as_tensor(X))
    return net.eval()


def half_frozen():
    net = network()
    net[0].requires_grad_(False)
    return net


@torch.no_grad()
def move(module):
    """Let a module go on, as a training does: parameters and buffers."""
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            tensor.mul_(1.5).add_(0.1)


def analyzer(kind, model, **settings):
    if isinstance(model, nn.Module):
        settings = {"loss": "cross_entropy"} | settings
    return kind(model, n_components=3, dtype="float64", random_state=0, **settings)


def twice(outputs):
    return 2 * outputs


def results(fitted, labels=y_new):
    return fitted.score(X_new, labels), fitted.transform(X_new, labels)


def check_held(fitted, change, labels=y_new):
    """Assert that a change of the model moves nothing, but for a new fit."""
    expected = results(fitted, labels)
    change()
    for held in (fitted, pickle.loads(pickle.dumps(fitted))):
        for got, value in zip(results(held, labels), expected, strict=True):
            close(got, value, rtol=1e-9, atol=1e-12)
    return expected


def test_the_numbers_are_those_of_the_module_as_it_was():
    net = normalised()
    fitted = analyzer(CurvatureAnalyzer, net).fit(X, y)
    was = copy.deepcopy(net)
    move(net)
    old, new = truth(was, X, y), truth(was, X_new, y_new)
    U = np.linalg.eigh(old.hessian.numpy())[1][:, :-4:-1]
    share = np.trace(U.T @ new.covariance.numpy() @ U) / new.covariance.trace().item()
    close(fitted.score(X_new, y_new), share, rtol=1e-5)
    rows = np.abs(new.gradients.numpy() @ U)
    close(np.abs(fitted.transform(X_new, y_new)), rows, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", [normalised, half_frozen])
def test_a_module_that_goes_on(kind, make):
    net = make()
    fitted = analyzer(kind, net).fit(X, y)
    before = check_held(fitted, lambda: move(net))
    assert np.abs(results(fitted.fit(X, y))[1] - before[1]).max() > 1e-2


@pytest.mark.parametrize("kind", KINDS)
def test_a_skorch_net_that_goes_on(kind):
    net = skorch_classifier(module=normalised()).fit(X, y)
    check_held(analyzer(kind, net).fit(X, y), lambda: net.partial_fit(X, y))
    fitted = analyzer(kind, net).fit(X, y)
    loss = nn.CrossEntropyLoss(weight=torch.tensor([9.0, 1.0, 0.1]))
    check_held(fitted, lambda: net.set_params(criterion=loss).fit(X, y))


@pytest.mark.parametrize(
    ("kind", "of_net"), [(CurvatureAnalyzer, False), (NoiseCovarianceAnalyzer, True)]
)
@pytest.mark.parametrize(
    "changed",
    [
        {"class_weight": {0: 9.0, 1: 0.1, 2: 1.0}},
        {"loss": nn.CrossEntropyLoss(label_smoothing=0.4)},
        {"l2": 1.0},
        {"output_transform": twice},
        {"module": network(seed=1)},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_an_estimator_that_is_fitted_again(kind, of_net, changed):
    clf = classifier().fit(X, y)
    fitted = analyzer(kind, clf.net_ if of_net else clf).fit(X, y)
    check_held(fitted, lambda: clf.set_params(**changed).fit(X, y))


def test_labels_stay_those_of_the_fit():
    clf = classifier().fit(X, y)
    fitted = analyzer(CurvatureAnalyzer, clf).fit(X, y)
    others = np.array([7, 1, 5])
    check_held(fitted, lambda: clf.fit(X, others[y]))
    with pytest.raises(ValueError, match=r"did not: \[5 7\]. There are \[0 1 2\]"):
        fitted.score(X_new, others[y_new])


@pytest.mark.parametrize("given", [(), (X, y)], ids=["training", "given"])
def test_statistics_of_the_training_set_stay(given):
    params = {"module": normalised(), "method": "gd", "batch_norm": "batch"}
    clf = classifier(**params).fit(X, y)
    fitted = analyzer(CurvatureAnalyzer, clf).fit(*given)
    score, _ = check_held(fitted, lambda: clf.set_params(lr=1.0).fit(X, y))
    if not given:
        # They are in the module that predicts, at the time of the fit.
        net = classifier(**params).fit(X, y).module_
        new = truth(net, X_new, y_new).covariance.numpy()
        U = fitted.eigen().eigenvectors
        close(score, np.trace(U.T @ new @ U) / np.trace(new), rtol=1e-4)


def scaled_twice():
    union = FeatureUnion([("one", StandardScaler()), ("two", StandardScaler())])
    return make_pipeline(union, classifier(module=None))


@pytest.mark.parametrize(
    "make",
    [
        lambda: make_pipeline(StandardScaler(), classifier()),
        lambda: make_pipeline(StandardScaler(), skorch_classifier()),
        lambda: make_pipeline(
            StandardScaler(), make_pipeline(StandardScaler(), classifier())
        ),
        scaled_twice,
        lambda: GridSearchCV(
            make_pipeline(StandardScaler(), classifier()),
            {"noisydiffusionclassifier__lr": [0.1]},
            cv=2,
        ),
    ],
    ids=["flatmin", "skorch", "nested", "union", "search"],
)
def test_a_pipeline_that_is_fitted_again(make):
    pipeline = make().fit(X, y)
    fitted = analyzer(CurvatureAnalyzer, pipeline).fit(X, y)
    check_held(fitted, lambda: pipeline.fit(2 * X + 1, y))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "changed",
    [
        {"estimator": network(seed=5)},
        {"estimator": None},
        {"loss": nn.CrossEntropyLoss(label_smoothing=0.4)},
        {"output_transform": twice},
        {"l2": 1.0},
        {"dtype": "float32"},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_parameters_that_are_set_count_from_the_next_fit(kind, changed):
    fitted = analyzer(kind, network()).fit(X, y)
    check_held(fitted, lambda: fitted.set_params(**changed))


def squared(module, X, y):
    return module(X).square().mean(1)


def test_a_loss_that_is_given_the_module():
    net = normalised()
    fitted = analyzer(CurvatureAnalyzer, net, loss=ModuleLoss(squared)).fit(X, y)
    check_held(fitted, lambda: move(net))
