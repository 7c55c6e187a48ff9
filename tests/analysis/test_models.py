"""Which models and data there may be, and that they come back as they were."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch import NeuralNet, NeuralNetBinaryClassifier, NeuralNetClassifier
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from flatmin import (
    CurvatureAnalyzer,
    NoiseCovarianceAnalyzer,
    NoisyDiffusionRegressor,
    SharpnessScorer,
)

from .. import oracles
from ._problems import (
    blobs,
    classifier,
    network,
    skorch_classifier,
    skorch_net,
    skorch_regressor,
    truth,
)

X, y = blobs()
X_new, y_new = blobs(9, seed=1)
LABELS = np.array(["ant", "bee", "cat"])
close = np.testing.assert_allclose


def trace(model, X, y, weights=None, **params):
    """Return Tr(H), which depends on θ, the data, the labels and the loss."""
    analyzer = CurvatureAnalyzer(model, dtype="float64", **params)
    return analyzer.fit(X, y, weights).trace().value


def test_a_flatmin_estimator_needs_no_fit():
    clf = classifier().fit(X, y)
    dense = truth(clf.module_, X, y)
    values = CurvatureAnalyzer(clf).eigen(k=20).eigenvalues
    close(values, np.linalg.eigvalsh(dense.hessian.numpy())[:-21:-1], atol=1e-5)
    exact = NoiseCovarianceAnalyzer(clf, dtype="float64").trace().value
    close(exact, dense.covariance.trace(), rtol=1e-12)
    close(CurvatureAnalyzer(clf).fit().trace().value, dense.hessian.trace(), rtol=1e-4)
    analyzer = CurvatureAnalyzer(clf, n_components=3)
    close(analyzer.score(X_new, y_new), analyzer.fit(X, y).score(X_new, y_new))


def test_labels_and_class_weights_are_those_of_the_training():
    clf = classifier(class_weight="balanced").fit(X[:30], LABELS[y[:30]])
    by_class = 30 / (3 * np.bincount(y[:30]))
    few = y_new > 0  # a class is missing
    dense = truth(clf.module_, X_new[few], y_new[few], weights=by_class[y_new[few]])
    close(trace(clf, X_new[few], LABELS[y_new[few]]), dense.hessian.trace())
    weights = np.linspace(1, 2, few.sum())
    dense = truth(
        clf.module_, X_new[few], y_new[few], weights=weights * by_class[y_new[few]]
    )
    close(trace(clf, X_new[few], LABELS[y_new[few]], weights), dense.hessian.trace())
    with pytest.raises(ValueError, match=r"labels that the training data did not"):
        trace(clf, X_new, y_new)


@pytest.mark.parametrize("class_weight", ["balanced", {"ant": 0, "bee": 1, "cat": 5}])
@pytest.mark.parametrize("kind", [CurvatureAnalyzer, NoiseCovarianceAnalyzer])
def test_coordinates_are_of_one_example_whatever_the_weights(kind, class_weight):
    clf = classifier(class_weight=class_weight).fit(X[:31], LABELS[y[:31]])
    analyzer = kind(clf, n_components=3, dtype="float64", random_state=0)
    analyzer.fit(X[:31], LABELS[y[:31]], np.linspace(1, 2, 31))
    rows = analyzer.transform(X_new, LABELS[y_new])
    apart = [
        analyzer.transform(X_new[i : i + 1], LABELS[y_new[i : i + 1]])
        for i in range(len(y_new))
    ]
    close(np.concatenate(apart), rows, atol=1e-12)
    gradients = truth(clf.module_, X_new, y_new).gradients
    expected = gradients.numpy() @ analyzer.eigen().eigenvectors
    if kind is NoiseCovarianceAnalyzer:
        risk = analyzer.risk_
        expected -= risk.gradient(risk.params()).numpy() @ analyzer.eigen().eigenvectors
    close(rows, expected, atol=1e-12)


def test_a_regressor_and_one_logit():
    reg = NoisyDiffusionRegressor(network(1), max_iter=5, random_state=0)
    reg.fit(X, X[:, 0])
    dense = truth(reg.module_, X, X[:, 0], oracles.squared_error)
    close(trace(reg, X, X[:, 0]), dense.hessian.trace(), rtol=1e-6)
    clf = classifier(module=network(1)).fit(X, LABELS[np.minimum(y, 1)])
    dense = truth(clf.module_, X, np.minimum(y, 1), oracles.binary_cross_entropy)
    close(trace(clf, X, LABELS[np.minimum(y, 1)]), dense.hessian.trace())


def test_its_loss_is_not_another():
    clf = classifier().fit(X, y)
    for call in (lambda a: a.trace(), lambda a: a.fit(X, y)):
        with pytest.raises(ValueError, match=r"trained with. Got loss='squared_error'"):
            call(CurvatureAnalyzer(clf, loss="squared_error"))
    assert trace(clf.module_, X, y, loss="cross_entropy") == pytest.approx(
        trace(clf, X, y)
    )


@pytest.mark.parametrize(
    ("net", "losses", "targets"),
    [
        (skorch_classifier(), oracles.cross_entropy, y),
        (skorch_regressor(), oracles.squared_error, X[:, :1]),
        (
            skorch_net(NeuralNetBinaryClassifier, network(1)),
            oracles.binary_cross_entropy,
            np.minimum(y, 1).astype(np.float32),
        ),
        (
            skorch_net(NeuralNet, criterion=nn.CrossEntropyLoss),
            oracles.cross_entropy,
            y,
        ),
    ],
    ids=["classifier", "regressor", "binary", "plain"],
)
def test_a_skorch_net_brings_its_loss(net, losses, targets):
    net.fit(X, targets)
    dense = truth(net.module_, X, targets, losses)
    close(trace(net, X, targets), dense.hessian.trace(), rtol=1e-6)


def test_nllloss_of_a_skorch_classifier_is_of_log_p_plus_eps():
    net = skorch_net(module=nn.Sequential(network(), nn.Softmax(1))).fit(X, y)
    eps = torch.finfo(torch.float32).eps

    def losses(p, y):
        return -torch.log(p + eps).gather(1, y[:, None])[:, 0]

    dense = truth(net.module_, X, y, losses)
    close(trace(net, X, y), dense.hessian.trace(), rtol=1e-9)
    second = dense.gradients.T @ dense.gradients / len(X)
    close(trace(net, X, y, matrix="ggn"), second.trace(), rtol=1e-9)
    with pytest.raises(TypeError, match="needs a likelihood"):
        trace(net, X, y, matrix="fisher")
    mean = NoiseCovarianceAnalyzer(net).fit(X, y).risk_
    close(mean.value(mean.params()), net.get_loss(net.forward(X), y).mean(), rtol=1e-5)


def test_labels_of_a_skorch_net_are_indices_also_if_some_are_missing():
    # skorch trains on y as it is; its classes_ are [0, 2] here.
    some = y != 1
    net = skorch_classifier().fit(X[some], y[some])
    dense = truth(net.module_, X[some], y[some])
    close(trace(net, X[some], y[some]), dense.hessian.trace())
    with pytest.raises(TypeError, match="encode labels"):
        trace(net, X, LABELS[y])


class OwnLoss(NeuralNetClassifier):
    def get_loss(self, y_pred, y_true, *args, **kwargs):
        return 2 * super().get_loss(y_pred, y_true, *args, **kwargs)


class OwnStep(NeuralNetClassifier):
    def train_step_single(self, batch, **fit_params):
        step = super().train_step_single(batch, **fit_params)
        penalty = sum(p.square().sum() for p in self.module_.parameters())
        penalty.backward()
        return {**step, "loss": step["loss"] + penalty}


class OwnSteps(NeuralNetClassifier):
    def train_step(self, batch, **fit_params):
        return super().train_step(batch, **fit_params)


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (skorch_net(criterion=nn.L1Loss), r"criterion L1Loss .* as loss="),
        (
            skorch_net(criterion=nn.CrossEntropyLoss(reduction="sum")),
            r"reduction='sum', which depends on the batch.* as loss=",
        ),
        (skorch_net(NeuralNet, criterion=nn.NLLLoss), r"Pass loss='cross_entropy'"),
        (
            skorch_net(OwnLoss, criterion=nn.CrossEntropyLoss),
            r"OwnLoss has a get_loss of its own.*loss=",
        ),
        (
            skorch_net(OwnStep, criterion=nn.CrossEntropyLoss),
            r"OwnStep has a train_step_single of its own.*loss=",
        ),
        (
            skorch_net(OwnSteps, criterion=nn.CrossEntropyLoss),
            r"OwnSteps has a train_step of its own.*loss=",
        ),
    ],
)
def test_what_a_skorch_net_does_not_tell_is_asked_for(net, message):
    net.initialize()
    with pytest.raises(ValueError, match=message):
        trace(net, X, y)
    dense = truth(net.module_, X, y)
    close(trace(net, X, y, loss="cross_entropy"), dense.hessian.trace())


class OwnInputs(NeuralNetClassifier):
    def infer(self, x, **fit_params):
        return super().infer(x / 255, **fit_params)


@pytest.mark.parametrize("loss", [None, "cross_entropy"])
def test_what_a_skorch_net_gives_its_module_must_be_known(loss):
    net = skorch_net(OwnInputs, criterion=nn.CrossEntropyLoss).initialize()
    with pytest.raises(ValueError, match=r"OwnInputs has an infer of its own.*module_"):
        trace(net, X, y, loss=loss)


def test_the_weights_of_a_binary_skorch_net():
    weight = torch.tensor([3.0])
    criterion = nn.BCEWithLogitsLoss(pos_weight=weight)
    net = skorch_net(NeuralNetBinaryClassifier, network(1), criterion=criterion)
    targets = np.minimum(y, 1).astype(np.float32)
    net.fit(X, targets)

    def losses(outputs, y):
        p = outputs[:, 0].sigmoid()
        return -(3 * y * p.log() + (1 - y) * (1 - p).log())

    dense = truth(net.module_, X, targets, losses)
    close(trace(net, X, targets), dense.hessian.trace(), rtol=1e-6)


@pytest.mark.parametrize("make", [classifier, skorch_classifier])
def test_inside_of_a_pipeline_a_search_and_a_frozen_estimator(make):
    pipeline = make_pipeline(StandardScaler(), make()).fit(X, y)
    scaled = pipeline[:-1].transform(X_new)
    net = pipeline[-1].module_
    expected = truth(net, scaled, y_new).hessian.trace()
    for model in (pipeline, FrozenEstimator(pipeline)):
        close(trace(model, X_new, y_new), expected, rtol=1e-6)
    close(trace(FrozenEstimator(pipeline[-1]), scaled, y_new), expected, rtol=1e-6)
    search = GridSearchCV(pipeline, {f"{pipeline.steps[1][0]}__lr": [0.1]}, cv=2)
    search.fit(X, y)
    dense = truth(search.best_estimator_[-1].module_, scaled, y_new)
    scaled = search.best_estimator_[:-1].transform(X_new)
    close(trace(search, X_new, y_new), dense.hessian.trace(), rtol=1e-5)


def test_the_training_data_of_a_pipeline_are_those_of_its_last_step():
    pipeline = make_pipeline(StandardScaler(), classifier()).fit(X, y)
    close(
        CurvatureAnalyzer(pipeline).trace().value,
        CurvatureAnalyzer(pipeline).fit(X, y).trace().value,
        rtol=1e-5,
    )


def test_a_data_frame_keeps_its_names():
    frame = pd.DataFrame(X, columns=["a", "b", "c"])
    clf = classifier().fit(frame, y)
    analyzer = CurvatureAnalyzer(clf).fit(frame, y)
    assert list(analyzer.feature_names_in_) == ["a", "b", "c"]
    with pytest.raises(ValueError, match="feature names should match"):
        analyzer.transform(frame.rename(columns={"a": "d"}), y)


@pytest.mark.parametrize(
    "data",
    [
        (X.tolist(), y.tolist()),
        (torch.as_tensor(X), torch.as_tensor(y)),
        (TensorDataset(torch.as_tensor(X), torch.as_tensor(y)), None),
        (DataLoader(list(zip(torch.as_tensor(X), y, strict=True)), 7), None),
    ],
    ids=["lists", "tensors", "data set", "loader"],
)
def test_a_module_takes_any_data(data):
    net = network()
    analyzer = CurvatureAnalyzer(net, loss="cross_entropy").fit(*data)
    dense = truth(net, X, y)
    close(analyzer.trace().value, dense.hessian.trace(), rtol=1e-5)
    # Of 20 eigenvalues five are 0.
    assert analyzer.transform(*data).shape == (len(X), 15)


class Several(nn.Module):
    """Returns its outputs and a state, as recurrent networks do."""

    def __init__(self):
        super().__init__()
        self.net = network()

    def forward(self, X):
        return self.net(X), X


def test_the_first_of_several_outputs_counts():
    model = Several()
    dense = truth(model.net, X, y)
    close(trace(model, X, y, loss="cross_entropy"), dense.hessian.trace())


def test_dropout_is_off_and_batch_norm_frozen_in_eval_mode():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.ReLU())
    net = nn.Sequential(net, nn.Linear(4, 3)).double()
    with torch.no_grad():
        net[0][1](torch.randn(8, 4).double())
    with pytest.warns(UserWarning, match="batch_norm='frozen' to say so"):
        value = trace(net, X, y, loss="cross_entropy")
    close(value, truth(net, X, y).hessian.trace())
    assert all(part.training for part in net.modules())


@pytest.mark.parametrize(
    "analyse",
    [
        lambda m: CurvatureAnalyzer(m, loss="cross_entropy").fit(X, y).eigen(3),
        lambda m: CurvatureAnalyzer(m, loss="cross_entropy").fit(X, y).density(),
        lambda m: CurvatureAnalyzer(m, loss="cross_entropy").fit(X, y).score(X, y),
        lambda m: NoiseCovarianceAnalyzer(m, loss="cross_entropy").fit(X, y).sample(),
        lambda m: (
            NoiseCovarianceAnalyzer(m, loss="cross_entropy").fit(X, y).alignment(3)
        ),
        lambda m: SharpnessScorer(loss="cross_entropy", n_draws=3)(m, X, y),
    ],
)
def test_the_model_is_untouched(analyse):
    net = network()
    nn.functional.cross_entropy(net(torch.as_tensor(X)), torch.as_tensor(y)).backward()
    net[0].register_forward_hook(lambda *args: None)
    net[2].weight.register_hook(lambda grad: 2 * grad)
    with oracles.untouched(net):
        analyse(net)


def test_an_analysis_stays_where_the_model_was():
    net = network()
    for kind in (CurvatureAnalyzer, NoiseCovarianceAnalyzer):
        analyzer = kind(net, loss="cross_entropy", random_state=0).fit(X, y)
        before = analyzer.transform(X_new, y_new), analyzer.score(X_new, y_new)
        with torch.no_grad():
            net[0].weight += 1
        close(analyzer.transform(X_new, y_new), before[0], atol=1e-6)
        close(analyzer.score(X_new, y_new), before[1], rtol=1e-4)
        moved = analyzer.fit(X, y).transform(X_new, y_new)
        assert np.abs(moved - before[0]).max() > 1e-2


def test_a_flatmin_estimator_is_untouched():
    clf = classifier().fit(X, y)
    before = clf.params_.copy()
    attributes = set(vars(clf))
    with oracles.untouched(clf.module_):
        CurvatureAnalyzer(clf).fit(X_new, y_new).eigen(2)
        SharpnessScorer(n_draws=2)(clf, X, y)
        NoiseCovarianceAnalyzer(clf, dtype="float64").alignment(2)
    assert (clf.params_ == before).all()
    assert (clf.risk_.params().numpy() == before).all()
    assert set(vars(clf)) == attributes


def test_data_that_are_not_there():
    no_data = classifier(store_data=False).fit(X, y)
    for model, why in [
        (no_data, "NoisyDiffusionClassifier no longer holds its training data"),
        (skorch_classifier().fit(X, y), "NeuralNetClassifier holds no training data"),
        (classifier().fit(X, y).net_, "NetClassifier holds no training data"),
        (network(), "Sequential holds no training data"),
    ]:
        match = rf"CurvatureAnalyzer has no data: .*{why}.*Call fit\(X, y\) first"
        with pytest.raises(NotFittedError, match=match):
            CurvatureAnalyzer(model).eigen(2)
        with pytest.raises(NotFittedError, match=match):
            CurvatureAnalyzer(model).fit()


def test_models_that_are_not_fitted():
    for model in (classifier(), make_pipeline(classifier())):
        with pytest.raises(NotFittedError, match="not fitted yet"):
            CurvatureAnalyzer(model).trace()
        with pytest.raises(NotFittedError, match="not fitted yet"):
            CurvatureAnalyzer(model).fit(X, y)
    with pytest.raises(NotFittedError, match="NeuralNetClassifier is not fitted yet"):
        CurvatureAnalyzer(skorch_classifier()).fit(X, y)


def test_models_of_another_kind():
    other = LogisticRegression().fit(X, y)
    with pytest.raises(
        TypeError, match=r"a skorch net or a torch.nn.Module.*Got Logis"
    ):
        CurvatureAnalyzer(other).fit(X, y)
    with pytest.raises(ValueError, match="Sequential has no loss of its own"):
        CurvatureAnalyzer(network()).fit(X, y)


def test_targets_are_asked_for():
    analyzer = CurvatureAnalyzer(network(), loss="cross_entropy")
    for call in (analyzer.fit, analyzer.fit(X, y).transform, analyzer.score):
        with pytest.raises(ValueError, match="requires y to be passed"):
            call(X)
    with pytest.raises(ValueError, match="y and sample_weight come with X"):
        analyzer.fit(None, y)
    with pytest.raises(ValueError, match=r"as many examples\. Got 40 and 39"):
        analyzer.fit(X, y[1:])
    with pytest.raises(ValueError, match="X has 2 features, but CurvatureAnalyzer"):
        analyzer.transform(X[:, :2], y)
