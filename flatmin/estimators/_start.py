"""What a training began with, which a warm start goes on from."""

from __future__ import annotations

from typing import Any

from flatmin._runs.digest import hash_description
from flatmin._runs.fingerprint import fingerprint
from flatmin._utils.arrays import to_array

__all__ = ["check_start", "read_start"]


def read_start(estimator: Any) -> dict[str, Any]:
    """Return what to compare with in a later fit.

    Parameters
    ----------
    estimator : estimator

    Returns
    -------
    dict of str to object
        The module itself, and hashes of what could be changed in place.
    """
    theta = estimator.params_init
    if theta is not None:
        theta = _hash(to_array("params_init", theta))
    return {
        "module": estimator.module,
        "module_params": _hash(dict(estimator.module_params or {})),
        "params_init": theta,
    }


def check_start(estimator: Any) -> None:
    """Raise if parameters of the start are set that a warm start would leave aside.

    Parameters
    ----------
    estimator : estimator
        Fitted.

    Raises
    ------
    ValueError
        With the names of those that differ.
    """
    before, now = getattr(estimator, "_start", None), read_start(estimator)
    if before is None:  # unpickled from a version that did not keep it
        return
    if now["params_init"] is None:  # which asks for nothing
        now["params_init"] = before["params_init"]
    different = [name for name in now if not _are_equal(before[name], now[name])]
    if different:
        raise ValueError(
            "warm_start=True goes on with the network of the last fit, and needs "
            "module, module_params and params_init as they were then. Got another "
            f"{', another '.join(different)}; pass what that fit had, or "
            "warm_start=False to begin anew."
        )


def _are_equal(one: Any, other: Any) -> bool:
    return one is other or _hash(one) == _hash(other)


def _hash(value: Any) -> Any:
    """Return a hash of a value, or itself if it cannot be described."""
    try:
        return hash_description(fingerprint(value))
    except TypeError:
        return value
