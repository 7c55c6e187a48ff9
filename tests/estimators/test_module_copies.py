"""What fit, copies and pickles do with modules that need care to be copied."""

import copy
import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from torch import nn
from torch.nn.utils import prune

from flatmin import CurvatureAnalyzer, EmpiricalRisk, NoisyDiffusionClassifier

rng = np.random.default_rng(0)
X = rng.normal(size=(12, 4)).astype(np.float32)
y = np.arange(12) % 3


def pruned():
    module = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    prune.l1_unstructured(module[0], "weight", 0.4)
    module(torch.as_tensor(X))
    return module


class Embeds(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(9, 3))

    def forward(self, x):
        return self.table[x].sum(1)


class OtherTo(nn.Linear):
    def to(self, where):
        assert isinstance(where, str)
        return self


def instance_norm():
    norm = nn.InstanceNorm1d(2, track_running_stats=True)
    return nn.Sequential(nn.Unflatten(1, (2, 2)), norm, nn.Flatten(), nn.Linear(4, 3))


def fitted(module, X=X, **options):
    options = {"method": "gd", "max_iter": 3, "dtype": "float64", **options}
    model = NoisyDiffusionClassifier(module, lr=0.1, random_state=0, **options)
    return model.fit(X, y)


@pytest.mark.parametrize(
    "again", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))]
)
def test_a_pruned_network_is_trained_and_copied(again):
    module = pruned()
    model = fitted(module)
    twin = again(model)
    np.testing.assert_array_equal(twin.predict_proba(X), model.predict_proba(X))
    again_fitted = clone(twin).fit(X, y)
    np.testing.assert_array_equal(again_fitted.params_, model.params_)
    # The mask is at work, in prediction too.
    weight = torch.as_tensor(model.module_[0].weight)
    assert torch.equal(weight == 0, module[0].weight == 0)
    assert model.risk_.to(dtype="float32").value(torch.as_tensor(model.params_).float())


def test_a_module_with_another_to():
    fitted(OtherTo(4, 3)).predict(X)


def test_a_compiled_network_is_trained_under_its_own_names():
    compiled = nn.DataParallel(nn.Linear(4, 3))
    model = fitted(compiled)
    assert model.risk_.layout.names == ("weight", "bias")
    np.testing.assert_array_equal(
        model.params_, fitted(copy.deepcopy(compiled.module)).params_
    )


def test_indices_of_a_table_of_ones_own():
    indices = np.arange(48).reshape(12, 4) % 9
    model = fitted(Embeds(), indices)
    table = torch.as_tensor(model.params_).view(9, 3)
    scores = table[torch.as_tensor(indices)].sum(1).softmax(1)
    np.testing.assert_allclose(model.predict_proba(indices), scores)


@pytest.mark.parametrize("train", [True, False])
def test_instance_norm_is_as_it_was_handed_over(train):
    module = instance_norm().double().train(train)
    module[1].running_mean.fill_(0.5)
    model = fitted(module)
    inputs = torch.as_tensor(X, dtype=torch.float64)
    twin = copy.deepcopy(module)
    nn.utils.vector_to_parameters(torch.as_tensor(model.params_), twin.parameters())
    with torch.no_grad():
        scores = twin(inputs)
        loss = nn.functional.cross_entropy(scores, torch.as_tensor(y))
    np.testing.assert_allclose(model.predict_proba(X), scores.softmax(1))
    torch.testing.assert_close(model.risk_.value(model.risk_.params()), loss)
    np.testing.assert_allclose(model.history_["loss"].iloc[-1], loss)
    # An analyzer is given the module as it is.
    risk = EmpiricalRisk(module, "cross_entropy", inputs, torch.as_tensor(y))
    found = CurvatureAnalyzer(module, loss="cross_entropy", random_state=0)
    eigen = found.fit(inputs, y).eigen(k=1)
    H = torch.stack(
        [risk.linearize(risk.params()).hvp(v) for v in torch.eye(15).double()]
    )
    np.testing.assert_allclose(
        eigen.eigenvalues[0], torch.linalg.eigvalsh(H)[-1], rtol=1e-3
    )
    assert module.training is train
    assert bool((module[1].running_mean == 0.5).all())


@pytest.mark.parametrize(
    "register", ["register_hook", "register_post_accumulate_grad_hook"]
)
@pytest.mark.parametrize("as_instance", [False, True])
def test_a_hook_that_masks_a_parameters_gradient_is_refused(as_instance, register):
    handles = []

    def make():
        module = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
        handles.append(getattr(module[2].weight, register)(torch.zeros_like))
        return module

    classifier = NoisyDiffusionClassifier(make() if as_instance else make, max_iter=2)
    with pytest.raises(ValueError, match=r"Got a hook on '2\.weight'; freeze"):
        classifier.fit(X, y)
    if as_instance:
        handles.pop().remove()
        classifier.fit(X, y)
