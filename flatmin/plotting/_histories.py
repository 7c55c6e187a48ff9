"""From fitted estimators to one table of runs, a label for the seeds of a method."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from numbers import Integral
from typing import Any

import pandas as pd
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from flatmin._runs.digest import hash_description
from flatmin._runs.fingerprint import fingerprint
from flatmin._utils.names import check_text
from flatmin.estimators._parameter_roles import parameters_for

__all__ = ["read_histories"]

# Seeds of one method are alike in these. Where a run starts is drawn, like its seed.
_SETTINGS = parameters_for("start", "run") | {"metrics"}
_SETTINGS -= {"params_init", "callbacks", "record_every"}


def read_histories(estimators: Any) -> pd.DataFrame:
    """Return a row for each label, seed and iteration.

    Parameters
    ----------
    estimators : estimator, list or tuple of them, or dict of str to either

    Returns
    -------
    DataFrame
        The histories, with columns method and seed. The method is the label in a dict,
        else that of the estimator.

    Raises
    ------
    TypeError
        If one keeps no history.
    ValueError
        If there is none, or runs of one label are no seeds of one method.
    """
    if not isinstance(estimators, Mapping):
        labelled = [(_method_of(one), one) for one in _listed(estimators)]
    else:
        for label in estimators:
            check_text("Labels of estimators", label)
        labelled = [(k, one) for k, v in estimators.items() for one in _listed(v)]
    firsts: dict[str, Any] = {}
    seeds: set[tuple[str, str]] = set()
    histories = []
    for place, (label, one) in enumerate(labelled):
        # Runs without a number are told apart by their place.
        seed = one.random_state
        seed = str(seed) if isinstance(seed, Integral) else f"run {place}"
        different = _differences(firsts.setdefault(label, one), one)
        if different:
            raise ValueError(
                "A line is the mean over seeds of runs that are alike but for the "
                f"seed. Got runs of {label!r} with different "
                f"{', '.join(different)}; pass a dict with labels of your own, such "
                f"as {{'{label}, a': one, '{label}, b': [others]}}."
            )
        if (label, seed) in seeds:
            raise ValueError(
                f"Runs of one label must have different seeds. Got {label!r} with "
                f"random_state={seed} twice; leave one out, or pass a dict with "
                "labels of your own."
            )
        seeds.add((label, seed))
        histories.append(one.history_.assign(method=label, seed=seed))
    return pd.concat(histories, ignore_index=True)


def _listed(estimators: Any) -> list[Any]:
    several = estimators if isinstance(estimators, list | tuple) else [estimators]
    if not several:
        raise ValueError("estimators must hold at least one. Got none.")
    for one in several:
        if not hasattr(one, "history_"):
            raise TypeError(
                "estimators must be fitted flatmin estimators, which have a history_. "
                f"Got {one!r}; other runs go through from_results, as a DataFrame."
            )
    return list(several)


def _method_of(estimator: Any) -> str:
    law = estimator.method
    return law if isinstance(law, str) else type(law).__name__


def _differences(one: Any, other: Any) -> list[str]:
    """Return the names of the settings in which two estimators differ."""
    if one is other:
        return []
    kinds = [] if type(one) is type(other) else ["classes"]
    mine, others = (each.get_params(deep=False) for each in (one, other))
    names = sorted(_SETTINGS & mine.keys() & others.keys())
    return kinds + [n for n in names if not _are_alike(mine[n], others[n])]


def _are_alike(one: Any, other: Any) -> bool:
    return one is other or _described(one) == _described(other)


def _described(value: Any) -> Any:
    try:
        if isinstance(value, nn.Module):
            value = _without_start(value)
        return hash_description(fingerprint(value))
    except TypeError:
        return value


@torch.no_grad()
def _without_start(module: nn.Module) -> nn.Module:
    """Return a copy whose parameters are 0: they are where a run starts."""
    module = copy.deepcopy(module)
    for parameter in module.parameters():
        if not is_lazy(parameter):
            parameter.zero_()
    return module
