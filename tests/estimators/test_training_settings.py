"""``training``: clipping, a schedule, and an end before the last iteration."""

import numpy as np
import pytest
import torch
from pandas.testing import assert_frame_equal
from sklearn.base import clone
from sklearn.metrics import accuracy_score
from sklearn.model_selection import GridSearchCV
from skorch.callbacks import Callback, EpochScoring, LRScheduler
from torch import nn
from torch.optim import lr_scheduler
from torch.utils import data

from flatmin import compare_dynamics
from flatmin.dynamics import EarlyStopping
from flatmin.noise import GLDConst

from ..interrupts import killed_after
from ._problems import blobs, classifier, flat, plane, regressor

X, y = blobs()
X_val, y_val = blobs(seed=1)


def linear():
    """Return a linear network that starts at the same θ each time."""
    module = nn.Linear(4, 3).double()
    for parameter in module.parameters():
        size = parameter.numel()
        parameter.data = torch.linspace(-1, 1, size).double().view(parameter.shape)
    return module


def by_hand(n_iter, optimizer=torch.optim.SGD, clip=None, schedule=None, **params):
    """Return θ, and which steps were clipped, of gradient descent in plain PyTorch."""
    module, Xt, yt = linear(), torch.tensor(X), torch.tensor(y)
    stepper = optimizer(module.parameters(), **params)
    scheduler = None if schedule is None else schedule(stepper)
    clipped = 0
    for _ in range(n_iter):
        stepper.zero_grad()
        nn.functional.cross_entropy(module(Xt), yt).backward()
        if clip is not None:
            norm = nn.utils.clip_grad_norm_(module.parameters(), clip)
            clipped += float(norm) > clip
        stepper.step()
        if scheduler is not None:
            scheduler.step()
    return flat(module), clipped


def descent(**params):
    return classifier(module=linear, method="gd", dtype="float64", **params)


# Clipping.


@pytest.mark.parametrize(
    "optimizer", [{}, {"optimizer_params": {"momentum": 0.9}}, {"optimizer": "adamw"}]
)
def test_clipping_is_that_of_pytorch(optimizer):
    clf = descent(training={"clip_norm": 0.8}, **optimizer).fit(X, y)
    kind = torch.optim.AdamW if "optimizer" in optimizer else torch.optim.SGD
    params = {"lr": 0.1, **optimizer.get("optimizer_params", {})}
    theta, clipped = by_hand(30, kind, clip=0.8, **params)
    np.testing.assert_allclose(clf.params_, theta, rtol=1e-10, atol=1e-12)
    assert 0 < clipped < 30
    assert clf.history_["n_clipped"].tolist()[-1] == clipped
    assert clf.history_["n_clipped"].tolist()[0] == 0


def test_what_is_clipped_is_the_noisy_gradient():
    """Noise of norm 1e4 makes every step of length η c; the law's size stays."""
    settings = {"method": GLDConst(sigma=1e4), "keep_params_every": 1}
    clf = classifier(training={"clip_norm": 0.5}, **settings).fit(X, y)
    steps = np.diff(clf.trajectory_.params.astype(float), axis=0)
    np.testing.assert_allclose(np.linalg.norm(steps, axis=1), 0.1 * 0.5, rtol=1e-4)
    wanted = 1e4 * np.sqrt(len(clf.params_))
    np.testing.assert_allclose(clf.history_["noise_norm"], wanted, rtol=1e-5)
    assert clf.history_["n_clipped"].tolist() == [0, 10, 20, 30]
    assert "n_clipped" not in classifier().fit(X, y).history_


def test_a_norm_whose_square_overflows_is_clipped():
    clf = classifier(
        method=GLDConst(sigma=1e19), training={"clip_norm": 1.0}, max_iter=2
    )
    clf.set_params(keep_params_every=1).fit(X, y)
    steps = np.diff(clf.trajectory_.params.astype(float), axis=0)
    np.testing.assert_allclose(np.linalg.norm(steps, axis=1), 0.1, rtol=1e-4)


def test_clipped_steps_are_counted_over_fits_and_a_divergence():
    settings = {"training": {"clip_norm": 0.3}, "warm_start": True}
    clf = descent(**settings).fit(X, y)
    first = clf.history_["n_clipped"].iloc[-1]
    clf.fit(X, y)
    whole = by_hand(60, clip=0.3, lr=0.1)[1]
    assert first <= clf.history_["n_clipped"].iloc[-1] == whole
    with pytest.warns(UserWarning, match="Stopped at the last"):
        reg = regressor(
            lr=1e30,
            training={"clip_norm": 1e30},
            on_divergence="stop",
            method="gd",
            module=lambda: nn.Linear(4, 1),
        ).fit(*plane())
    assert reg.history_["n_clipped"].iloc[-1] <= reg.n_iter_


@pytest.mark.parametrize(
    "method", [GLDConst(temperature=1.0), "svag", "anti_pgd"], ids=str
)
def test_clipping_is_refused_where_steps_must_be_plain(method):
    params = {"method_params": {"match": "none"}} if method == "anti_pgd" else {}
    clf = classifier(method=method, training={"clip_norm": 1.0}, **params)
    with pytest.raises(ValueError, match=r"Got clip_norm=1\.0; leave it at None"):
        clf.fit(X, y)


def test_the_warmup_is_neither_clipped_nor_scheduled():
    warmup = {"max_iter": 20, "lr": 0.1}
    plain = descent(warmup=warmup, max_iter=0).fit(X, y)
    training = {"clip_norm": 1e-3, "schedule": "cosine"}
    clf = descent(warmup=warmup, max_iter=0, training=training).fit(X, y)
    np.testing.assert_array_equal(clf.params_, plain.params_)


# Schedules.


def one_cycle(optimizer):
    return lr_scheduler.OneCycleLR(optimizer, max_lr=0.5, total_steps=30)


def chained(optimizer, factor):
    parts = [
        lr_scheduler.LinearLR(optimizer, 0.1, 1.0, total_iters=5),
        lr_scheduler.ExponentialLR(optimizer, factor),
    ]
    return lr_scheduler.SequentialLR(optimizer, parts, [5])


SCHEDULES = {
    "cosine": (
        {"schedule": "cosine"},
        lambda o: lr_scheduler.CosineAnnealingLR(o, 30),
    ),
    "linear": (
        {"schedule": "linear"},
        lambda o: lr_scheduler.LambdaLR(o, lambda t: 1 - t / 30),
    ),
    "class": (
        {
            "schedule": lr_scheduler.StepLR,
            "schedule_params": {"step_size": 7, "gamma": 0.5},
        },
        lambda o: lr_scheduler.StepLR(o, 7, 0.5),
    ),
    "momentum too": ({"schedule": one_cycle}, one_cycle),
    "function": (
        {"schedule": chained, "schedule_params": {"factor": 0.9}},
        lambda o: chained(o, 0.9),
    ),
    "longer": (
        {"schedule": "cosine", "schedule_params": {"T_max": 50, "eta_min": 0.01}},
        lambda o: lr_scheduler.CosineAnnealingLR(o, 50, 0.01),
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_is_that_of_pytorch(name):
    training, schedule = SCHEDULES[name]
    clf = descent(training=training).fit(X, y)
    theta, _ = by_hand(30, schedule=schedule, lr=0.1)
    np.testing.assert_allclose(clf.params_, theta, rtol=1e-10, atol=1e-12)
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1)
    scheduler, rates = schedule(optimizer), []
    for _ in range(30):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    wanted = [rates[0], rates[10], rates[20], rates[29]]
    np.testing.assert_allclose(clf.history_["lr"], wanted, rtol=1e-12)


def test_adam_and_groups_with_rates_of_their_own():
    """AdamW's first moment is what OneCycleLR changes, in each group."""
    groups = [("weight", {"lr": 0.02})]
    schedule = {
        "schedule": lr_scheduler.OneCycleLR,
        "schedule_params": {"max_lr": [0.1, 0.2], "total_steps": 30},
    }
    clf = descent(
        optimizer="adamw", optimizer_params={"param_groups": groups}, training=schedule
    ).fit(X, y)
    module, Xt, yt = linear(), torch.tensor(X), torch.tensor(y)
    optimizer = torch.optim.AdamW(
        [{"params": [module.weight], "lr": 0.02}, {"params": [module.bias]}], lr=0.1
    )
    scheduler = lr_scheduler.OneCycleLR(optimizer, [0.1, 0.2], total_steps=30)
    for _ in range(30):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(Xt), yt).backward()
        optimizer.step()
        scheduler.step()
    np.testing.assert_allclose(clf.params_, flat(module), rtol=1e-9, atol=1e-12)


def test_a_law_is_told_the_rate():
    clf = classifier(
        method=GLDConst(temperature=0.1), training={"schedule": "linear"}
    ).fit(X, y)
    lr = 0.1 * (1 - np.array([0, 10, 20, 29]) / 30)
    wanted = np.sqrt(2 * 0.1 * len(clf.params_) / (len(X) * lr))
    np.testing.assert_allclose(clf.history_["noise_norm"], wanted, rtol=1e-5)


def test_small_steps_share_the_rate_of_their_iteration():
    """svag at l = 1 is sgd's law of two draws less; at l the rows tell the same lr."""
    rates = [
        classifier(
            method="svag",
            method_params={"n_substeps": n},
            training=SCHEDULES["class"][0],
        )
        .fit(X, y)
        .history_["lr"]
        .tolist()
        for n in (1, 4)
    ]
    assert rates[0] == rates[1] == [0.1, 0.05, 0.025, 0.1 / 16]


def test_a_schedule_begins_anew_with_each_fit():
    clf = descent(training={"schedule": "linear"}, warm_start=True).fit(X, y).fit(X, y)
    module = linear()
    Xt, yt = torch.tensor(X), torch.tensor(y)
    for t in [*range(30), *range(30)]:
        loss = nn.functional.cross_entropy(module(Xt), yt)
        slopes = torch.autograd.grad(loss, list(module.parameters()))
        with torch.no_grad():
            for parameter, slope in zip(module.parameters(), slopes, strict=True):
                parameter -= 0.1 * (1 - t / 30) * slope
    np.testing.assert_allclose(clf.params_, flat(module), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("training", "error", "match"),
    [
        ({"schedule": "cosin"}, ValueError, "did you mean 'cosine'"),
        ({"schedule": 0.5}, TypeError, r"schedule must be a name \(cosine, linear\)"),
        ({"schedule": len}, ValueError, "what len takes"),
        ({"schedule": lambda optimizer: 3}, TypeError, "Got 3 from"),
        (
            {"schedule": lr_scheduler.StepLR, "schedule_params": {"step": 3}},
            ValueError,
            "what StepLR takes",
        ),
        (
            {"schedule": lr_scheduler.ReduceLROnPlateau},
            ValueError,
            "monitor='train_loss'",
        ),
        (
            {
                "schedule": lr_scheduler.OneCycleLR,
                "schedule_params": {"max_lr": 1.0, "total_steps": 20},
            },
            ValueError,
            "must last for 30 iterations. Got an error after 21",
        ),
        (
            {
                "schedule": lr_scheduler.LambdaLR,
                "schedule_params": {"lr_lambda": lambda t: 1 - t / 10},
            },
            ValueError,
            "not negative.*in iteration 11",
        ),
        ({"schedule_params": {"T_max": 3}}, ValueError, "no schedule; add one"),
        ({"schedule": "cosine", "schedule_params": 3}, TypeError, "must be a dict"),
    ],
)
def test_schedules_are_checked_before_work(training, error, match):
    calls = []
    clf = classifier(
        training=training, warmup={"max_iter": 1}, metrics={"calls": calls.append}
    )
    with pytest.raises(error, match=match):
        clf.fit(X, y)
    assert not calls


def test_a_schedule_that_a_law_cannot_follow():
    zero = {
        "schedule": lr_scheduler.LambdaLR,
        "schedule_params": {"lr_lambda": lambda t: float(t < 12)},
    }
    with pytest.raises(ValueError, match="η = 0 in iteration 12"):
        classifier(method=GLDConst(temperature=1.0), training=zero).fit(X, y)
    classifier(method="gld_const", training=zero).fit(X, y)
    for method in (GLDConst(temperature=1.0), "svag"):
        with pytest.raises(ValueError, match=r"'momentum': 0\.95"):
            classifier(method=method, training={"schedule": one_cycle}).fit(X, y)
    both = classifier(training={"schedule": "cosine"}, callbacks=[LRScheduler()])
    with pytest.raises(ValueError, match="Got the callback LRScheduler too"):
        both.fit(X, y)


# An end before the last iteration.


class Script(Callback):
    """Says at each block where the best score so far is."""

    def initialize(self):
        self.seen = []
        return self

    def on_epoch_end(self, net, **kwargs):
        self.seen.append(flat(net.module_).copy())


def scikit_learns(scores, n_iter_no_change, tol):
    """Return after how many epochs an MLPClassifier stops, and its best epoch."""
    best, count, at = -np.inf, 0, None
    for i, score in enumerate(scores):
        count = count + 1 if score < best + tol else 0
        if score > best:
            best, at = score, i
        if count > n_iter_no_change:
            return i + 1, at
    return len(scores), at


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("tol", [0.0, 0.05])
def test_the_rules_are_scikit_learns(seed, tol):
    scores = np.random.default_rng(seed).random(60).round(1)
    stopping = EarlyStopping("valid_score", 4, tol)
    falling = EarlyStopping("loss", 4, tol)
    n_blocks, best = scikit_learns(scores, 4, tol)
    for i, score in enumerate(scores.tolist()):
        theta = torch.full((2,), float(i))
        stopping.judge({"valid_score": score, "iteration": 10 * i}, theta)
        falling.judge({"loss": -score, "iteration": 10 * i}, theta)
        theta += 0.5  # it moves in place
        assert stopping.stops == falling.stops == (i + 1 >= n_blocks)
        if stopping.stops:
            break
    assert i + 1 == n_blocks
    assert stopping.best_iteration == 10 * best
    assert stopping.best_theta.tolist() == [best, best]
    assert falling.best_theta is None


def early(**settings):
    given = {"early_stopping": True, "n_iter_no_change": 3, **settings}
    return {"training": given, "record_every": 5, "max_iter": 600, "method": "sgd"}


def test_the_best_block_is_what_comes_out():
    script = Script()
    clf = classifier(**early(), lr=1.0, callbacks=[("script", script)])
    clf.fit(X, y, X_val=X_val, y_val=y_val)
    assert 0 < clf.n_iter_ < 600
    rows = clf.history_.iloc[1:]
    n_blocks, best = scikit_learns(rows["valid_score"].tolist(), 3, 1e-4)
    assert n_blocks == len(rows) == clf.n_iter_ // 5
    assert clf.best_iteration_ == 5 * (best + 1)
    seen = dict(clf.net_.callbacks_)["script"].seen
    np.testing.assert_array_equal(clf.params_, seen[best])
    assert clf.score(X_val, y_val) == rows["valid_score"].max()
    # All of X is trained on.
    assert clf.risk_.n_examples == len(X)


class Sees(Callback):
    """Keeps the data that are trained on."""

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        self.X, self.y = X, y


def split_of(clf, X):
    """Return the rows of X that a fit has trained on, and those it has held out."""
    seen = dict(clf.net_.callbacks_)["sees"]
    rows = X.astype(np.float32).tolist()
    left = [rows.index(row) for row in seen.X.tolist()]
    return left, sorted(set(range(len(X))) - set(left))


def test_a_part_of_each_class_is_held_out():
    X, y = blobs(90)
    weight = np.linspace(1, 2, 90)
    settings = early(validation_fraction=0.2) | {"class_weight": "balanced"}

    def fitted(**params):
        callbacks = [("sees", Sees())]
        return classifier(**settings, callbacks=callbacks, **params).fit(X, y, weight)

    clf = fitted()
    left, out = split_of(clf, X)
    assert len(left) == len(set(left)) == 72 == clf.risk_.n_examples
    assert np.bincount(y[out]).tolist() == [6, 6, 6]
    best = clf.history_["valid_score"].iloc[1:].max()
    assert accuracy_score(y[out], clf.predict(X[out])) == best
    # Weights and class weights are those of the part that is trained on.
    plain = classifier(max_iter=0, class_weight="balanced", params_init=clf.params_)
    other = plain.fit(X[left], y[left], weight[left])
    theta = clf.risk_.params()
    assert float(clf.risk_.value(theta)) == pytest.approx(
        float(other.risk_.value(theta)), rel=1e-6
    )
    again = fitted()
    assert split_of(again, X) == (left, out)
    np.testing.assert_array_equal(again.params_, clf.params_)
    assert split_of(fitted(random_state=1), X)[1] != out


def test_a_regressor_holds_out_any():
    X, y = plane(50, n_targets=2)
    reg = regressor(**early(), callbacks=[("sees", Sees())]).fit(X, y)
    left, out = split_of(reg, X)
    assert (len(left), len(out)) == (45, 5)
    best = reg.history_["valid_score"].iloc[1:].max()
    assert reg.score(X[out], y[out]) == pytest.approx(best, rel=1e-6)


def test_a_training_loss_that_does_not_fall():
    """Gradient descent on a small lr: L falls by less than tol a block."""
    training = {"tol": 1.0, "n_iter_no_change": 2}
    clf = descent(training=training, record_every=5).fit(X, y)
    losses = clf.history_["loss"].tolist()
    assert scikit_learns([-loss for loss in losses[1:]], 2, 1.0)[0] == 4
    assert clf.n_iter_ == 20
    assert clf.best_iteration_ is None
    np.testing.assert_allclose(clf.params_, by_hand(20, lr=0.1)[0], rtol=1e-10)


@pytest.mark.parametrize("n_writes", [2, 5, 9])
def test_an_early_end_is_found_again(monkeypatch, tmp_path, n_writes):
    settings = early() | {
        "lr": 1.0,
        "warmup": {"max_iter": 3},
        "training": {**early()["training"], "clip_norm": 1.0, "schedule": "cosine"},
        "keep_params_every": 4,
    }
    whole = classifier(**settings).fit(X, y)
    assert whole.n_iter_ < 600
    folder = {"path": tmp_path / "run", "every": 3}
    with killed_after(monkeypatch, n_writes):
        classifier(**settings, checkpoint_dir=folder).fit(X, y)
    for _ in range(2):  # it goes on, and is read back
        again = classifier(**settings, checkpoint_dir=folder).fit(X, y)
        np.testing.assert_array_equal(again.params_, whole.params_)
        assert_frame_equal(again.history_, whole.history_, check_exact=True)
        assert again.best_iteration_ == whole.best_iteration_
        assert again.n_iter_ == whole.n_iter_
        np.testing.assert_array_equal(
            again.trajectory_.params, whole.trajectory_.params
        )


def test_a_warm_start_goes_on_from_the_best():
    clf = classifier(**early(), lr=1.0, warm_start=True).fit(X, y)
    best, n_before = clf.params_, clf.n_iter_
    clf.set_params(max_iter=0).fit(X, y)
    np.testing.assert_array_equal(clf.params_, best)
    assert clf.n_iter_ == n_before
    assert clf.best_iteration_ is None


@pytest.mark.parametrize(
    ("training", "params", "error", "match"),
    [
        ({"clip": 1}, {}, ValueError, "setting of training 'clip'.*'clip_norm'"),
        ({"clip_norm": 0}, {}, ValueError, r"training\['clip_norm'\] must be"),
        ({"clip_norm": "a"}, {}, ValueError, r"training\['clip_norm'\] must be"),
        ({"early_stopping": 1}, {}, TypeError, "early_stopping.*True or False"),
        ({"validation_fraction": 0.1}, {}, ValueError, "add 'early_stopping': True"),
        (
            {"early_stopping": True, "validation_fraction": 1.5},
            {},
            ValueError,
            "between 0.0 and 1.0",
        ),
        (
            {"early_stopping": True, "validation_fraction": 0.0},
            {},
            ValueError,
            "Pass X_val",
        ),
        (
            {"early_stopping": True, "validation_fraction": 0.01},
            {},
            ValueError,
            "validation_fraction of 0.01 of 60",
        ),
        ({"n_iter_no_change": 0}, {}, ValueError, "n_iter_no_change"),
        ({"tol": -1}, {}, ValueError, "tol"),
        (
            {"early_stopping": True},
            {"warm_start": True, "random_state": None},
            ValueError,
            "an integer random_state",
        ),
    ],
)
def test_settings_are_checked(training, params, error, match):
    with pytest.raises(error, match=match):
        classifier(training=training, **params).fit(X, y)


def test_what_is_held_out_may_be_given_in_one_way():
    clf = classifier(**early(validation_fraction=0.1))
    with pytest.raises(ValueError, match="leave out one of them"):
        clf.fit(X, y, X_val=X_val, y_val=y_val)
    tensors = data.TensorDataset(torch.tensor(X).float(), torch.tensor(y))
    with pytest.raises(ValueError, match="Got a data set: pass X_val"):
        classifier(**early()).fit(tensors)
    found = classifier(**early()).fit(tensors, X_val=X_val, y_val=y_val)
    assert found.best_iteration_ is not None
    few = regressor(**early(validation_fraction=0.01))
    with pytest.raises(ValueError, match=r"two to look at\. Got 59 and 1"):
        few.fit(*plane())


def test_callbacks_see_the_scores_and_the_best_theta():
    class Ends(Callback):
        def on_train_end(self, net, **kwargs):
            self.theta = flat(net.module_).copy()

    score = EpochScoring("accuracy", name="own", use_caching=False)
    ends = ("ends", Ends())
    clf = classifier(**early(), lr=1.0, callbacks=[score, ends])
    clf.fit(X, y)
    own = [row["own"] for row in clf.net_.history]
    assert own == clf.history_["valid_score"].tolist()[1:]
    theta = dict(clf.net_.callbacks_)["ends"].theta
    np.testing.assert_array_equal(theta, clf.params_)


def test_a_grid_searches_each_setting():
    clf = classifier(max_iter=5).set_params(training__clip_norm=0.5)
    assert clone(clf).training == {"clip_norm": 0.5}
    grid = GridSearchCV(
        clf,
        {"training__schedule": [None, "cosine"], "training__clip_norm": [None, 0.1]},
        cv=2,
    ).fit(X, y)
    assert len(grid.cv_results_["params"]) == 4
    assert clf.training == {"clip_norm": 0.5}
    plain = classifier(max_iter=5).fit(X, y)
    none = classifier(max_iter=5, training={"clip_norm": None, "tol": None}).fit(X, y)
    np.testing.assert_array_equal(plain.params_, none.params_)


def test_a_comparison():
    """Clipping and schedules may be a method's own; an end may not."""
    methods = {
        "sgd": {},
        "clipped": {"method": "sgd", "training": {"clip_norm": 0.1}},
        "cosine": {"method": "sgd", "training__schedule": "cosine"},
    }
    found = compare_dynamics(methods, X, y, estimator=classifier(), n_seeds=[3])
    ends = found.table[found.table["iteration"] == 30].set_index("method")
    assert ends["n_clipped"].isna().tolist() == [True, False, True]
    alone = classifier(method="sgd", training={"clip_norm": 0.1}, random_state=3)
    alone.fit(X, y)
    assert ends.loc["clipped", "loss"] == alone.history_["loss"].iloc[-1]
    assert "training" not in found.protocol["estimator"]
    assert found.protocol["methods"]["clipped"]["training"] == {"clip_norm": 0.1}
    for training in ({"early_stopping": True}, {"tol": 0.1}):
        with pytest.raises(ValueError, match="same number of iterations"):
            compare_dynamics(["gd"], X, y, estimator=classifier(training=training))
        one = {"gd": {"training": training}}
        with pytest.raises(ValueError, match="for 'gd'"):
            compare_dynamics(one, X, y, estimator=classifier())


class Named(nn.Module):
    """Takes two arrays by name."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, first, second):
        return self.linear(torch.cat([first, second], 1))


def test_several_arrays():
    named = {"first": X[:, :1], "second": X[:, 1:]}
    settings = early() | {"keep_params_every": 50, "max_iter": 100}
    clf = classifier(module=Named, **settings).fit(named, y)
    assert clf.risk_.n_examples == 54
    plain = classifier(module=lambda: nn.Linear(4, 3), **settings).fit(X, y)
    # The rows that are held out are the same ones.
    assert (
        clf.history_["valid_score"].tolist() == plain.history_["valid_score"].tolist()
    )
    np.testing.assert_allclose(
        clf.predict_proba(named, clf.trajectory_),
        plain.predict_proba(X, plain.trajectory_),
        rtol=1e-5,
    )
