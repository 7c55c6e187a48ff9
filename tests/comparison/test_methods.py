"""What a method may be given as."""

import numpy as np
import pytest

from flatmin import METHODS, NoisyDiffusionRegressor
from flatmin.comparison._methods import resolve_methods
from flatmin.noise import GLDConst, GLDFull

from ._problems import classifier


def methods_of(estimators):
    return {label: unit.method for label, unit in estimators.items()}


@pytest.mark.parametrize(
    ("methods", "labels"),
    [
        ("sgd", ["sgd"]),
        (GLDFull(), ["gld_full"]),
        (["gd", GLDConst(sigma=0.1), classifier(method="sgd")], None),
        ({"a": "sgd", "b": GLDFull(), "c": classifier(lr=0.3)}, ["a", "b", "c"]),
        (METHODS, list(METHODS)),
    ],
)
def test_labels(methods, labels):
    if methods is METHODS:
        methods = list(METHODS)
    found = list(resolve_methods(methods, classifier()))
    assert found == (labels or ["gd", "gld_const", "sgd"])


def test_settings():
    methods = {
        "gld_const": {"method_params": {"sigma": 0.1}, "lr": 0.2},
        "small": {"method": "gld_const", "method__sigma": 0.01},
        "law": {"method": GLDConst(sigma=1e-3), "method__sigma": 0.02},
        "sgd": {},
        "fast": classifier(method="sgd", lr=0.5),
    }
    estimator = classifier(method="gld_const", method_params={"sigma": 7.0})
    found = resolve_methods(methods, estimator)
    own = {"gld_const": "gld_const", "small": "gld_const", "sgd": "sgd", "fast": "sgd"}
    assert {k: v for k, v in methods_of(found).items() if k != "law"} == own
    assert found["gld_const"].method_params == {"sigma": 0.1}
    assert found["small"].method_params == {"sigma": 0.01}
    assert found["law"].method.sigma == 0.02
    assert found["sgd"].method_params is None
    assert [unit.lr for unit in found.values()] == [0.2, 0.1, 0.1, 0.1, 0.5]
    # What was given is left alone.
    assert estimator.method_params == {"sigma": 7.0}
    assert methods["law"]["method"].sigma == 1e-3


@pytest.mark.parametrize(
    ("methods", "error", "message"),
    [
        ([], ValueError, "at least one"),
        (3, TypeError, "names, noise laws or estimators.*Got 3"),
        ([3], TypeError, "a string. Got 3"),
        ({1: "sgd"}, TypeError, "a string. Got 1"),
        ({"a": 3}, TypeError, "'a' must be a name"),
        (["sgd", "sgd"], ValueError, "'sgd' twice"),
        (["sdg"], ValueError, "did you mean 'sgd'"),
        ({"gld_cnst": {"lr": 0.1}}, ValueError, "did you mean 'gld_const'"),
        ({"sgd": {"lr": -1.0}}, ValueError, "'lr'"),
        ({"sgd": {"learning": 1}}, ValueError, "Invalid parameter 'learning'"),
        ({"sgd": {"method__sigma": 1}}, ValueError, "setting of sgd 'sigma'"),
        ({"sgd": {"warmup": {"lr": 1.0}}}, ValueError, "'sgd' has its own warmup"),
        ({"sgd": {"module__bias": False}}, ValueError, "its own module"),
        ({"a": classifier(random_state=3, dtype="float64")}, ValueError, "in dtype"),
        ({"a": classifier(params_init=np.ones(3))}, ValueError, "in params_init"),
        ({"a": NoisyDiffusionRegressor()}, TypeError, "Got NoisyDiffusionRegressor"),
    ],
)
def test_what_is_no_method(methods, error, message):
    with pytest.raises(error, match=message):
        resolve_methods(methods, classifier())
