"""The arguments of a call whose cost is asked for."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from flatmin._utils.names import check_known
from flatmin._utils.numbers import check_accuracy, check_count
from flatmin.analysis._sample import Sample
from flatmin.linalg._basis_memory import check_max_basis, search_arguments
from flatmin.linalg._eigenpairs import WHICH

__all__ = ["all_arguments", "check_pairs"]

_NO_COUNTS = ("which", "rtol", "basis_device", "basis_dtype")  # of arguments


def all_arguments(
    method: Callable[..., Any], options: Mapping[str, Any]
) -> dict[str, Any]:
    """Return all arguments of a method but the data, some of which are given.

    Parameters
    ----------
    method : callable
        Of an analyzer.
    options : mapping of str to object
        What is given; ``by_layer`` is not looked at.

    Returns
    -------
    dict

    Raises
    ------
    ValueError
        If the method has no such argument, or one does not fit.
    """
    known = {
        name: parameter.default
        for name, parameter in inspect.signature(method).parameters.items()
        if name not in ("self", "X", "y", "v", "sample_weight")
    }
    for name, value in options.items():
        check_known(f"argument of {method.__name__}", name, known)
        if name not in (*_NO_COUNTS, "by_layer") and value is not None:
            check_count(name, value, at_least=2 if name == "n_probes" else 1)
    arguments = known | dict(options)
    if "rtol" in arguments:
        check_accuracy(arguments["rtol"], arguments["max_matvecs"])
    return arguments


def check_pairs(sample: Sample, arguments: Mapping[str, Any], largest: int) -> None:
    """Raise where ``eigen`` or ``alignment`` would, before a product.

    Parameters
    ----------
    sample : Sample
    arguments : mapping of str to object
        All of one of these.
    largest : int
        How many eigenpairs there are.

    Raises
    ------
    ValueError
        If one does not fit.
    """
    k, which = arguments["k"], arguments.get("which", "LA")
    check_known("which", which, WHICH)
    if which != "LA":
        sample.check_whole(f"eigen with which={which!r}")
    if k is not None and not arguments.get("by_layer"):  # of layers fewer are taken
        check_count("k", k, at_most=largest, limit="the number of pairs")
    names = ("max_matvecs", "max_basis", "basis_device", "basis_dtype")
    search_arguments(**{name: arguments.get(name) for name in names})
    if k is not None and arguments.get("max_basis") is not None:
        check_max_basis(arguments["max_basis"], k)
