"""skorch's callbacks, counted in blocks of record_every iterations."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from skorch.callbacks import (
    BatchScoring,
    Callback,
    Checkpoint,
    EarlyStopping,
    EpochScoring,
    Freezer,
    GradientNormClipping,
    Initializer,
    InputShapeSetter,
    LoadInitState,
    LRScheduler,
    MlflowLogger,
    ProgressBar,
    TensorBoard,
)

from ._problems import blobs, classifier, flat, plane, regressor

X, y = blobs()
X_val, y_val = blobs(seed=1)


class Counter(Callback):
    """Counts what it is told."""

    def __init__(self):
        self.events = []

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        self.events.append("train begins")

    def on_epoch_end(self, net, **kwargs):
        self.events.append(net.history[-1, "iteration"])

    def on_train_end(self, net, X=None, y=None, **kwargs):
        self.events.append("train ends")


def test_a_block_is_an_epoch():
    counter = Counter()
    classifier(callbacks=[counter], max_iter=25, record_every=10).fit(X, y)
    assert counter.events == ["train begins", 10, 20, 25, "train ends"]


@pytest.mark.parametrize(
    "callback",
    [
        ProgressBar(),
        ProgressBar,
        ("bar", ProgressBar()),
        GradientNormClipping(1.0),
        BatchScoring("accuracy"),
        LRScheduler(policy="StepLR", step_size=1, step_every="batch"),
    ],
    ids=lambda callback: str(callback)[:30],
)
def test_callbacks_of_batches_are_refused(callback):
    clf = classifier(callbacks=[callback])
    with pytest.raises(ValueError, match=r"works on batches.*block of record_every"):
        clf.fit(X, y)


class Writer:
    """In place of TensorBoard's SummaryWriter and of MLflow's client."""

    def __init__(self):
        self.rows = []

    def add_scalar(self, tag, scalar_value, global_step):
        self.rows.append((tag.split("/")[-1], global_step, scalar_value))

    def log_metric(self, run_id, key, value, step):
        self.rows.append((key, step, value))

    def close(self):
        pass

    def set_terminated(self, *args, **kwargs):
        pass


@pytest.mark.parametrize("logger", ["TensorBoard", "MlflowLogger"])
def test_loggers_that_batches_do_nothing_for_log_every_block(logger):
    writer = Writer()
    callback = {
        "TensorBoard": lambda: TensorBoard(writer),
        "MlflowLogger": lambda: MlflowLogger(
            run=SimpleNamespace(info=SimpleNamespace(run_id=1)),
            client=writer,
            create_artifact=False,
        ),
    }[logger]()
    clf = classifier(callbacks=[callback], max_iter=30, record_every=10).fit(X, y)
    logged = {step: value for key, step, value in writer.rows if key == "train_loss"}
    assert sorted(logged) == [1, 2, 3]
    wanted = clf.history_.query("iteration > 0")["loss"]
    np.testing.assert_allclose([logged[step] for step in (1, 2, 3)], wanted)


def test_a_logger_of_batches_is_refused():
    callback = MlflowLogger(run=1, client=Writer(), log_on_batch_end=True)
    with pytest.raises(ValueError, match="MlflowLogger works on batches"):
        classifier(callbacks=[callback]).fit(X, y)


def test_a_callback_says_that_it_needs_no_batches():
    class Own(Callback):
        def on_batch_end(self, net, **kwargs):
            raise AssertionError("there are no batches")

    with pytest.raises(ValueError, match=r"works_on_batches = False"):
        classifier(callbacks=[Own()]).fit(X, y)
    Own.works_on_batches = False
    classifier(callbacks=[Own()]).fit(X, y)


@pytest.mark.parametrize(
    ("callback", "match"),
    [
        (Freezer("layers.0.*"), "requires_grad=False"),
        (InputShapeSetter(), "module_params"),
    ],
)
def test_callbacks_that_would_have_no_effect_are_refused(callback, match):
    with pytest.raises(ValueError, match=match):
        classifier(callbacks=[callback]).fit(X, y)


def test_a_callback_may_not_build_the_module_anew():
    class Anew(Callback):
        def on_epoch_begin(self, net, **kwargs):
            net.set_params(module__n_features=4, module__n_outputs=3)

    with pytest.raises(RuntimeError, match=r"initialised the net anew.*module_params"):
        classifier(callbacks=[Anew]).fit(X, y)


def test_what_is_no_callback_is_refused():
    with pytest.raises(TypeError, match=r"must be skorch callbacks .* Got 'bar'"):
        classifier(callbacks=["bar"]).fit(X, y)


def test_parameters_of_callbacks_are_set_on_the_callbacks():
    clf = classifier(callbacks=[("lr", LRScheduler())])
    with pytest.raises(ValueError, match=r"Got 'callbacks__lr__policy'; set .* object"):
        clf.set_params(callbacks__lr__policy="StepLR")


def test_early_stopping_stops_in_order():
    counter = Counter()
    stop = EarlyStopping(monitor="train_loss", patience=2, threshold=10.0)
    stop.set_params(threshold_mode="abs", sink=lambda text: None)
    clf = classifier(callbacks=[stop, counter], max_iter=1000).fit(X, y)
    # The first block is the best, and two are not.
    assert clf.n_iter_ == 30
    assert clf.history_["iteration"].tolist() == [0, 10, 20, 30]
    assert counter.events[-1] == "train ends"
    assert len(clf.net_.history) == 3


def test_early_stopping_on_validation_data_brings_back_the_best():
    noise = np.random.default_rng(0).integers(0, 3, size=len(y))
    stop = EarlyStopping(patience=3, load_best=True, sink=lambda text: None)
    clf = classifier(callbacks=[stop], max_iter=2000, lr=0.5, method="gd")
    clf.fit(X, noise, X_val=X_val, y_val=y_val)
    assert clf.n_iter_ < 2000
    losses = clf.history_["valid_loss"].iloc[1:]
    assert losses.iloc[-1] > losses.min()
    proba = clf.predict_proba(X_val)[np.arange(len(y_val)), y_val]
    assert -np.log(proba).mean() == pytest.approx(losses.min(), rel=1e-5)
    np.testing.assert_array_equal(clf.params_, flat(clf.module_))


def test_a_checkpoint_brings_back_the_best(tmp_path):
    checkpoint = Checkpoint(monitor="valid_loss_best", load_best=True, dirname=tmp_path)
    checkpoint.set_params(sink=lambda text: None)
    noise = np.random.default_rng(0).integers(0, 3, size=len(y))
    clf = classifier(callbacks=[checkpoint], max_iter=300, lr=0.5, method="gd")
    clf.fit(X, noise, X_val=X_val, y_val=y_val)
    losses = clf.history_["valid_loss"].iloc[1:]
    assert losses.iloc[-1] > losses.min()
    proba = clf.predict_proba(X_val)[np.arange(len(y_val)), y_val]
    assert -np.log(proba).mean() == pytest.approx(losses.min(), rel=1e-5)
    np.testing.assert_array_equal(clf.params_, flat(clf.module_))
    stored = torch.load(tmp_path / "params.pt", weights_only=True)
    for name, parameter in clf.module_.named_parameters():
        assert torch.equal(stored[name], parameter)


def test_a_run_begins_from_a_checkpoint(tmp_path):
    checkpoint = Checkpoint(monitor=None, dirname=tmp_path, sink=lambda text: None)
    first = classifier(callbacks=[checkpoint], method="gd").fit(X, y)
    state = LoadInitState(checkpoint)
    second = classifier(callbacks=[state], method="gd", max_iter=1).fit(X, y)
    assert second.history_["loss"].iloc[-1] < first.history_["loss"].iloc[-1]


def test_an_initializer_moves_theta():
    zeros = Initializer("*", fn=torch.nn.init.zeros_)
    clf = classifier(callbacks=[zeros], max_iter=1, method="gd").fit(X, y)
    assert np.abs(clf.params_).max() < 0.1
    np.testing.assert_array_equal(clf.params_, flat(clf.module_))


# ------------------------------------------------------- θ that a callback sets
def given(module):
    """Return a state of the module, far from where it begins."""
    state = module.state_dict()
    rng = torch.Generator().manual_seed(5)
    return {n: torch.randn(v.shape, generator=rng) for n, v in state.items()}


def write(module, state):
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(state[name])


def put(module, state):
    for name, parameter in module.named_parameters():
        parameter.data = state[name]


WAYS = {
    "load": lambda module, state: module.load_state_dict(state),
    "assign": lambda module, state: module.load_state_dict(state, assign=True),
    "write": write,
    "put": put,
}


class Sets(Callback):
    """Gives the module other parameters, when told of an event a first time."""

    def __init__(self, event, way="load", at=0):
        self.event, self.way, self.at = event, way, at
        self.set = False

    def _act(self, event, net):
        if event == self.event and len(net.history) >= self.at and not self.set:
            self.set = True
            WAYS[self.way](net.module_, given(net.module_))

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        self._act("train begin", net)

    def on_epoch_begin(self, net, **kwargs):
        self._act("epoch begin", net)

    def on_epoch_end(self, net, **kwargs):
        self._act("epoch end", net)

    def on_train_end(self, net, X=None, y=None, **kwargs):
        self._act("train end", net)


def vector(clf):
    state = given(clf.module_)
    return torch.cat([v.reshape(-1) for v in state.values()]).numpy()


OPTIMIZERS = {
    "sgd": {},
    "adam": {"optimizer": "adam"},
    "groups": {"optimizer_params": {"param_groups": [("*bias", {"lr": 0.1})]}},
    "layers": {"optimizer": torch.optim.Adafactor},
}


@pytest.mark.parametrize("method", ["sgd", "gld_const", "gld_hessian", "gld_leading"])
@pytest.mark.parametrize("way", WAYS)
def test_theta_set_when_training_begins_is_theta_0(method, way):
    settings = {"method": method, "refresh_every": None if method == "sgd" else 100}
    clf = classifier(callbacks=[Sets("train begin", way)], **settings).fit(X, y)
    plain = classifier(params_init=vector(clf), **settings).fit(X, y)
    assert clf.history_.equals(plain.history_)
    np.testing.assert_array_equal(clf.params_, plain.params_)
    np.testing.assert_array_equal(clf.params_, flat(clf.module_))


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("way", WAYS)
def test_also_with_optimizers_that_hold_the_parameters(name, way):
    settings = {"method": "gld_full", **OPTIMIZERS[name]}
    clf = classifier(callbacks=[Sets("train begin", way)], **settings).fit(X, y)
    plain = classifier(params_init=vector(clf), **settings).fit(X, y)
    np.testing.assert_array_equal(clf.params_, plain.params_)
    np.testing.assert_array_equal(clf.params_, flat(clf.module_))


def test_an_initializer_sets_theta_0():
    zeros = Initializer("*", fn=torch.nn.init.zeros_)
    settings = {"method": "gld_dynamic", "refresh_every": 100}
    clf = classifier(callbacks=[zeros], **settings).fit(X, y)
    plain = classifier(params_init=np.zeros_like(clf.params_), **settings).fit(X, y)
    assert clf.history_.equals(plain.history_)
    assert clf.history_["loss"].iloc[0] == pytest.approx(np.log(3))


@pytest.mark.parametrize("way", WAYS)
def test_without_iterations_the_callbacks_theta_is_the_result(way):
    clf = classifier(callbacks=[Sets("train begin", way)], max_iter=0).fit(X, y)
    np.testing.assert_array_equal(clf.params_, vector(clf))
    np.testing.assert_array_equal(clf.risk_.params().numpy(), vector(clf))
    with torch.no_grad():
        f = clf.module_(torch.as_tensor(X, dtype=torch.float32))
    loss = float(torch.nn.functional.cross_entropy(f, torch.as_tensor(y)))
    assert clf.history_["loss"].tolist() == pytest.approx([loss])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("event", ["epoch begin", "epoch end"])
@pytest.mark.parametrize(
    "method", ["gld_const", "gld_hessian", "gld_first_eigenvector"]
)
def test_theta_set_later_is_measured_anew(method, event, way):
    # Without it the law's state would be of another θ for 100 iterations.
    at = 2 if event == "epoch begin" else 1
    settings = {"refresh_every": 100, "lr": 1e-6}
    callback = Sets(event, way, at)
    clf = classifier(callbacks=[callback], method=method, **settings).fit(X, y)
    plain = classifier(params_init=vector(clf), method=method, **settings).fit(X, y)
    for column in ("loss", "gradient_norm", "noise_norm"):
        found = clf.history_[column].iloc[2:]
        np.testing.assert_allclose(found, plain.history_[column].iloc[0], rtol=1e-2)
    np.testing.assert_array_equal(clf.params_, flat(clf.module_))


@pytest.mark.parametrize("way", WAYS)
def test_theta_set_when_training_ends_is_the_result(way):
    clf = classifier(callbacks=[Sets("train end", way)]).fit(X, y)
    np.testing.assert_array_equal(clf.params_, vector(clf))
    np.testing.assert_array_equal(clf.params_, flat(clf.module_))
    np.testing.assert_array_equal(clf.risk_.params().numpy(), vector(clf))


def test_gradients_set_to_none_come_back():
    class Clears(Callback):
        def on_epoch_begin(self, net, **kwargs):
            net.optimizer_.zero_grad()

    cleared = classifier(callbacks=[Clears]).fit(X, y)
    np.testing.assert_array_equal(cleared.params_, classifier().fit(X, y).params_)


def test_a_theta_that_has_no_loss_is_blamed_on_the_callback():
    class Spoils(Callback):
        def on_epoch_end(self, net, **kwargs):
            with torch.no_grad():
                next(net.module_.parameters()).fill_(np.inf)

    with pytest.raises(ArithmeticError, match=r"iteration 10, where a callback"):
        classifier(callbacks=[Spoils]).fit(X, y)
    stopped = classifier(callbacks=[Spoils], on_divergence="stop")
    with pytest.warns(UserWarning, match="where a callback has set θ"):
        stopped.fit(X, y)
    plain = classifier(max_iter=10).fit(X, y)
    np.testing.assert_array_equal(stopped.params_, plain.params_)
    assert stopped.n_iter_ == 10


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda m: m[1].running_mean.add_(1), r"1\.running_mean .*before fit"),
        (lambda m: m[2].weight.data.add_(1), r"2\.weight .*before fit"),
        (lambda m: m[0].weight.requires_grad_(False), "requires_grad=False"),
    ],
)
def test_what_theta_does_not_hold_may_not_change(change, match):
    class Changes(Callback):
        def on_train_begin(self, net, X=None, y=None, **kwargs):
            change(net.module_)

    nn = torch.nn
    module = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 3)).eval()
    module[2].weight.requires_grad_(False)
    with pytest.raises(RuntimeError, match=match):
        classifier(module=module, callbacks=[Changes], batch_norm="frozen").fit(X, y)


# ------------------------------------------------------------ what is monitored
@pytest.mark.parametrize(
    "callback",
    [
        EarlyStopping(monitor="loss"),
        EarlyStopping(monitor="train_los"),
        Checkpoint(monitor="train_loss_bestt"),
        Checkpoint(monitor="loss_best", dirname="unused"),
        LRScheduler("ReduceLROnPlateau", monitor="loss"),
        EarlyStopping(monitor="accuracy"),
        EarlyStopping(monitor="train_batch_size"),
    ],
    ids=lambda callback: f"{type(callback).__name__} {callback.monitor}",
)
def test_a_monitor_that_nobody_records_is_refused(monkeypatch, callback):
    monkeypatch.setattr("flatmin.dynamics.NoisyDescent.run", None)
    clf = classifier(callbacks=[callback], warmup={"max_iter": 5})
    match = r"Unknown name that the callback .* monitors .*There are: .*'train_loss'"
    with pytest.raises(ValueError, match=match):
        clf.fit(X, y, X_val=X_val, y_val=y_val)


def test_a_score_is_recorded_before_it_is_monitored():
    score = EpochScoring("accuracy", name="acc", lower_is_better=False, on_train=True)
    stop = EarlyStopping(monitor="acc", lower_is_better=False)
    classifier(callbacks=[score, stop]).fit(X, y)
    with pytest.raises(ValueError, match="Unknown name that the callback Early"):
        classifier(callbacks=[stop, score]).fit(X, y)


def test_every_name_in_the_history_may_be_monitored():
    class Records(Callback):
        def on_epoch_end(self, net, **kwargs):
            net.history.record("own", 1.0)

    metrics = {"norm": lambda risk, theta: theta.norm()}
    settings = {"metrics": metrics, "max_iter": 10}
    validation = {"X_val": X_val, "y_val": y_val}
    schedule = LRScheduler("StepLR", step_size=1)
    names = classifier(callbacks=[schedule], **settings).fit(X, y, **validation)
    for name in names.net_.history[-1].keys() - {"batches"}:
        stop = EarlyStopping(monitor=name)
        clf = classifier(callbacks=[schedule, stop], **settings)
        clf.fit(X, y, **validation)
    own = [Records(), EarlyStopping(monitor="own")]
    classifier(callbacks=own, **settings).fit(X, y)


def test_columns_of_the_training_may_be_monitored():
    """Those that are there with a schedule, clipping, or several steps an iteration."""
    training = {"clip_norm": 1e-3, "schedule": "linear"}
    for name in ("n_clipped", "lr"):
        stop = EarlyStopping(monitor=name, patience=9)
        clf = classifier(callbacks=[stop], training=training).fit(X, y)
        assert name in clf.history_
        with pytest.raises(ValueError, match=f"monitors '{name}'"):
            classifier(callbacks=[stop]).fit(X, y)
    stop = EarlyStopping(monitor="n_steps", patience=9)
    clf = classifier(callbacks=[stop], method="svag").fit(X, y)
    assert "n_steps" in clf.history_


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int64])
def test_epoch_scoring_of_a_classifier(kind):
    data, other = X.astype(kind), X_val.astype(kind)
    callbacks = [
        ("valid", EpochScoring("accuracy", lower_is_better=False, name="valid")),
        ("log", EpochScoring("neg_log_loss", lower_is_better=False, name="log")),
        ("train", EpochScoring("accuracy", on_train=True, name="train")),
    ]
    clf = classifier(callbacks=callbacks)
    clf.fit(
        data,
        np.array(["a", "b", "c"])[y],
        X_val=other,
        y_val=np.array(["a", "b", "c"])[y_val],
    )
    history, rows = clf.net_.history, clf.history_.iloc[1:]
    assert history[:, "valid"] == pytest.approx(rows["valid_score"].tolist())
    assert history[:, "train"] == pytest.approx(rows["train_score"].tolist())
    log = [-value for value in history[:, "log"]]
    assert log == pytest.approx(rows["valid_loss"].tolist(), rel=1e-5)


def test_epoch_scoring_of_one_logit():
    X, y = blobs(n_classes=2)
    scoring = EpochScoring("roc_auc", lower_is_better=False)
    accuracy = EpochScoring("accuracy", lower_is_better=False)
    clf = classifier(loss="binary_cross_entropy", callbacks=[scoring, accuracy])
    clf.fit(X, y, X_val=X, y_val=y)
    assert clf.net_.history[-1, "roc_auc"] > 0.8
    assert clf.net_.history[:, "accuracy"] == clf.history_["valid_score"][1:].tolist()


@pytest.mark.parametrize("n_targets", [None, 2])
def test_epoch_scoring_of_a_regressor(n_targets):
    X, y = plane(n_targets=n_targets)
    scoring = EpochScoring("r2", lower_is_better=False)
    reg = regressor(callbacks=[scoring], lr=0.05).fit(X, y, X_val=X, y_val=y)
    scores = reg.history_["valid_score"].iloc[1:].tolist()
    assert reg.net_.history[:, "r2"] == pytest.approx(scores)


def test_the_users_callbacks_are_told_of_the_metrics():
    best = Checkpoint(monitor="norm_best", dirname="unused")
    assert best.monitor == "norm_best"

    class Watch(Callback):
        def __init__(self):
            self.seen = []

        def on_epoch_end(self, net, **kwargs):
            self.seen.append(net.history[-1, "norm"])

    watch = Watch()
    metrics = {"norm": lambda risk, theta: theta.norm()}
    clf = classifier(callbacks=[watch], metrics=metrics).fit(X, y)
    assert watch.seen == clf.history_["norm"][1:].tolist()


class Tempered(torch.nn.Module):
    """Its temperature is a plain number, and it counts its passes in another."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(X.shape[1], 3)
        self.tau, self.n_passes = [1.0], 0

    def forward(self, x):
        self.n_passes += 1
        return self.linear(x) * self.tau[0]


class Changes(Callback):
    def __init__(self, change):
        self.change = change

    def on_epoch_end(self, net, **kwargs):
        self.change(net.module_)


def test_a_callback_that_changes_what_the_module_computes_is_refused():
    heat = Changes(lambda module: module.tau.__setitem__(0, 2.0))
    clf = classifier(module=Tempered(), callbacks=[heat])
    with pytest.raises(RuntimeError, match="changed a setting of the module"):
        clf.fit(X, y)


def test_a_setting_that_no_output_depends_on_may_change():
    count = Changes(lambda module: setattr(module, "n_passes", 10))
    clf = classifier(module=Tempered, callbacks=[count]).fit(X, y)
    plain = classifier(module=Tempered).fit(X, y)
    np.testing.assert_array_equal(clf.params_, plain.params_)
