"""Ctrl-C at any instruction of fit: the fitted attributes are all there, or none."""

import sys
from inspect import unwrap
from pathlib import Path

import numpy as np
import pytest
import torch

import flatmin
from flatmin import CurvatureAnalyzer, SharpnessScorer
from flatmin._utils.fitted_attributes import adopt_attributes, scratch_copy
from flatmin.estimators._base import BaseNoisyDiffusion
from flatmin.estimators._fitted import set_fitted

from ._problems import blobs, classifier

FIRST = blobs(n=12)
SECOND = blobs(n=10, n_features=5, n_classes=2, seed=1)
HERE = str(Path(flatmin.__file__).parent)

# Where instructions are tried; elsewhere it is lines.
STORES = {
    set_fitted.__code__,
    adopt_attributes.__code__,
    scratch_copy.__code__,
}
FIT = unwrap(BaseNoisyDiffusion.fit).__code__


class Interrupter:
    """Raises KeyboardInterrupt at the n-th place; counts them where n is None."""

    def __init__(self, n, stores_only):
        self.n, self.stores_only, self.count = n, stores_only, 0

    def __call__(self, frame, event, argument):
        code = frame.f_code
        if event == "call":
            is_store = code in STORES or code is FIT
            if self.stores_only:
                frame.f_trace = self  # Python 3.13 asks for it before the next line
                frame.f_trace_opcodes = is_store
                return self if is_store else None
            return self if code.co_filename.startswith(HERE) else None
        if event == ("opcode" if self.stores_only else "line"):
            if self.count == self.n:
                raise KeyboardInterrupt
            self.count += 1
        return self


def interrupted(fit, n, stores_only):
    """Call fit; return how many places there were, and whether it was interrupted."""
    before = sys.gettrace()
    trace = Interrupter(n, stores_only)
    # Python 3.12 looks for instructions only if a frame has asked before.
    sys._getframe().f_trace_opcodes = stores_only
    sys.settrace(trace)
    try:
        fit()
        was_interrupted = False
    except KeyboardInterrupt:
        was_interrupted = True
    finally:
        sys.settrace(before)
    assert torch.is_grad_enabled()
    assert not torch._C._len_torch_function_stack()
    assert not torch._C._len_torch_dispatch_stack()
    return trace.count, was_interrupted


def model():
    return classifier(module_params={"hidden_layer_sizes": ()}, max_iter=1)


def learned(estimator):
    names = vars(estimator).keys() - estimator.get_params(deep=False).keys()
    names -= {"_lock"}  # which is there from the first call on
    return {name: vars(estimator)[name] for name in names}


def assert_fits(clf, X, y):
    """All that fit learns, and of these data."""
    assert learned(clf).keys() == learned(model().fit(X, y)).keys()
    assert clf.n_features_in_ == X.shape[1]
    assert clf.classes_.tolist() == sorted(set(y))
    assert clf.params_.size == (X.shape[1] + 1) * (2 if X.shape[1] == 5 else 3)
    assert list(clf.net_.classes) == clf.classes_.tolist()
    assert clf.predict(X).shape == y.shape
    assert clf.risk_.n_examples == len(y)
    assert clf.history_["iteration"].iloc[-1] <= clf.n_iter_


def places(fit, stores_only, n_tries):
    total, was = interrupted(fit, None, stores_only)
    assert total > 0
    assert not was
    # The last one too, which lies behind what sets the attributes.
    return sorted({*range(0, total, max(1, total // n_tries)), total - 1})


TRIES = pytest.mark.parametrize(
    ("stores_only", "n_tries"),
    [
        (True, 12),
        (False, 12),
        pytest.param(True, 10**9, marks=pytest.mark.slow),
        pytest.param(False, 500, marks=pytest.mark.slow),
    ],
)


@TRIES
def test_a_first_fit(stores_only, n_tries):
    outcomes = set()
    for n in places(lambda: model().fit(*FIRST), stores_only, n_tries):
        clf = model()
        interrupted(lambda clf=clf: clf.fit(*FIRST), n, stores_only)
        if learned(clf):
            assert_fits(clf, *FIRST)
        outcomes.add(bool(learned(clf)))
    assert outcomes == {True, False}


@TRIES
def test_a_refit_on_other_data(stores_only, n_tries):
    outcomes = set()
    fitted = model().fit(*FIRST)
    for n in places(lambda: fitted.fit(*SECOND), stores_only, n_tries):
        clf = model().fit(*FIRST)
        old, params = learned(clf), clf.params_
        interrupted(lambda clf=clf: clf.fit(*SECOND), n, stores_only)
        is_old = clf.n_features_in_ == 4
        assert_fits(clf, *(FIRST if is_old else SECOND))
        if is_old:
            assert learned(clf).keys() == old.keys()
            np.testing.assert_array_equal(clf.params_, params)
        outcomes.add(is_old)
    assert outcomes == {True, False}


def test_an_error_leaves_the_earlier_fit():
    clf = model().fit(*FIRST)
    clf.set_params(loss="squared_error")
    with pytest.raises((TypeError, ValueError)):
        clf.fit(*SECOND)
    assert_fits(clf.set_params(loss="auto"), *FIRST)


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (CurvatureAnalyzer, {"risk_", "_drawn", "_held", "_kept", "n_features_in_"}),
        (
            SharpnessScorer,
            {"sharpness_", "stderr_", "sampling_", "n_matvecs_", "n_features_in_"},
        ),
    ],
)
def test_analyzers(make, names):
    one, two = model().fit(*FIRST), model().fit(*SECOND)
    total, _ = interrupted(lambda: make(one).fit(*FIRST), None, False)
    for n in range(0, total, max(1, total // 12)):
        fresh, again = make(one), make(one).fit(*FIRST)
        interrupted(lambda fresh=fresh: fresh.fit(*FIRST), n, False)
        assert learned(fresh).keys() in (set(), names)
        again.estimator = two
        before = learned(again)
        interrupted(lambda again=again: again.fit(*SECOND), n, False)
        now = learned(again)
        assert now.keys() == names
        changed = {name for name in names if now[name] is not before[name]}
        main = {"n_features_in_", *(names & {"risk_", "sharpness_"})}
        assert (again.n_features_in_ == 5) == bool(changed)
        assert not changed or main <= changed
