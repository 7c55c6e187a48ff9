"""The skorch net around the iteration."""

import signal

import numpy as np
import pytest
import torch
from skorch.callbacks import Callback, EarlyStopping, EpochScoring, ProgressBar
from torch import nn

from flatmin.dynamics import (
    Checkpoints,
    NoisyNetClassifier,
    NoisyNetRegressor,
    Recorder,
    StopTraining,
    check_callbacks,
)

from ._problems import descent, network

X, y = np.zeros((12, 3)), np.zeros((12, 2))


def attached(max_iter=10, record_every=4, callbacks=(), **params):
    """Return a net that trains by a descent of its own."""
    run = descent(**params)
    net = NoisyNetRegressor(
        run.binding.module,
        max_epochs=-(-max_iter // record_every),
        train_split=None,
        callbacks=list(callbacks),
        callbacks__print_log=None,
        use_caching=False,
        verbose=0,
    ).initialize()
    run.optimizer = net.optimizer_  # what the net compares with
    net.attach(
        run,
        Recorder(run.risk, lambda outputs: 0.0),
        max_iter=max_iter,
        record_every=record_every,
        offset=100,
        progress=lambda steps: None,
        checkpoints=Checkpoints(),
    )
    return net


def test_an_epoch_is_a_block():
    net = attached()
    steps = torch.optim.SGD(net.descent_.binding.params, lr=0.1)
    net.optimizer_ = net.descent_.optimizer = steps
    net.fit_loop(X, y)
    assert [row["iteration"] for row in net.rows_] == [100, 104, 108, 110]
    assert net.history[:, "iteration"] == [104, 108, 110]
    losses = [row["loss"] for row in net.rows_[1:]]
    assert net.history[:, "train_loss"] == pytest.approx(losses)


def test_a_net_without_a_descent_says_what_to_do():
    net = attached()
    net.detach()
    with pytest.raises(RuntimeError, match="inside its flatmin estimator only"):
        net.fit_loop(X, y)


def test_prediction_leaves_the_global_generator():
    net = NoisyNetClassifier(
        network(), criterion=nn.CrossEntropyLoss, callbacks=None, verbose=0
    ).initialize()
    before = torch.get_rng_state()
    assert net.predict(X).shape == (12,)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.fixture
def ctrl_c():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield lambda: signal.raise_signal(signal.SIGINT)
    signal.signal(signal.SIGINT, before)


def request():
    raise KeyboardInterrupt


def request_again():
    try:
        request()
    except KeyboardInterrupt:
        raise


def with_clean_up(ctrl_c):
    try:
        ctrl_c()
    except KeyboardInterrupt:
        raise  # the user's is still the user's
    finally:
        len([])


class Act(Callback):
    """Does something when training begins."""

    def __init__(self, action):
        self.action = action

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        self.action()


@pytest.mark.parametrize("action", [request, request_again])
def test_a_callbacks_request_stops(action):
    net = attached(callbacks=[Act(action)])
    with pytest.raises(StopTraining):
        net.notify("on_train_begin", X=X, y=y)


@pytest.mark.parametrize("clean_up", [False, True])
def test_the_users_interrupt_goes_on(ctrl_c, clean_up):
    action = (lambda: with_clean_up(ctrl_c)) if clean_up else ctrl_c
    net = attached(callbacks=[Act(action)])
    with pytest.raises(KeyboardInterrupt):
        net.notify("on_train_begin", X=X, y=y)


def test_check_callbacks():
    scoring = EpochScoring("r2")
    check_callbacks([scoring, EarlyStopping, ("a", scoring), ("b", None)])
    with pytest.raises(ValueError, match="ProgressBar works on batches"):
        check_callbacks([("a", scoring), ("b", ProgressBar())])
    with pytest.raises(TypeError, match="Got 3"):
        check_callbacks([3])


def test_a_callback_of_ones_own_that_works_on_batches():
    class Own(Callback):
        def on_grad_computed(self, net, named_parameters, **kwargs):
            pass

    with pytest.raises(ValueError, match="Own works on batches"):
        check_callbacks([Own])
