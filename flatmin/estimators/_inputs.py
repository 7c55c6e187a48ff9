"""What may come as X, and what the module is given of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from sklearn.utils import check_array
from sklearn.utils.validation import validate_data
from torch import Tensor, nn

from flatmin._utils.arrays import (
    check_one_shape,
    in_native_order,
    to_array,
    to_numpy,
)
from flatmin._utils.messages import naming
from flatmin._utils.trees import (
    Tree,
    as_tree,
    check_one_length,
    is_nested,
    map_inputs,
)
from flatmin.risk.data.inputs import as_input, as_inputs
from flatmin.risk.data.source import Source, find_source, is_data_set, split_targets

__all__ = [
    "N_LOOKED_AT",
    "as_source",
    "check_inputs",
    "iterate_inputs",
    "network_input",
    "read_targets",
    "targets_like",
    "without_targets",
]

# Examples that are in memory at a time while a data set is looked through.
N_LOOKED_AT = 256


def without_targets(estimator: Any, X: Any) -> Any:
    """Return X without the targets that ``target`` names, for a prediction.

    Parameters
    ----------
    estimator : estimator
    X : object

    Returns
    -------
    object
    """
    name = estimator.target
    if isinstance(X, Mapping) and name in X.keys():  # noqa: SIM118 - a SliceDict's "in"
        return split_targets(X, None, name)[0]
    return X


def as_source(X: Any, y: Any = None, target: str | None = None) -> Source | None:
    """Return the data set that X is, or None for what should be an array.

    Parameters
    ----------
    X : object
    y : object, default=None
        None with a data set.
    target : str, default=None
        The name of the targets, where the data set gives mappings.

    Returns
    -------
    Source or None

    Raises
    ------
    TypeError, ValueError
        If it cannot be gone through in one order again and again, or y comes twice; see
        :func:`flatmin.risk.data.source.find_source`.
    """
    return find_source(X, y, target) if is_data_set(X) else None


def check_inputs(
    estimator: Any, X: Any, *, reset: bool, at_least: int | None = None
) -> np.ndarray | Tree:
    """Check X, and learn from it what later ones must look like if ``reset``.

    Parameters
    ----------
    estimator : estimator
        Gets, or has, ``_input_shape``, a dict by leaf for a mapping or a tuple, which
        has ``_input_kinds`` of its numbers too; for an array also ``n_features_in_``
        and ``feature_names_in_``.
    X : array-like of shape (n_samples, n_features, ...), or a mapping or tuple of them
    reset : bool
        Whether X is to be trained on.
    at_least : int, default=None
        How many examples it must hold; None is two if ``reset``, else one.

    Returns
    -------
    ndarray of shape (n_samples, n_features, ...) or Tree

    Raises
    ------
    TypeError
        If it does not hold all examples at once.
    ValueError
        If its shape, its names or its values do not fit.
    """
    at_least = at_least or (2 if reset else 1)
    if is_nested(X):
        return _check_tree(estimator, X, reset=reset, at_least=at_least)
    check_one_shape("X", X)
    X = to_numpy("X", X)
    if not reset and isinstance(estimator._input_shape, dict):
        raise ValueError(
            f"X must have the parts of the training data, "
            f"{', '.join(estimator._input_shape)}. Got one {type(X).__name__}."
        )
    if not (hasattr(X, "__len__") or hasattr(X, "__array__")):
        raise TypeError(
            "X must be an array, a tensor, a data frame, or a data set of pairs "
            "(x, y): gradients of all examples are taken again and again. Got "
            f"{type(X).__name__}; collect its examples first, for example by "
            "np.stack(list(X))."
        )
    with naming("X"):
        X = validate_data(
            estimator,
            X,
            reset=reset,
            allow_nd=True,
            ensure_min_samples=at_least,
            dtype="numeric",
        )
    X = in_native_order(X)
    if reset:
        estimator._input_shape = X.shape[1:]
    elif X.shape[1:] != estimator._input_shape:
        raise ValueError(
            f"X must have the shape of the training data, "
            f"{('n', *estimator._input_shape)}. Got {('n', *X.shape[1:])}."
        )
    return X


def _check_tree(estimator: Any, X: Any, *, reset: bool, at_least: int) -> Tree:
    """Check a mapping or a tuple, leaf by leaf; see :func:`check_inputs`."""
    tree, leaves = as_tree(X), []
    for name, leaf in tree.named():
        check_one_shape(name, leaf)
        with naming(name):
            array = check_array(
                to_numpy(name, leaf),
                allow_nd=True,
                ensure_2d=False,
                ensure_min_samples=at_least,
                dtype="numeric",
                input_name=name,
            )
            leaves.append(in_native_order(array))
    tree = tree.with_leaves(leaves)
    check_one_length(tree)
    shapes = {name: leaf.shape[1:] for name, leaf in tree.named()}
    if reset:
        estimator._input_shape = shapes
        estimator._input_kinds = {n: _kind(leaf) for n, leaf in tree.named()}
        for learnt in ("n_features_in_", "feature_names_in_"):  # of an earlier fit
            vars(estimator).pop(learnt, None)
        return tree
    expected = estimator._input_shape
    if not isinstance(expected, dict):
        raise ValueError(
            f"X must be one array, as the training data, of shape "
            f"{('n', *expected)}. Got {', '.join(shapes)}."
        )
    if shapes.keys() != expected.keys():
        raise ValueError(
            f"X must have the parts of the training data, {', '.join(expected)}. Got "
            f"{', '.join(shapes)}."
        )
    for name, shape in shapes.items():
        if shape != expected[name]:
            raise ValueError(
                f"{name} must have the shape of the training data, "
                f"{('n', *expected[name])}. Got {('n', *shape)}; pad, or cut, the "
                "examples to the length of those."
            )
    kinds = estimator._input_kinds
    return tree.with_leaves(
        _of_kind(name, leaf, kinds[name]) for name, leaf in tree.named()
    )


def _kind(leaf: np.ndarray) -> str:
    return {"b": "truth values", "f": "floating numbers"}.get(
        leaf.dtype.kind, "integers"
    )


def _of_kind(name: str, leaf: np.ndarray, kind: str) -> np.ndarray:
    """Return numbers in the kind of the training data, or raise."""
    # Integers do not pass for a mask of booleans: ~True is False, and ~1 is -2.
    if _kind(leaf) == kind:
        return leaf
    if kind == "floating numbers":
        return leaf.astype(np.float64)
    raise ValueError(
        f"{name} must hold {kind}, as in the training data. Got {leaf.dtype}."
    )


def read_targets(estimator: Any, source: Source, *, reset: bool) -> np.ndarray:
    """Check all inputs of a data set by one pass, and return its targets.

    They are read, never taken from an attribute such as ``targets``, behind which a
    transform of the targets would go unseen.

    Parameters
    ----------
    estimator : estimator
    source : Source
    reset : bool
        As in :func:`check_inputs`.

    Returns
    -------
    ndarray of shape (n_samples, ...)
    """
    targets: list[Tensor] = []
    for X, y in source.batches(N_LOOKED_AT):
        # A part of them: how many there are is another question.
        check_inputs(estimator, X, reset=reset and not targets, at_least=1)
        targets.append(y)
    return to_numpy("y", torch.cat(targets))


def iterate_inputs(
    estimator: Any, X: Any, size: int
) -> Iterator[tuple[np.ndarray | Tree, Tensor | None]]:
    """Yield checked inputs of a fitted estimator, with targets if X has them.

    Parameters
    ----------
    estimator : estimator
    X : array-like of shape (n_samples, n_features, ...), a mapping, or a data set
    size : int
        Examples at a time.

    Yields
    ------
    X : ndarray of shape (n, n_features, ...) or Tree
    y : Tensor of shape (n, ...) or None
    """
    source = as_source(X, target=estimator.target)
    if source is not None:
        for part, y in source.batches(size):
            yield check_inputs(estimator, part, reset=False), y
        return
    X = check_inputs(estimator, without_targets(estimator, X), reset=False)
    for start in range(0, len(X), size):
        yield X[start : start + size], None


def targets_like(X: Any, y: Any, sample_weight: Any) -> tuple[Any, Any]:
    """Return targets and weights of a score, of as many examples as X.

    Parameters
    ----------
    X : object
    y : array-like of shape (n, ...)
    sample_weight : array-like of shape (n,) or None

    Returns
    -------
    y : array-like of shape (n, ...)
    sample_weight : ndarray of shape (n,) or None

    Raises
    ------
    ValueError
        If there are more or fewer.
    """
    n, y = _length(X), to_numpy("y", y)
    if n is not None and _length(y) != n:
        got = y if _length(y) is None else _length(y)
        raise ValueError(f"y must have as many examples as X, {n}. Got {got!r}.")
    if sample_weight is not None:
        sample_weight = to_array("sample_weight", sample_weight, (n,))
    return y, sample_weight


def _length(data: Any) -> int | None:
    try:
        return len(as_tree(data).leaves[0] if is_nested(data) else data)
    except TypeError:  # a number, or an array without axes, has no length
        return None


def network_input(
    X: np.ndarray | Tensor | Tree, module: nn.Module, dtype: torch.dtype
) -> np.ndarray | Tree:
    """Return X in the form that the module takes, for skorch.

    Parameters
    ----------
    X : ndarray or Tensor of shape (n_samples, ...), or Tree
    module : torch.nn.Module
    dtype : torch.dtype
        Of its parameters.

    Returns
    -------
    ndarray of shape (n_samples, ...) or Tree
    """
    tensors = as_inputs(X, torch.device("cpu"))
    return map_inputs(Tensor.numpy, as_input(tensors, module, dtype))
