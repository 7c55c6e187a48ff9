"""What a checkpoint says of a descent, looked at before it is used.

A state of another shape would be broadcast, and a setting of the optimizer is not for a
file to change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flatmin._utils.numbers import is_count, is_number
from flatmin.dynamics._batches import GradientBatches
from flatmin.dynamics._divergence import Place

__all__ = [
    "Ahead",
    "check_descent_state",
    "check_groups",
    "check_history",
    "check_rows",
]


class Ahead(NamedTuple):
    """A step's noisy gradient, where the refresh that computes it came before."""

    theta: Tensor  # (D,)
    loss: Tensor  # ()
    gradient: Tensor  # (D,), noisy
    rng_state: Tensor  # of the generator, after it has drawn


def check_descent_state(
    state: Mapping[str, Any], theta: Tensor, batches: GradientBatches | None
) -> None:
    """Raise unless a stored descent fits the one that runs.

    Parameters
    ----------
    state : mapping
        From ``NoisyDescent.state_dict``.
    theta : Tensor of shape (D,)
        Of the descent that runs.
    batches : GradientBatches or None
        Of the descent that runs.

    Raises
    ------
    ValueError
        With the name of what does not.
    """
    vectors = {"theta": state["theta"]}
    if state["ahead"] is not None:
        ahead = Ahead(*state["ahead"])
        vectors |= {"theta ahead": ahead.theta, "the gradient ahead": ahead.gradient}
    if state["step_start"] is not None:
        start = Place(*state["step_start"])
        _require(is_count(start.iteration, 0), "step_start")
        vectors["theta of step_start"] = start.theta
    for name, vector in vectors.items():
        fits = isinstance(vector, Tensor) and vector.dtype == theta.dtype
        _require(fits and vector.shape == theta.shape, name)
    clipped = state["n_clipped"]
    fits = isinstance(clipped, Tensor) and clipped.dtype == torch.int64
    _require(fits and clipped.shape == () and int(clipped) >= 0, "n_clipped")
    _require(is_count(state["iteration"], 0), "iteration")
    for name in ("refreshed_at", "drawn_at"):
        _require(is_count(state[name], 0) or state[name] == -1, name)
    _require(isinstance(state["last_loss"], float), "last_loss")
    for name in ("batch", "refreshed_on"):
        value = state[name]
        if value is None:
            continue
        size, n = (batches.size, batches.risk.n_examples) if batches else (0, 0)
        fits = isinstance(value, Tensor) and value.dtype == torch.int64
        _require(fits and value.shape == (size,) and size > 0, name)
        _require(0 <= int(value.min()) <= int(value.max()) < n, name)


def check_groups(
    found: Sequence[Mapping[str, Any]],
    own: Sequence[Mapping[str, Any]],
    *,
    may_change: bool,
) -> None:
    """Raise unless stored ``param_groups`` are those of the optimizer that runs.

    Parameters
    ----------
    found, own : sequence of mapping
    may_change : bool
        Whether there are callbacks, which may change the numbers of a group, as a
        schedule does the learning rate, and may add some.

    Raises
    ------
    ValueError
        If one differs in anything else.
    """
    _require(len(found) == len(own), "the number of param_groups")
    for stored, expected in zip(found, own, strict=True):
        for name in {*stored, *expected} - {"params"}:
            title = f"{name} of the optimizer"
            if name not in stored:
                continue  # an older PyTorch wrote it, without this setting
            value = stored[name]
            if may_change and _are_numbers(value):
                _require(name not in expected or _are_numbers(expected[name]), title)
            else:
                _require(name in expected and _same(value, expected[name]), title)


def check_rows(rows: Any) -> None:
    """Raise unless rows of a table hold numbers and words.

    Parameters
    ----------
    rows : object

    Raises
    ------
    ValueError
        If it is something else.
    """
    storable = (type(None), str, bool, int, float)
    _require(
        isinstance(rows, list)
        and all(
            isinstance(row, dict)
            and all(isinstance(key, str) for key in row)
            and all(isinstance(value, storable) for value in row.values())
            for row in rows
        ),
        "the rows of the history",
    )


def check_history(history: Any) -> None:
    """Raise if a history of a net may lead to other files.

    A callback of skorch names files by what the history holds.

    Parameters
    ----------
    history : list of dict

    Raises
    ------
    ValueError
        If a text in it may be a path, or it is no history.
    """
    _require(isinstance(history, list), "the history of the net")
    for row in history:
        fits = isinstance(row, dict) and isinstance(row.get("batches"), list)
        _require(fits, "a row of the history of the net")
        for name, value in row.items():
            if _may_be_path(value):
                raise ValueError(
                    "A checkpoint can hold a history of numbers, and of text that is "
                    f"no path. Got {name}={value!r}; let the callback record a number."
                )


def _may_be_path(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_may_be_path, value.values()))
    if isinstance(value, list | tuple | set):
        return any(map(_may_be_path, value))
    return isinstance(value, str) and any(sign in value for sign in "/\\:\0")


def _require(fits: bool, name: str) -> None:
    if not fits:
        raise ValueError(f"The checkpoint holds another {name} than the run has.")


def _are_numbers(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_are_numbers(item) for item in value)
    if isinstance(value, Tensor):
        return bool(value.isfinite().all())
    return is_number(value)


def _same(one: Any, two: Any) -> bool:
    if isinstance(one, Tensor) or isinstance(two, Tensor):
        both = isinstance(one, Tensor) and isinstance(two, Tensor)
        return both and torch.equal(one.cpu(), two.cpu())
    return type(one) is type(two) and bool(one == two)
