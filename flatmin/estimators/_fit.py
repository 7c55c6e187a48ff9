"""A fit from its arguments to its last iteration."""

from __future__ import annotations

from typing import Any

import torch

from flatmin._runs.folder_lock import locked_folder
from flatmin._utils.fitted_attributes import adopt_attributes
from flatmin.dynamics import FlatBinding
from flatmin.estimators._checkpoints import RunCheckpoints
from flatmin.estimators._fitted import set_fitted
from flatmin.estimators._prepare import prepare, start_of
from flatmin.estimators._run import Run
from flatmin.estimators._training import make_net, train
from flatmin.estimators._warmup import warm_up
from flatmin.risk.ranks.collectives import Ranks

__all__ = ["run_fit"]


def run_fit(
    estimator: Any,
    learner: Any,
    ranks: Ranks,
    *,
    X: Any,
    y: Any,
    sample_weight: Any,
    validation: tuple[Any, Any],
) -> tuple[Run, Any, FlatBinding]:
    """Train a copy of an estimator, which itself stays as it is.

    Parameters
    ----------
    estimator : estimator
    learner : estimator
        The copy.
    ranks : Ranks
        Of which the first alone locks the folder and writes into it.
    X, y, sample_weight : object
        As in ``fit``.
    validation : tuple of (X_val, y_val)

    Returns
    -------
    run : Run
    net : skorch net
    binding : FlatBinding

    Raises
    ------
    KeyboardInterrupt
        After Ctrl-C. Where something has been trained, the estimator has it then.
    """
    run = prepare(learner, X, y, sample_weight, validation=validation, ranks=ranks)
    net = make_net(learner, run)
    binding = FlatBinding(net.module_, watch=bool(learner.callbacks))
    net.bind(binding)
    binding.assign(start_of(learner, run))
    writes = run.folder is not None and ranks.rank == 0
    with locked_folder(run.folder.path if run.folder and writes else None):
        saved = None
        if run.folder is not None:
            saved = RunCheckpoints(estimator, run, binding.theta, net.callbacks_)
            ranks.agree("the checkpoint", torch.tensor(saved.n_done))
        try:
            warm_up(estimator, run, binding, saved)
            train(learner, run, net, binding=binding, saved=saved)
        except KeyboardInterrupt:
            # Without a row of its own nothing has been trained.
            if getattr(net, "rows_", None) or (run.rows and not run.continues):
                set_fitted(learner, run, net, binding)
                adopt_attributes(estimator, learner)
            raise
    return run, net, binding
