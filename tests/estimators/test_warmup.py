"""The phase before the noise, and its memory."""

import copy
import re
import warnings

import joblib
import numpy as np
import pytest
import torch
from joblib import Memory
from sklearn.model_selection import GridSearchCV
from torch import nn

from flatmin.dynamics import DivergenceError, run_warmup
from flatmin.estimators import _warmup
from flatmin.noise import SGD

from ._problems import Scaled, blobs, classifier, flat

X, y = blobs()


@pytest.fixture
def runs(monkeypatch):
    """A list that grows by one with each warm-up that is really run."""
    done = []

    def counted(*args, **settings):
        done.append(args)
        return run_warmup(*args, **settings)

    monkeypatch.setattr(_warmup, "run_warmup", counted)
    return done


@pytest.mark.parametrize("method", ["sgd", "gld_full", "gld_random_subspace"])
def test_one_fit_is_a_warmup_and_a_fit_from_there(method):
    both = classifier(method=method, warmup={"max_iter": 20, "lr": 0.3}).fit(X, y)
    before = classifier(method="gd", lr=0.3, max_iter=20).fit(X, y)
    after = classifier(method=method, params_init=before.params_).fit(X, y)
    np.testing.assert_array_equal(both.params_, after.params_)
    assert both.n_iter_ == after.n_iter_ == 30
    loss = [*before.history_["loss"][:2], *after.history_["loss"]]
    np.testing.assert_array_equal(both.history_["loss"], loss)


def test_the_warmups_rows_come_first_and_count_on():
    clf = classifier(
        warmup={"max_iter": 25}, metrics={"norm": lambda risk, t: t.norm()}
    )
    history = clf.fit(X, y).history_
    assert history["iteration"].tolist() == [0, 10, 20, 25, 35, 45, 55]
    assert history["phase"].tolist() == ["warmup"] * 3 + ["noise"] * 4
    assert history["norm"].isna().tolist() == [True] * 3 + [False] * 4
    assert (history["noise_norm"][:3] == 0).all()


def test_rmsprop_and_then_sgd():
    clf = classifier(
        method="gd",
        lr=0.05,
        max_iter=20,
        warmup={"optimizer": "rmsprop", "lr": 0.01, "max_iter": 15},
        dtype="float64",
    )
    start = copy.deepcopy(clf).set_params(max_iter=0, warmup=None).fit(X, y)
    module = copy.deepcopy(start.module_)
    inputs, targets = torch.as_tensor(X), torch.as_tensor(y)
    optimizers = (
        (torch.optim.RMSprop(module.parameters(), lr=0.01), 15),
        (torch.optim.SGD(module.parameters(), lr=0.05), 20),
    )
    for optimizer, n_iter in optimizers:
        for _ in range(n_iter):
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(inputs), targets).backward()
            optimizer.step()
    params = clf.fit(X, y).params_
    np.testing.assert_allclose(params, flat(module), rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("law", ["sgd", SGD(sampling="epoch")])
def test_the_warmup_has_its_own_law_and_draws(law):
    clf = classifier(warmup={"method": law, "max_iter": 20}, method="gd").fit(X, y)
    again = classifier(warmup={"method": law, "max_iter": 20}, method="gd").fit(X, y)
    np.testing.assert_array_equal(clf.params_, again.params_)
    plain = classifier(warmup={"max_iter": 20}, method="gd").fit(X, y)
    assert not np.array_equal(clf.params_, plain.params_)


def test_a_grid_over_methods_warms_up_once_a_fold(tmp_path, runs):
    methods = ["gd", "sgd", "gld_full"]
    clf = classifier(warmup={"max_iter": 20}, memory=str(tmp_path))
    search = GridSearchCV(clf, {"method": methods}, cv=3).fit(X, y)
    assert len(runs) == 3 + 1
    best = search.best_estimator_
    plain = classifier(warmup={"max_iter": 20}, **search.best_params_).fit(X, y)
    np.testing.assert_array_equal(best.params_, plain.params_)
    assert best.history_.equals(plain.history_)


@pytest.mark.parametrize("mmap_mode", [None, "r"])
def test_a_warmup_from_memory_is_the_same(tmp_path, runs, mmap_mode):
    memory = Memory(tmp_path, mmap_mode=mmap_mode, verbose=0)
    fits = [
        classifier(warmup={"max_iter": 20}, memory=memory).fit(X, y) for _ in range(2)
    ]
    assert len(runs) == 1
    np.testing.assert_array_equal(fits[0].params_, fits[1].params_)
    assert fits[0].history_.equals(fits[1].history_)


TWENTY = {"max_iter": 20}


def n_runs(runs, tmp_path, variants, data=((X, y),) * 2, **params):
    """Fit the variants with one memory, and count the warm-ups that were run."""
    for variant, given in zip(variants, data, strict=True):
        settings = {"warmup": {"max_iter": 20}, "max_iter": 2, "memory": str(tmp_path)}
        classifier(**settings | params | variant).fit(*given)
    return len(runs)


@pytest.mark.parametrize(
    "variants",
    [
        ({"method": "gd"}, {"method": "gld_const"}),
        ({"noise_scale": 1.0}, {"noise_scale": 2.0}),
        ({"max_iter": 3}, {"max_iter": 4}),
        ({"lr": 0.1, "warmup": TWENTY}, {"lr": 0.2, "warmup": TWENTY | {"lr": 0.1}}),
        ({"metrics": None}, {"metrics": {"a": lambda risk, theta: 0.0}}),
        ({"module": Scaled}, {"module": Scaled}),
    ],
    ids=lambda variants: next(iter(variants[0])),
)
def test_what_the_warmup_does_not_depend_on(tmp_path, runs, variants):
    assert n_runs(runs, tmp_path, variants) == 1


def doubled(outputs, targets):
    return 2 * nn.functional.cross_entropy(outputs, targets, reduction="none")


def with_factor(factor):
    def loss(outputs, targets):
        losses = nn.functional.cross_entropy(outputs, targets, reduction="none")
        return factor * losses

    return loss


class Factor:
    """A loss with a setting, and the default repr."""

    def __init__(self, factor):
        self.factor = factor

    def __call__(self, outputs, targets):
        return with_factor(self.factor)(outputs, targets)


@pytest.mark.parametrize(
    "variants",
    [
        ({"random_state": 0}, {"random_state": 1}),
        ({"warmup": TWENTY | {"lr": 0.1}}, {"warmup": TWENTY | {"lr": 0.2}}),
        ({"warmup": {"max_iter": 10}}, {"warmup": {"max_iter": 20}}),
        ({"record_every": 5}, {"record_every": 10}),
        ({"warmup": TWENTY | {"method": "gd"}}, {"warmup": TWENTY | {"method": "sgd"}}),
        (
            {"warmup": TWENTY | {"method": "sgd"}, "batch_size": 5},
            {"warmup": TWENTY | {"method": "sgd"}, "batch_size": 6},
        ),
        ({"warmup": TWENTY}, {"warmup": TWENTY | {"optimizer": "adam"}}),
        ({"dtype": "float32"}, {"dtype": "float64"}),
        ({"class_weight": None}, {"class_weight": "balanced"}),
        ({"loss": "cross_entropy"}, {"loss": doubled}),
        ({"loss": with_factor(1.0)}, {"loss": with_factor(2.0)}),
        ({"loss": Factor(1.0)}, {"loss": Factor(2.0)}),
        # What a repr does not show, with the same initial parameters.
        *(
            ({"loss": nn.CrossEntropyLoss()}, {"loss": other})
            for other in (
                nn.CrossEntropyLoss(label_smoothing=0.1),
                nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0])),
            )
        ),
        *(
            ({"module": Scaled}, {"module": Scaled, "module_params": other})
            for other in ({"factor": 2.0}, {"activation": torch.sigmoid})
        ),
    ],
    ids=lambda variants: next(iter(variants[-1])),
)
def test_what_the_warmup_depends_on(tmp_path, runs, variants):
    unequal = (X, np.where(np.arange(len(y)) == 0, 1, y))
    assert n_runs(runs, tmp_path, variants, (unequal, unequal)) == 2


def test_it_depends_on_the_data(tmp_path, runs):
    weights = np.linspace(1, 2, len(y))
    data = ((X, y), (X + 1e-9, y), (X, y[::-1]), (X, y, weights))
    assert n_runs(runs, tmp_path, [{}] * 4, data) == 4


def test_without_a_random_state_there_is_no_memory(tmp_path, runs):
    assert n_runs(runs, tmp_path, [{"random_state": None}] * 2) == 2


# ------------------------------------------------------------------ a damaged memory
def remembered(memory):
    return classifier(warmup={"max_iter": 20}, max_iter=2, memory=memory).fit(X, y)


def forget():
    """Forget what joblib keeps in the process, as a new one would."""
    joblib.memory._FUNCTION_HASHES.clear()


def the_file(folder, name):
    (path,) = folder.rglob(name)
    return path


@pytest.mark.parametrize("settings", [{}, {"mmap_mode": "r"}, {"compress": 3}])
def test_every_flip_in_a_memory_is_noticed(tmp_path, runs, settings):
    memory = Memory(tmp_path, verbose=0, **settings)
    whole = remembered(memory)
    path = the_file(tmp_path, "output.pkl")
    content = path.read_bytes()
    for place in np.linspace(0, len(content) - 1, 12).astype(int):
        altered = bytearray(content)
        altered[place] ^= 1 << (place % 8)
        path.write_bytes(altered)
        done = len(runs)
        match = "memory.*is damaged.*run again, and replaces it"
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            found = remembered(memory)
        assert found.params_.tobytes() == whole.params_.tobytes()
        assert found.history_.equals(whole.history_)
        if len(runs) > done:  # else the flip has changed nothing that is read
            texts = [str(each.message) for each in said]
            assert any(re.search(match, each) for each in texts)
            assert any(str(tmp_path) in each for each in texts)
            assert path.read_bytes() == content  # replaced
        path.write_bytes(content)
    assert len(runs) > 8


@pytest.mark.parametrize("name", ["output.pkl", "metadata.json", "func_code.py"])
@pytest.mark.parametrize("new", [b"", b"\xff\xfe", b"other"])
@pytest.mark.filterwarnings("ignore:What the memory")
def test_other_files_of_a_memory(tmp_path, runs, name, new):
    memory = Memory(tmp_path, verbose=0)
    whole = remembered(memory)
    the_file(tmp_path, name).write_bytes(new)
    forget()
    assert remembered(memory).params_.tobytes() == whole.params_.tobytes()
    n_runs = len(runs)
    assert n_runs == (1 if name == "metadata.json" else 2)
    forget()
    assert remembered(memory).params_.tobytes() == whole.params_.tobytes()
    assert len(runs) == n_runs  # it has been replaced


class OneFunction:
    """Has no more than a memory must have."""

    def __init__(self):
        self.held = {}

    def cache(self, function, ignore):
        def cached(key, *arguments, **settings):
            if key not in self.held:
                self.held[key] = function(key, *arguments, **settings)
            return self.held[key]

        return cached


def test_a_memory_of_ones_own(runs):
    memory = OneFunction()
    whole = remembered(memory)
    assert remembered(memory).params_.tobytes() == whole.params_.tobytes()
    assert len(runs) == 1
    (key,) = memory.held
    memory.held[key] = memory.held[key][:-1]
    with pytest.warns(UserWarning, match="is damaged: its checksum is wrong"):
        assert remembered(memory).params_.tobytes() == whole.params_.tobytes()


def test_the_warmups_own_error_is_not_a_damage(tmp_path, runs):
    clf = classifier(warmup={"max_iter": 20, "lr": 1e30}, memory=str(tmp_path))
    for n in (1, 2):
        with pytest.raises(DivergenceError):
            clf.fit(X, y)
        assert len(runs) == n
