"""From the ``method`` parameter to a noise law."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sklearn.base import clone

from flatmin.noise import GD, NoiseLaw, make_noise_law

__all__ = ["resolve_law"]


def resolve_law(
    method: str | NoiseLaw,
    params: Mapping[str, Any] | None,
    overrides: Mapping[str, Any],
) -> NoiseLaw:
    """Make the law of a run; the caller's instance is not touched.

    Parameters
    ----------
    method : str or NoiseLaw
    params : mapping or None
        Settings of a law that is given by name.
    overrides : mapping of str to object
        The estimator's own settings. None keeps the law's value. A setting that this
        law does not have is ignored, except for ``noise_scale``.

    Returns
    -------
    NoiseLaw

    Raises
    ------
    ValueError
        If the name or a setting is unknown, settings come with an instance, or the
        law has noise and no ``noise_scale`` to set.
    """
    if isinstance(method, NoiseLaw):
        if params:
            raise ValueError(
                "method is an instance, which has its own parameters. Got "
                f"method_params={dict(params)!r}; use set_params(method__...) or set "
                "them on the law."
            )
        law = clone(method)
    else:
        law = make_noise_law(method, **(params or {}))
    known = law.get_params(deep=False)
    scale = overrides.get("noise_scale")
    if scale is not None and "noise_scale" not in known and not isinstance(law, GD):
        raise ValueError(
            f"noise_scale multiplies ε, and {type(law).__name__} has no such setting. "
            f"Got noise_scale={scale!r}; leave it at None, or give the law's "
            "constructor a parameter noise_scale."
        )
    wanted = {
        name: value
        for name, value in overrides.items()
        if value is not None and name in known
    }
    return law.set_params(**wanted)
