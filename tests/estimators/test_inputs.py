"""What X and y may be."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from flatmin.modules import MLP

from ._problems import Images, Pair, Tokens, blobs, classifier, plane, regressor

X, y = blobs()


@pytest.mark.parametrize(
    "labels",
    [
        np.array([5, 7]),
        np.array([-1.0, 2.0]),
        np.array(["no", "yes"]),
        np.array(["no", "yes"], dtype=object),
        np.array([False, True]),
    ],
    ids=["integers", "floats", "strings", "objects", "booleans"],
)
@pytest.mark.parametrize("loss", ["auto", "binary_cross_entropy"])
def test_labels_of_any_kind(labels, loss):
    X, codes = blobs(n_classes=2)
    clf = classifier(loss=loss).fit(X, labels[codes])
    np.testing.assert_array_equal(clf.classes_, labels)
    assert clf.predict(X).dtype == labels.dtype
    assert clf.score(X, labels[codes]) > 0.7
    np.testing.assert_allclose(clf.predict_proba(X).sum(1), 1, rtol=1e-6)
    assert clf.decision_function(X).shape == (len(X),)
    second = clf.predict(X) == labels[1]
    np.testing.assert_array_equal(second, clf.decision_function(X) > 0)
    np.testing.assert_array_equal(second, clf.predict_proba(X)[:, 1] > 0.5)


def test_labels_do_not_change_the_run():
    strings = classifier().fit(X, np.array(["a", "b", "c"])[y])
    np.testing.assert_array_equal(strings.params_, classifier().fit(X, y).params_)


def test_probabilities_are_the_softmax_of_the_decision_function():
    clf = classifier().fit(X, y)
    scores = clf.decision_function(X)
    assert scores.shape == (len(X), 3)
    expected = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    np.testing.assert_allclose(clf.predict_proba(X), expected, rtol=1e-5)
    np.testing.assert_array_equal(clf.predict(X), scores.argmax(1))


@pytest.mark.parametrize("two_logits", [True, False])
def test_one_logit_or_two(two_logits):
    X, y = blobs(n_classes=2)
    module = MLP(4, 1 + two_logits, hidden_layer_sizes=8)
    clf = classifier(module=module).fit(X, y)
    assert clf.score(X, y) > 0.7
    # The skorch net sees the same probabilities, and encoded labels.
    inputs = X.astype(np.float32)
    np.testing.assert_allclose(
        clf.net_.predict_proba(inputs), clf.predict_proba(X), rtol=1e-5
    )
    np.testing.assert_array_equal(clf.net_.predict(inputs), clf.predict(X))


def test_a_module_may_have_outputs_for_other_classes():
    clf = classifier(module=nn.Linear(4, 10)).fit(X, y)
    assert clf.predict_proba(X).shape == (len(X), 3)
    np.testing.assert_allclose(
        clf.net_.predict_proba(X.astype(np.float32)), clf.predict_proba(X), rtol=1e-5
    )


def test_the_first_of_several_outputs_counts():
    clf = classifier(module=Pair).fit(X, y)
    assert clf.score(X, y) > 0.7


def test_images():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(len(X), 1, 5, 5)) + y[:, None, None, None]
    clf = classifier(module=Images, lr=0.3, max_iter=100).fit(images, y)
    assert clf.n_features_in_ == 1
    assert clf.score(images, y) > 0.7
    # The default network takes them as rows.
    assert classifier().fit(images, y).module_.n_features == 25


def test_tokens_stay_whole_numbers():
    rng = np.random.default_rng(0)
    y = np.arange(40) % 2
    tokens = rng.integers(0, 5, size=(40, 6)) + 5 * y[:, None]
    clf = classifier(module=Tokens, lr=0.5).fit(tokens, y, X_val=tokens, y_val=y)
    assert clf.score(tokens, y) == 1
    for kind in (np.int32, np.int64):
        np.testing.assert_array_equal(
            clf.predict(tokens.astype(kind)), clf.predict(tokens)
        )


@pytest.mark.parametrize("kind", [np.uint8, np.int64, bool])
def test_whole_numbers_are_numbers_to_other_modules(kind):
    whole = (X > 1).astype(kind)
    clf = classifier().fit(whole, y)
    again = classifier().fit(whole.astype(np.float64), y)
    np.testing.assert_array_equal(clf.params_, again.params_)


@pytest.mark.parametrize("of_X", [np.float32, np.float64])
@pytest.mark.parametrize("of_module", ["float32", "float64"])
def test_any_float_goes_into_any_module(of_X, of_module):
    clf = classifier(dtype=of_module).fit(X.astype(of_X), y)
    assert clf.params_.dtype == of_module
    assert clf.decision_function(X.astype(of_X)).dtype == of_module


def same_run(data, targets):
    clf = classifier().fit(data, targets)
    np.testing.assert_array_equal(clf.params_, classifier().fit(X, y).params_)
    return clf


def test_frames_have_feature_names():
    frame = pd.DataFrame(X, columns=list("abcd"))
    clf = same_run(frame, pd.Series(y, index=frame.index[::-1]))
    assert list(clf.feature_names_in_) == list("abcd")
    clf.predict(frame)
    with pytest.raises(ValueError, match="feature names should match"):
        clf.predict(frame[list("dcba")])
    with pytest.warns(UserWarning, match="does not have valid feature names"):
        clf.predict(X)


def test_tensors():
    clf = same_run(torch.as_tensor(X), torch.as_tensor(y))
    np.testing.assert_array_equal(clf.predict(torch.as_tensor(X)), clf.predict(X))


def test_lists():
    same_run(X.tolist(), y.tolist())


@pytest.mark.parametrize("order", ["C", "F"])
def test_read_only_arrays_of_any_order(order):
    data, targets, weights = X.copy(order), y.copy(), np.ones(len(y))
    for array in (data, targets, weights):
        array.setflags(write=False)
    clf = classifier().fit(data, targets, weights, X_val=data, y_val=targets)
    np.testing.assert_array_equal(clf.params_, classifier().fit(X, y).params_)
    clf.predict(data)


def test_the_data_are_left_alone():
    data, targets, weights = X.copy(), y.copy(), np.linspace(1, 2, len(y))
    kept = weights.copy()
    clf = classifier(dtype="float64").fit(data, targets, weights)
    clf.predict_proba(data)
    np.testing.assert_array_equal(data, X)
    np.testing.assert_array_equal(targets, y)
    np.testing.assert_array_equal(weights, kept)


@pytest.mark.parametrize("n_targets", [None, 1, 3])
def test_a_regressor_predicts_in_the_shape_of_y(n_targets):
    X, y = plane(n_targets=n_targets)
    reg = regressor(max_iter=200, lr=0.05).fit(X, y, X_val=X[:7], y_val=y[:7])
    assert reg.predict(X).shape == y.shape
    assert reg.score(X, y) > 0.8
    assert reg.history_["train_score"].iloc[-1] == pytest.approx(reg.score(X, y))
    last = reg.history_["valid_score"].iloc[-1]
    assert last == pytest.approx(reg.score(X[:7], y[:7]))


def test_one_column_and_one_dimension_are_the_same_run():
    X, y = plane()
    column = regressor().fit(X, y[:, None])
    np.testing.assert_array_equal(column.params_, regressor().fit(X, y).params_)


def test_a_module_without_an_output_axis():
    X, y = plane()
    module = nn.Sequential(nn.Linear(4, 1), nn.Flatten(0))
    reg = regressor(module=module, max_iter=200, lr=0.05).fit(X, y)
    assert reg.predict(X).shape == y.shape
    assert reg.score(X, y) > 0.9


@pytest.mark.parametrize(("scale", "shift"), [(1e-3, 0), (100, 300), (1000, 0)])
def test_the_default_lr_survives_unscaled_targets(scale, shift):
    X, y = plane(n=100)
    y = y / y.std() * scale + shift
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = MLP(4, 1)
    reg = regressor(module=module, lr=0.001, max_iter=100, method="gd").fit(X, y)
    losses = reg.history_.set_index("iteration")["loss"]
    # Gradient descent by hand, in float64. Later the largest scale amplifies rounding.
    module, inputs = module.double(), torch.from_numpy(X)
    expected = []
    for _ in range(21):
        module.zero_grad()
        loss = (module(inputs)[:, 0] - torch.from_numpy(y)).square().mean()
        loss.backward()
        for parameter in module.parameters():
            parameter.data -= 0.001 * parameter.grad
        expected.append(loss.item())
    for iteration in (0, 10, 20):
        assert losses[iteration] == pytest.approx(expected[iteration], rel=1e-3)
    assert losses[100] < 0.4 * losses[0]


def test_validation_data_are_scored_and_not_trained_on():
    other, targets = blobs(seed=1)
    clf = classifier().fit(X, y, X_val=other, y_val=targets)
    np.testing.assert_array_equal(clf.params_, classifier().fit(X, y).params_)
    last = clf.history_.iloc[-1]
    assert last["valid_score"] == clf.score(other, targets)
    proba = clf.predict_proba(other)[np.arange(len(targets)), targets]
    assert last["valid_loss"] == pytest.approx(-np.log(proba).mean(), rel=1e-5)


def test_the_users_module_is_copied():
    module = MLP(4, 3, hidden_layer_sizes=8).train()
    before = nn.utils.parameters_to_vector(module.parameters()).clone()
    clf = classifier(module=module).fit(X, y)
    assert module.training
    assert all(p.grad is None for p in module.parameters())
    assert torch.equal(nn.utils.parameters_to_vector(module.parameters()), before)
    assert clf.module_ is not module
    # It starts where the instance stands: a fine-tuning.
    start = classifier(module=module, max_iter=0).fit(X, y)
    np.testing.assert_array_equal(start.params_, before.detach())


def test_frozen_parameters_stay():
    module = MLP(4, 3, hidden_layer_sizes=8)
    module.layers[0].requires_grad_(requires_grad=False)
    clf = classifier(module=module).fit(X, y)
    assert len(clf.params_) == sum(p.numel() for p in module.layers[2].parameters())
    assert torch.equal(clf.module_.layers[0].weight, module.layers[0].weight)
    assert not torch.equal(clf.module_.layers[2].weight, module.layers[2].weight)


def test_a_factory_may_return_anything_that_is_a_module():
    clf = classifier(
        module=lambda width: nn.Sequential(nn.Linear(4, width), nn.Linear(width, 3)),
        module_params={"width": 5},
    ).fit(X, y)
    assert clf.module_[0].out_features == 5


@pytest.mark.parametrize("dtype", [">f8", ">f4", ">i2"])
def test_another_byte_order_is_the_same_data(dtype):
    swapped = (10 * X).astype(dtype)
    native = swapped.astype(swapped.dtype.newbyteorder("="))
    one, other = classifier().fit(swapped, y), classifier().fit(native, y)
    np.testing.assert_array_equal(one.params_, other.params_)
    np.testing.assert_array_equal(
        one.predict_proba(swapped), other.predict_proba(native)
    )
