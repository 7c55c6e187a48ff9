"""The settings of a comparison, described by what JSON can hold."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import joblib
import numpy as np

from flatmin._runs.digest import hash_description
from flatmin._runs.fingerprint import fingerprint
from flatmin._utils.messages import shown
from flatmin._utils.trees import as_tree, is_nested
from flatmin.comparison._plan import Plan
from flatmin.estimators._parameter_roles import PARAMETERS, parameters_for
from flatmin.risk.data.source import Source

# Parameters that results of earlier versions do not have, and what those did.
_LATER = {
    "distributed": False,
    "keep_params_every": None,
    "l2": 0.0,
    "output_transform": None,
    "positions": "all",
    "target": None,
    "training": None,
}

__all__ = [
    "array_values",
    "describe",
    "describe_settings",
    "make_protocol",
    "protocol_of_one",
]


def make_protocol(estimators: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    """Return the settings: the estimator's, and what each method has of its own.

    Parameters
    ----------
    estimators : mapping of str to estimator
        By the labels of the methods.
    plan : Plan

    Returns
    -------
    dict
    """
    common = describe_settings(plan.source.estimator)
    own = {}
    for label, unit in estimators.items():
        settings = describe_settings(unit)
        different = {k: v for k, v in settings.items() if v != common.get(k)}
        own[label] = {"method": settings["method"], **different}
    data = plan.source.data
    protocol = {
        "estimator": common,
        "methods": own,
        "data": describe(data) if callable(data) else "given",
        "metrics": describe(plan.metrics),
        "end_metrics": describe(plan.end_metrics),
        "quench": plan.quench,
        "quench_lr": describe(plan.quench_lr),
        "n_threads": plan.n_threads,
        "hashes": {
            "estimator": _hashes(plan.source.estimator),
            "methods": {label: _hashes(unit) for label, unit in estimators.items()},
        },
    }
    if not callable(data):
        with suppress(TypeError):  # of what cannot be described it is not known
            protocol["data_hash"] = joblib.hash(fingerprint(array_values(data)))
    # Without it, results can be merged with those of versions that had no such quench.
    if plan.quench_loss is not None:
        protocol["quench_loss"] = plan.quench_loss
        protocol["quench_loss_iter"] = plan.quench_loss_iter
    return protocol


def protocol_of_one(protocol: Mapping[str, Any], label: str) -> dict[str, Any]:
    """Return a protocol without the other methods.

    Parameters
    ----------
    protocol : mapping
        That :func:`make_protocol` returned.
    label : str

    Returns
    -------
    dict
    """
    hashes = protocol["hashes"]
    own = {**hashes, "methods": {label: hashes["methods"][label]}}
    return {
        **protocol,
        "methods": {label: protocol["methods"][label]},
        "hashes": own,
    }


def _hashes(estimator: Any) -> dict[str, str]:
    """Return hashes of settings that a name or a ``repr`` does not tell whole."""
    found = {}
    for name, value in estimator.get_params(deep=False).items():
        if name in parameters_for("start", "run") and not _is_plain(value):
            with suppress(TypeError):  # of what cannot be described it is not known
                found[name] = hash_description(fingerprint(value))
    return found


def _is_plain(value: Any) -> bool:
    """Return whether a description says all about a setting."""
    if isinstance(value, Mapping):
        return all(map(_is_plain, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return isinstance(value, bool | int | float | str | type(None) | np.generic)


def array_values(data: Any) -> Any:
    """Return data such that a data frame and its values are alike.

    A data set counts by the checksums of its examples.

    Parameters
    ----------
    data : callable or tuple of array-likes

    Returns
    -------
    callable or list
    """
    if callable(data):
        return data
    return [_values(part) for part in data]


def _values(data: Any) -> Any:
    if isinstance(data, Source):
        return ["data set", data.checksums]
    if is_nested(data):
        return as_tree(data).map(_values).unpacked()
    return np.asarray(data) if hasattr(data, "__array__") else data


def describe(value: Any) -> Any:
    """Describe a setting by what JSON can hold.

    Parameters
    ----------
    value : object
        Functions and classes become their names, what else there is its ``repr``,
        without addresses, which differ from run to run.

    Returns
    -------
    object
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, bool | int | float | str | type(None)):
        return value
    if isinstance(value, Mapping):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [describe(item) for item in value]
    if hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    return re.sub(r" at 0x[0-9a-fA-F]+", "", shown(value))


def describe_settings(estimator: Any) -> dict[str, Any]:
    """Describe the class and the settings of an estimator that results depend on.

    Parameters
    ----------
    estimator : estimator

    Returns
    -------
    dict
        ``memory`` is None: it may name a folder of the machine.
    """
    settings = describe(estimator.get_params(deep=False)) | {"memory": None}
    kept = {
        k: v
        for k, v in settings.items()
        # Without what came later, results can be merged with those of before.
        if PARAMETERS.get(k) != "folder" and not (k in _LATER and v == _LATER[k])
    }
    return {"class": type(estimator).__name__, **kept}
