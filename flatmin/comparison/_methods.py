"""From what a user calls methods to one estimator a label."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sklearn.base import clone

from flatmin._runs.fingerprint import hashes
from flatmin._utils.messages import naming
from flatmin._utils.names import check_known, check_text
from flatmin.estimators import NoisyDiffusionClassifier, NoisyDiffusionRegressor
from flatmin.estimators._parameter_roles import PARAMETERS, parameters_for
from flatmin.estimators._settings import read_training
from flatmin.noise import METHODS, NoiseLaw
from flatmin.noise._registry import check_law_class

__all__ = ["check_estimator", "resolve_methods"]

_ESTIMATORS = NoisyDiffusionClassifier | NoisyDiffusionRegressor

# What must be the same for all methods. The comparison sets the rest itself, but for
# what decides how a run goes on: that is a method's own.
_SHARED = parameters_for("start", "measurement", "device", "folder")


def check_estimator(estimator: Any) -> None:
    """Raise unless something is an estimator of this package.

    Parameters
    ----------
    estimator : object

    Raises
    ------
    TypeError
        If it is not.
    ValueError
        If several processes share its examples.
    """
    if not isinstance(estimator, _ESTIMATORS):
        raise TypeError(
            "estimator must be a NoisyDiffusionClassifier or a "
            f"NoisyDiffusionRegressor. Got {estimator!r}."
        )
    if estimator.distributed:
        raise ValueError(
            "A comparison shares out its runs, one a process. Got an estimator with "
            "distributed=True, which shares out the examples of one run; use n_jobs, "
            "or fit the estimator by itself."
        )


def resolve_methods(methods: Any, estimator: Any) -> dict[str, Any]:
    """Return an estimator for every label.

    Parameters
    ----------
    methods : str, NoiseLaw, its class, estimator, an iterable or a mapping of them
        The values of a mapping may also be dicts of settings of the estimator.
    estimator : estimator
        What the settings are settings of.

    Returns
    -------
    dict of str to estimator
        New ones.

    Raises
    ------
    TypeError
        If something is no method.
    ValueError
        If a name or setting is unknown, two methods would have one label, or a setting
        would give methods different starts.
    """
    if isinstance(methods, str | type | NoiseLaw | _ESTIMATORS):
        methods = [methods]
    if isinstance(methods, Mapping):
        labelled = list(methods.items())
    elif isinstance(methods, Iterable):
        with naming("methods"):
            labelled = [(_label(method), method) for method in methods]
    else:
        raise TypeError(
            "methods must be names, noise laws or estimators, in a list or in a "
            f"mapping from labels. Got {methods!r}."
        )
    labels = [label for label, _ in labelled]
    if not labels:
        raise ValueError("methods must hold at least one method. Got none.")
    for label in labels:
        check_text("Labels of methods", label)
        if labels.count(label) > 1:
            raise ValueError(
                f"Every method needs a label of its own. Got {label!r} twice; pass a "
                "mapping from labels to methods."
            )
    return {label: _resolve(label, method, estimator) for label, method in labelled}


def _label(method: Any) -> Any:
    if isinstance(method, _ESTIMATORS):
        method = method.method
    if isinstance(method, type):
        check_law_class("a method", method)
    return getattr(method, "name", method)


def _resolve(label: str, method: Any, estimator: Any) -> Any:
    if isinstance(method, _ESTIMATORS):
        return _checked_estimator(label, method, estimator)
    if isinstance(method, str | type | NoiseLaw):
        method = {"method": method}
    if not isinstance(method, Mapping):
        raise TypeError(
            f"The method {label!r} must be a name, a NoiseLaw or its class, an "
            f"estimator or, in a mapping, a dict of settings. Got {method!r}."
        )
    settings = {"method": label, "method_params": None, **method}
    named = {str(name).partition("__")[0] for name in settings}
    taken = named & PARAMETERS.keys() - parameters_for("run")
    if taken:
        raise ValueError(
            f"All methods of a seed share their start and what is measured; the method "
            f"{label!r} has its own {_listed(taken)}. Set that on the estimator, or "
            "compare in two calls."
        )
    if isinstance(settings["method"], str):
        check_known("method", settings["method"], METHODS)
    elif isinstance(settings["method"], NoiseLaw):
        # A copy, because set_params below writes method__x on it.
        settings["method"] = clone(settings["method"])
    unit = clone(estimator).set_params(**settings)
    unit._make_law()  # raises if the settings do not fit the law
    unit._validate_params()
    _check_unit(label, unit)
    return unit


def _checked_estimator(label: str, unit: Any, estimator: Any) -> Any:
    """Refuse an estimator that would start elsewhere than the others."""
    if type(unit) is not type(estimator):
        raise TypeError(
            f"All methods must be of the kind of estimator, "
            f"{type(estimator).__name__}. Got {type(unit).__name__} as {label!r}."
        )
    own, common = (each.get_params(deep=False) for each in (unit, estimator))
    different = {
        name
        for name in _SHARED & own.keys()
        if hashes({name: own[name]}) != hashes({name: common[name]})
    }
    if different:
        raise ValueError(
            f"All methods of a seed share their start and what is measured; the method "
            f"{label!r} differs from estimator in {_listed(different)}. Make them "
            "equal, or compare in two calls."
        )
    unit._validate_params()
    _check_unit(label, unit)
    return clone(unit)


def _check_unit(label: str, unit: Any) -> None:
    """Refuse a trajectory, which would be lost, and stopping, which X_test would do."""
    if unit.keep_params_every is not None:
        raise ValueError(
            "compare_dynamics keeps no trajectory_. Got keep_params_every="
            f"{unit.keep_params_every!r} for {label!r}; leave it at None, and fit "
            "single runs for their trajectories. keep_params=True keeps end points."
        )
    if read_training(unit.training).stopping is not None:
        raise ValueError(
            "The runs of a comparison have the same number of iterations, and X_test "
            f"decides nothing in them. Got training={unit.training!r} for {label!r}; "
            "leave out early_stopping, n_iter_no_change and tol, and set max_iter."
        )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
