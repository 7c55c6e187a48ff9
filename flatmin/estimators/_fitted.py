"""What a training leaves on its estimator."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import pandas as pd

from flatmin._utils.fitted_attributes import scratch_copy
from flatmin.dynamics import FlatBinding
from flatmin.estimators._net import FITTED_PARAMS
from flatmin.estimators._run import Run
from flatmin.estimators._start import read_start
from flatmin.estimators._trajectory import read_kept
from flatmin.risk.network.prepared_module import evaluation_mode

__all__ = ["as_fitted", "set_fitted"]

_P = ParamSpec("_P")
_R = TypeVar("_R")


def as_fitted(
    method: Callable[Concatenate[Any, _P], _R],
) -> Callable[Concatenate[Any, _P], _R]:
    """Run a method with the parameters of the fit in place of those set since.

    Parameters
    ----------
    method : callable
        Where parameters differ it gets a copy of the estimator, so that what it sets
        is lost.

    Returns
    -------
    callable
    """

    @wraps(method)
    def with_fitted_params(self: Any, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        fitted = scratch_copy(self)  # of one fit, whatever other threads do
        reader = getattr(getattr(fitted, "net_", None), "reader_", fitted)
        params = {name: getattr(reader, name) for name in FITTED_PARAMS}
        if all(vars(fitted)[name] is value for name, value in params.items()):
            return method(self, *args, **kwargs)
        vars(fitted).update(params)
        return method(fitted, *args, **kwargs)

    return with_fitted_params


def set_fitted(estimator: Any, run: Run, net: Any, binding: FlatBinding) -> None:
    """Set the fitted attributes.

    Parameters
    ----------
    estimator : estimator
    run : Run
        Over, or as far as Ctrl-C let it come.
    net : skorch net
    binding : FlatBinding
        Lets go of the net's module.
    """
    descent = getattr(net, "descent_", None)  # none after Ctrl-C in the warm-up
    done = 0 if descent is None else descent.iteration
    binding.follow()
    run.risk.set_params(binding.theta)
    estimator._batch_norm = run.risk.batch_norm
    if run.risk.batch_norm == "batch":
        binding.write_statistics(run.risk.batch_statistics(binding.theta))
    binding.release()
    estimator.history_ = pd.DataFrame(run.rows + getattr(net, "rows_", []))
    estimator.trajectory_ = None if descent is None else read_kept(descent.kept)
    net.detach()
    evaluation_mode(net.module_)
    estimator.net_ = net
    if not run.continues:
        estimator._start = read_start(estimator)
    estimator._names = run.risk.layout.names
    estimator._keeps_graph = run.risk.keeps_graph
    estimator.noise_ = run.law
    estimator.n_iter_ = run.n_iter_before + done
    estimator.n_steps_ = run.n_steps_before + done * int(run.law.n_substeps)
    estimator.diverged_ = run.diverged
    estimator.best_iteration_ = run.best_iteration
    clipped = 0 if descent is None else int(descent.n_clipped)
    estimator._n_clipped = run.n_clipped_before + clipped
    estimator._iteration = run.offset + done
    estimator._generator_states = {
        name: generator.get_state() for name, generator in run.generators.items()
    }
    estimator._chunk_size = run.risk.chunk_size
    estimator._risk = run.risk if estimator.store_data else None
