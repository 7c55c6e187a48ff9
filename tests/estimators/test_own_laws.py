"""``method=`` takes a law's class and names that a user has registered."""

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.base import clone

from flatmin import NoisyDiffusionClassifier
from flatmin.noise import METHODS, GLDConst, register_law

rng = np.random.default_rng(0)
X = rng.normal(size=(20, 3))
y = (X[:, 0] > 0).astype(int)


class Wide(GLDConst):
    """As gld_const, and twice as wide: σ is not what it is called."""

    name = "wide"

    def noisy_gradient(self, risk, theta, state, rng):
        loss, noisy = super().noisy_gradient(risk, theta, state, rng)
        return loss, 2 * noisy - risk.gradient(theta)


def fitted(**settings):
    options = {"module_params": {"hidden_layer_sizes": (3,)}, "lr": 0.1, "max_iter": 5}
    options |= {"dtype": "float64", "random_state": 0}
    return NoisyDiffusionClassifier(**options | settings).fit(X, y)


@pytest.fixture(autouse=True)
def laws_as_before():
    before = dict(METHODS)
    yield
    METHODS.clear()
    METHODS.update(before)


def test_a_class_is_a_method():
    # ε of twice the σ is what gld_const draws with that σ.
    wanted = fitted(method="gld_const", method_params={"sigma": 0.2}).params_
    found = fitted(method=Wide, method_params={"sigma": 0.1})
    np.testing.assert_allclose(found.params_, wanted, rtol=1e-9)
    assert type(found.noise_) is Wide
    routed = clone(found).set_params(method__sigma=0.3)
    assert routed.method is Wide
    assert routed.method_params == {"sigma": 0.3}
    assert found.method_params == {"sigma": 0.1}
    instance = fitted(method=Wide(sigma=0.1))
    np.testing.assert_array_equal(instance.params_, found.params_)


def test_a_registered_name_is_a_method():
    register_law(Wide)
    found = fitted(method="wide", method_params={"sigma": 0.1})
    np.testing.assert_array_equal(
        found.params_, fitted(method=Wide, method_params={"sigma": 0.1}).params_
    )
    warm = {"max_iter": 3, "method": Wide}
    by_class = fitted(method="gd", warmup=warm)
    by_name = fitted(method="gd", warmup={"max_iter": 3, "method": "wide"})
    np.testing.assert_array_equal(by_class.params_, by_name.params_)


def test_a_pickle_brings_the_class():
    register_law(Wide)
    kept = pickle.dumps(NoisyDiffusionClassifier(method="wide"))
    del METHODS["wide"]
    found = pickle.loads(kept)
    assert METHODS["wide"] is Wide
    assert vars(found) == vars(NoisyDiffusionClassifier(method="wide"))
    # A name that is known stays what it is.
    METHODS["wide"] = GLDConst
    pickle.loads(kept)
    assert METHODS["wide"] is GLDConst


def test_a_class_of_something_else_is_refused():
    with pytest.raises(TypeError, match=r"method must be a subclass of NoiseLaw\. Got"):
        fitted(method=int)
    warm = {"max_iter": 1, "method": int}
    with pytest.raises(TypeError, match=r"warmup\['method'\] must be a subclass of"):
        fitted(warmup=warm)


SCRIPT = """
import numpy as np
from sklearn.model_selection import GridSearchCV
from flatmin import NoisyDiffusionClassifier, SharpnessScorer, compare_dynamics
from flatmin.measures import register_measure
from flatmin.noise import GLDConst, register_law

@register_law
class Mine(GLDConst):
    name = "mine"

@register_measure
def height(risk, theta):
    return risk.value(theta)

if __name__ == "__main__":
    rng = np.random.default_rng(0)
    X = rng.normal(size=(20, 3))
    y = (X[:, 0] > 0).astype(int)
    clf = NoisyDiffusionClassifier(
        module_params={"hidden_layer_sizes": (3,)}, max_iter=3, random_state=0
    )
    grid = {"method": ["mine", Mine], "lr": [0.1]}
    scoring = {"flat": SharpnessScorer(measure="height")}
    search = GridSearchCV(
        clf, grid, cv=2, n_jobs=2, scoring=scoring, refit=False, error_score="raise"
    ).fit(X, y)
    first, second = search.cv_results_["mean_test_flat"]
    assert first == second < 0
    found = compare_dynamics(
        ["mine", "gld_const"], X, y, estimator=clf, n_seeds=[0, 1], n_jobs=2
    )
    assert not len(found.failures), found.failures.to_string()
    ends = found.ends()["loss"]["noise"]
    assert (ends["mine"] == ends["gld_const"]).all()
    print("as in one process")
"""


def test_workers_know_what_a_script_has_registered(tmp_path):
    path = Path(tmp_path) / "script.py"
    path.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(path)], capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "as in one process\n", done.stderr
