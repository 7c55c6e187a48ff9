"""From the ``method`` parameter to a noise law."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sklearn.base import clone

from flatmin._utils.names import check_known
from flatmin.noise import GD, METHODS, NoiseLaw, make_noise_law
from flatmin.noise._registry import check_law_class

__all__ = ["resolve_law"]


def resolve_law(
    method: str | type[NoiseLaw] | NoiseLaw,
    settings: Mapping[str, Any] | None,
    shared: Mapping[str, Any],
    *,
    title: str = "method",
) -> NoiseLaw:
    """Make the law of a run; the caller's instance is not touched.

    Parameters
    ----------
    method : str, subclass of NoiseLaw or NoiseLaw
    settings : mapping or None
        Settings of a law that is given by name or as a class.
    shared : mapping of str to object
        Settings of the estimator that serve all laws which have them. They override
        those of an instance. None leaves the law's own.
    title : str, default="method"
        What messages call the law.

    Returns
    -------
    NoiseLaw

    Raises
    ------
    TypeError
        If a class is none of laws.
    ValueError
        If the name or a setting is unknown, the estimator and ``settings`` give one
        setting two values, settings come with an instance, or the law has noise and no
        ``noise_scale`` to set.
    """
    if isinstance(method, NoiseLaw):
        if settings:
            raise ValueError(
                "method is an instance, which has its own parameters. Got "
                f"method_params={dict(settings)!r}; use set_params(method__...) or set "
                "them on the law."
            )
        law = clone(method)
    else:
        if isinstance(method, type):
            check_law_class(title, method)
        else:
            check_known(title, method, METHODS)
        law = make_noise_law(method, **(settings or {}))
        for name, value in (settings or {}).items():
            if shared.get(name) is not None and shared[name] != value:
                raise ValueError(
                    f"The estimator and method_params must not give {name} two values. "
                    f"Got {name}={shared[name]!r} and "
                    f"method_params={dict(settings or {})!r}; leave out one of them."
                )
    known = law.get_params(deep=False)
    scale = shared.get("noise_scale")
    if scale is not None and "noise_scale" not in known and not isinstance(law, GD):
        raise ValueError(
            f"noise_scale multiplies ε, and {type(law).__name__} has no such setting. "
            f"Got noise_scale={scale!r}; leave it at None, or give the law's "
            "constructor a parameter noise_scale."
        )
    wanted = {
        name: value
        for name, value in shared.items()
        if value is not None and name in known
    }
    return law.set_params(**wanted)
