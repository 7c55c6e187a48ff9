"""What fit does, against a loop written by hand, and what it leaves behind."""

import copy
import pickle

import numpy as np
import pytest
import torch
from skorch.callbacks import LRScheduler
from torch import nn

from flatmin.noise import METHODS, AntiPGD, Projected, make_noise_law

from ._problems import blobs, classifier, flat, plane, regressor

X, y = blobs()


def by_hand(clf, optimizer, n_iter, module=None, **params):
    """Train clf's initial module on the whole data by a plain loop."""
    if module is None:
        start = clf.set_params(max_iter=0).fit(X, y)
        module = copy.deepcopy(start.module_)
    dtype = next(module.parameters()).dtype
    inputs, targets = torch.as_tensor(X, dtype=dtype), torch.as_tensor(y)
    optimizer = optimizer(module.parameters(), **params)
    for _ in range(n_iter):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(inputs), targets).backward()
        optimizer.step()
    return module


@pytest.mark.parametrize(
    ("name", "optimizer", "settings"),
    [
        ("sgd", torch.optim.SGD, {}),
        ("sgd", torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.01}),
        ("rmsprop", torch.optim.RMSprop, {"alpha": 0.9}),
        ("adam", torch.optim.Adam, {}),
        (torch.optim.AdamW, torch.optim.AdamW, {"weight_decay": 0.1}),
    ],
)
def test_gd_is_the_plain_loop(name, optimizer, settings):
    clf = classifier(
        method="gd", optimizer=name, optimizer_params=settings, lr=0.02, dtype="float64"
    )
    fitted = copy.deepcopy(clf).fit(X, y)
    module = by_hand(clf, optimizer, 30, lr=0.02, **settings)
    np.testing.assert_allclose(fitted.params_, flat(module), rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(fitted.params_, flat(fitted.module_))


@pytest.mark.parametrize("sampling", ["replacement", "without_replacement", "epoch"])
def test_sgd_with_every_sampling(sampling):
    clf = classifier(method="sgd", method_params={"sampling": sampling}, max_iter=100)
    assert clf.fit(X, y).score(X, y) > 0.8


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_both_estimators(method):
    clf = classifier(method=method, max_iter=60).fit(X, y)
    assert clf.score(X, y) > 0.7
    reg = regressor(method=method, max_iter=60).fit(*plane())
    assert reg.score(*plane()) > 0.3
    for history in (clf.history_, reg.history_):
        numbers = history.select_dtypes("number")
        if method == "alpha_stable":  # which has no second moment
            assert np.isinf(numbers.pop("noise_norm")).all()
        assert np.isfinite(numbers).all(axis=None)


@pytest.mark.parametrize("n_substeps", [1, 3])
def test_small_steps_are_counted(n_substeps):
    law = make_noise_law("svag", n_substeps=n_substeps)
    clf = classifier(method=law, max_iter=25, record_every=10, warmup={"max_iter": 5})
    clf.fit(X, y)
    assert clf.n_iter_ == 25
    assert clf.n_steps_ == 25 * n_substeps
    noise = clf.history_[clf.history_["phase"] == "noise"]
    assert noise["iteration"].tolist() == [5, 15, 25, 30]
    if n_substeps > 1:
        assert noise["n_steps"].tolist() == [0, 30, 60, 75]
    clf.set_params(warm_start=True).fit(X, y)
    assert (clf.n_iter_, clf.n_steps_) == (50, 50 * n_substeps)
    if n_substeps > 1:
        noise = clf.history_[clf.history_["phase"] == "noise"]
        steps = (noise["iteration"] - 5) * n_substeps
        assert noise["n_steps"].tolist() == steps.tolist()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"optimizer": "adam"}, "SVAG takes 4 steps .* Got Adam"),
        ({"optimizer_params": {"momentum": 0.9}}, "SVAG takes 4 .*'momentum': 0.9"),
        (
            {"optimizer_params": {"param_groups": [("*bias", {"momentum": 0.9})]}},
            "SVAG takes 4 .*'momentum': 0.9",
        ),
        (
            {"method": AntiPGD(match="none"), "optimizer": "rmsprop"},
            "AntiPGD is in parameter units.* Got RMSprop",
        ),
        ({"method": Projected("gld_full")}, "law of projected must be a NoiseLaw"),
        ({"gradient_batch_size": 8}, "Leave gradient_batch_size at None"),
        (
            {
                "warmup": {"max_iter": 10, "method": "svag", "optimizer": "adam"},
                "method": "gd",
            },
            "SVAG takes 4 steps .* Got Adam",
        ),
    ],
)
def test_small_steps_are_refused_before_any_work(settings, sentence):
    clf = classifier(**{"method": "svag", "warmup": {"max_iter": 10}, **settings})
    with pytest.raises(ValueError, match=sentence):
        clf.fit(X, y)
    assert not hasattr(clf, "history_")


def test_history_has_a_row_a_block_and_one_for_the_start():
    clf = classifier(max_iter=25, record_every=10).fit(X, y)
    assert clf.history_["iteration"].tolist() == [0, 10, 20, 25]
    assert clf.n_iter_ == 25
    assert clf.history_.columns.tolist() == [
        "iteration",
        "phase",
        "loss",
        "train_score",
        "gradient_norm",
        "noise_norm",
    ]
    assert set(clf.history_["phase"]) == {"noise"}


def test_history_measures_the_full_risk():
    clf = classifier(dtype="float64").fit(X, y)
    last = clf.history_.iloc[-1]
    theta = torch.as_tensor(clf.params_)
    loss, gradient = clf.risk_.value_and_gradient(theta)
    rows = torch.cat(list(clf.risk_.per_example_gradients(theta)))
    sigma = (rows - gradient).square().sum(1).mean()
    assert last["loss"] == pytest.approx(float(loss))
    assert last["gradient_norm"] == pytest.approx(float(gradient.norm()))
    assert last["noise_norm"] == pytest.approx(float((sigma / 20).sqrt()))
    assert last["train_score"] == clf.score(X, y)


def test_skorchs_history_has_the_same_numbers():
    clf = classifier().fit(X, y, X_val=X[:9], y_val=y[:9])
    rows = clf.history_.iloc[1:]
    of_skorch = clf.net_.history
    assert len(of_skorch) == len(rows) == 3
    assert of_skorch[:, "train_loss"] == pytest.approx(rows["loss"].tolist())
    for name in ("valid_loss", "valid_score", "train_score", "iteration"):
        assert of_skorch[:, name] == pytest.approx(rows[name].tolist())
    assert of_skorch[:, "valid_loss_best"][0]


@pytest.mark.parametrize("method", METHODS)
def test_the_record_does_not_change_the_run(method):
    often, seldom, never = (
        classifier(method=method, max_iter=10, record_every=n).fit(X, y).params_
        for n in (1, 3, 100)
    )
    np.testing.assert_array_equal(often, never)
    np.testing.assert_array_equal(seldom, never)


def test_no_iterations_leave_the_initial_module():
    clf = classifier(max_iter=0).fit(X, y)
    assert clf.n_iter_ == 0
    assert clf.history_["iteration"].tolist() == [0]
    np.testing.assert_array_equal(clf.params_, flat(clf.module_))
    assert clf.predict(X).shape == y.shape
    assert len(clf.net_.history) == 0


def test_params_init_is_where_it_starts():
    theta = classifier(random_state=5).fit(X, y).params_
    for given in (theta, theta.tolist(), torch.tensor(theta, requires_grad=True)):
        start = classifier(params_init=given, max_iter=0).fit(X, y)
        np.testing.assert_array_equal(start.params_, theta)


def test_metrics_get_the_risk_and_a_theta_of_their_own():
    kept = []

    def spoil(risk, theta):
        kept.append(theta)
        return theta.zero_().sum()

    def norm(risk, theta):
        return theta.norm()

    clf = classifier(metrics={"spoilt": spoil, "norm": norm}).fit(X, y)
    np.testing.assert_array_equal(clf.params_, classifier().fit(X, y).params_)
    assert clf.history_["spoilt"].tolist() == [0.0] * 4
    norm_of_params = np.linalg.norm(clf.params_)
    assert clf.history_["norm"].iloc[-1] == pytest.approx(norm_of_params, rel=1e-6)
    assert clf.net_.history[-1, "norm"] == clf.history_["norm"].iloc[-1]
    assert not np.shares_memory(kept[-1].numpy(), clf.params_)


def test_a_schedule_steps_once_a_block():
    halve = LRScheduler(policy="StepLR", step_size=1, gamma=0.5)
    clf = classifier(method="gd", callbacks=[halve], dtype="float64")
    fitted = copy.deepcopy(clf).fit(X, y)
    module = None
    for lr in (0.1, 0.05, 0.025):
        module = by_hand(clf, torch.optim.SGD, 10, module, lr=lr)
    np.testing.assert_allclose(fitted.params_, flat(module), rtol=1e-9, atol=1e-12)
    assert fitted.net_.history[:, "event_lr"] == [0.1, 0.05, 0.025]


def test_weight_decay_is_the_optimizers_and_not_the_risks():
    decayed = classifier(optimizer_params={"weight_decay": 0.5}, method="gd")
    decayed.fit(X, y)
    proba = decayed.predict_proba(X)[np.arange(len(y)), y]
    loss = decayed.history_["loss"].iloc[-1]
    assert loss == pytest.approx(-np.log(proba).mean(), rel=1e-5)


def test_groups_of_parameters_have_their_own_lr():
    groups = [("layers.0.*", {"lr": 0.0})]
    clf = classifier(method="gd", optimizer_params={"param_groups": groups})
    start = copy.deepcopy(clf).set_params(max_iter=0).fit(X, y)
    clf.fit(X, y)
    before, after = start.module_.layers, clf.module_.layers
    assert torch.equal(before[0].weight, after[0].weight)
    assert not torch.equal(before[2].weight, after[2].weight)
    np.testing.assert_array_equal(clf.params_, flat(clf.module_))


@pytest.mark.parametrize("method", ["gd", "sgd", "gld_full", "gld_hessian"])
def test_a_warm_start_continues(method):
    settings = {"method": method, "refresh_every": 5, "method_params": None}
    whole = classifier(max_iter=40, **settings).fit(X, y)
    parts = classifier(max_iter=20, warm_start=True, **settings).fit(X, y).fit(X, y)
    np.testing.assert_array_equal(parts.params_, whole.params_)
    assert parts.n_iter_ == 40
    assert parts.history_.equals(whole.history_)


def test_a_warm_start_keeps_the_warmups_rows_and_does_not_repeat_it():
    clf = classifier(warmup={"max_iter": 20}, warm_start=True)
    clf.fit(X, y).fit(X, y)
    assert clf.n_iter_ == 60
    assert clf.history_["iteration"].tolist() == list(range(0, 81, 10))
    assert clf.history_["phase"].tolist() == ["warmup"] * 2 + ["noise"] * 7


def test_a_warm_start_is_not_taken_back_to_params_init():
    theta = np.linspace(-1, 1, 67)
    clf = classifier(params_init=theta, warm_start=True, method="gd")
    first = clf.fit(X, y).history_["loss"]
    second = clf.fit(X, y).history_["loss"]
    np.testing.assert_array_equal(second[:4], first)
    assert second.iloc[-1] < first.iloc[-1]


def narrow(n_hidden=4):
    return nn.Sequential(nn.Linear(4, n_hidden), nn.Tanh(), nn.Linear(n_hidden, 3))


def other_bias(module):
    module = copy.deepcopy(module)
    with torch.no_grad():
        module[0].bias[0] += 1
    return module


def pickled(clf):
    return pickle.loads(pickle.dumps(clf))


NET = narrow()
NARROW = {"module": narrow}
BRIEF = {"max_iter": 2, "module_params": None}


@pytest.mark.parametrize(
    ("given", "changed"),
    [
        ({}, {"module": narrow}),
        (NARROW, {"module": None}),
        (NARROW, {"module": NET}),
        ({"module": NET}, {"module": other_bias(NET)}),
        ({}, {"module_params": {"hidden_layer_sizes": (3,)}}),
        ({}, {"module_params": {"nonsense": 1}}),
        ({"module_params": {"hidden_layer_sizes": (3,)}}, {"module_params": None}),
        (NARROW, {"params_init": np.zeros(35)}),
        (NARROW | {"params_init": np.ones(35)}, {"params_init": np.zeros(35)}),
        (
            {"module": narrow, "module_params": {"n_hidden": 3}},
            {"module_params": {"n_hidden": 2}, "params_init": np.zeros(19)},
        ),
    ],
)
@pytest.mark.parametrize("copied", [lambda clf: clf, copy.deepcopy, pickled])
def test_a_warm_start_has_one_start(copied, given, changed):
    given = BRIEF | given
    clf = copied(classifier(**given).fit(X, y)).set_params(warm_start=True)
    before = clf.params_
    match = f"as they were then. Got another {', another '.join(changed)}; pass"
    with pytest.raises(ValueError, match=match):
        clf.set_params(**changed).fit(X, y)
    np.testing.assert_array_equal(clf.params_, before)
    clf.set_params(**{name: given.get(name) for name in changed}).fit(X, y)
    assert clf.n_iter_ == 4
    if "nonsense" not in str(changed):
        assert clf.set_params(warm_start=False, **changed).fit(X, y).n_iter_ == 2


@pytest.mark.parametrize(
    ("given", "equal"),
    [
        ({"module": NET}, {"module": copy.deepcopy(NET)}),
        (
            {"module_params": {"hidden_layer_sizes": (3,)}},
            {"module__hidden_layer_sizes": (3,)},
        ),
        ({"module_params": {}}, {"module_params": None}),
        (NARROW | {"params_init": np.ones(35)}, {"params_init": [1.0] * 35}),
        (NARROW | {"params_init": np.ones(35)}, {"params_init": None}),
    ],
)
def test_a_warm_start_takes_equal_values(given, equal):
    clf = classifier(**BRIEF | given).fit(X, y)
    clf.set_params(warm_start=True, **equal).fit(X, y)
    assert clf.set_params(**given).fit(X, y).n_iter_ == 6


def test_a_dict_of_module_params_that_is_changed_in_place():
    params = {"hidden_layer_sizes": (3,)}
    clf = classifier(max_iter=2, module_params=params, warm_start=True).fit(X, y)
    params["hidden_layer_sizes"] = (4,)
    with pytest.raises(ValueError, match="Got another module_params"):
        clf.fit(X, y)


def test_a_warm_start_can_change_the_method():
    clf = classifier(method="gd", warm_start=True).fit(X, y)
    before = clf.params_
    clf.set_params(method="gld_full", max_iter=1).fit(X, y)
    assert clf.history_["iteration"].tolist() == [0, 10, 20, 30, 31]
    assert not np.array_equal(clf.params_, before)
    assert clf.noise_.name == "gld_full"


def test_without_a_warm_start_a_second_fit_is_a_first():
    clf = classifier()
    first = clf.fit(X, y).params_
    np.testing.assert_array_equal(clf.fit(X, y).params_, first)
    assert clf.n_iter_ == 30


def test_store_data():
    kept = classifier().fit(X, y)
    assert kept.risk_.n_examples == len(X)
    dropped = classifier(store_data=False).fit(X, y)
    assert dropped.risk_ is None
    for clf in (kept, dropped):
        # The net holds no second way to the data.
        assert not {"descent_", "recorder_", "_plan_"} & vars(clf.net_).keys()
        assert clf.net_.train_split is None


def test_verbose_shows_two_bars(capsys):
    classifier(warmup={"max_iter": 10}, verbose=True).fit(X, y)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "warm-up: 100%" in shown.err
    assert "sgd: 100%" in shown.err
    classifier(warmup={"max_iter": 10}).fit(X, y)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("gld_hessian", {"refresh_every": 10, "n_components": 3}),
        ("gld_ggn", {"refresh_every": 10}),
        ("gld_dynamic", {"refresh_every": 1}),
        ("gld_diagonal", {"refresh_every": 1}),
        ("anti_pgd", {}),
    ],
)
@pytest.mark.parametrize("batch", [None, 7])
def test_a_last_row_has_the_noise_of_its_own_theta(method, settings, batch):
    settings |= {"record_every": 10, "lr": 0.3, "batch_size": 2}
    settings |= {"gradient_batch_size": batch}
    shorter, longer = (
        classifier(method=method, max_iter=n, **settings).fit(X, y) for n in (20, 30)
    )
    rows = [clf.history_["noise_norm"].iloc[2] for clf in (shorter, longer)]
    assert rows[0] == rows[1] > 0
    # What was measured at the end moves no later draw.
    twice = classifier(method=method, max_iter=20, warm_start=True, **settings)
    if method != "anti_pgd":  # whose draws begin anew
        twice.fit(X, y).set_params(max_iter=10).fit(X, y)
        np.testing.assert_array_equal(twice.params_, longer.params_)


def test_a_law_that_fails_where_the_run_ends_costs_the_last_rows_noise(monkeypatch):
    law, calls = METHODS["gld_hessian"], []
    refreshed = law.refreshed_gradient

    def third_fails(self, *arguments, **told):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("no convergence")
        return refreshed(self, *arguments, **told)

    monkeypatch.setattr(law, "refreshed_gradient", third_fails)
    settings = {"refresh_every": 10, "record_every": 10, "n_components": 3}
    clf = classifier(method="gld_hessian", max_iter=20, **settings).fit(X, y)
    assert len(calls) == 3
    assert np.isnan(clf.history_["noise_norm"]).tolist() == [False, False, True]
    assert np.isfinite(clf.history_["loss"]).all()


def test_the_validation_loss_has_the_weights_of_the_classes():
    weights = np.array([1.0, 5.0, 0.2])[: len(np.unique(y))]
    clf = classifier(method="gd", max_iter=20, class_weight=dict(enumerate(weights)))
    clf.fit(X, y, X_val=X[:9], y_val=y[:9])
    losses = -np.log(clf.predict_proba(X[:9])[np.arange(9), y[:9]])
    own = weights[y[:9]]
    assert np.isclose(
        clf.history_["valid_loss"].iloc[-1], (own * losses).sum() / own.sum()
    )
