"""Labels of a classifier: which of them count, their classes, weights and accuracy."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import accuracy_score
from sklearn.preprocessing import LabelEncoder
from sklearn.utils import column_or_1d, compute_class_weight
from torch import Tensor

from flatmin._utils.arrays import to_array, to_numpy
from flatmin._utils.messages import naming
from flatmin._utils.weights import relative_weights
from flatmin.risk import ModuleLoss, resolve_loss
from flatmin.risk.losses.example_loss import ExampleLoss
from flatmin.risk.losses.next_token import NextToken

__all__ = [
    "accuracy",
    "as_labels",
    "check_positions",
    "check_tokens",
    "class_weights",
    "counting",
    "ignored_label",
    "is_next_token",
    "learn_classes",
    "probabilities",
    "training_accuracy",
]


def as_labels(y: Any, *, warn: bool = True) -> np.ndarray:
    """Return y of shape (n,), or as it is where an example has several labels.

    Parameters
    ----------
    y : array-like of shape (n,), (n, 1) or (n, \\*positions)
    warn : bool, default=True
        Whether a column brings scikit-learn's warning.

    Returns
    -------
    ndarray

    Raises
    ------
    ValueError
        If there is none, one is missing, or integers have become floats that are not
        these numbers.
    """
    given = to_numpy("y", y)
    y = _plain(given)
    if y is None:
        raise ValueError(
            "This NoisyDiffusionClassifier estimator requires y to be passed, but "
            "the target y is None."
        )
    with naming("y"):
        labels = np.asarray(y)
        if labels.dtype.kind == "f" and _has_integers(given):
            _check_exact(labels)
        if labels.ndim < 2 or labels.shape[1:] == (1,):
            return column_or_1d(y, warn=warn)
        return labels


def _plain(y: Any) -> Any:
    """Return integers and truth values of pandas' own dtypes as those of NumPy."""
    # scikit-learn makes them floats, in which 2**53 and 2**53 + 1 are one number.
    if isinstance(y, pd.DataFrame) and y.shape[1]:
        return np.stack([np.asarray(_plain(column)) for _, column in y.items()], axis=1)
    dtype = getattr(getattr(y, "dtype", None), "numpy_dtype", None)
    if dtype is None or dtype.kind not in "iub":
        return y
    n_missing = int(y.isna().sum())
    if n_missing:
        raise ValueError(
            f"y contains NaN: each example needs a label. Got {n_missing} missing in y "
            f"of dtype {y.dtype}; leave those examples out of X and y."
        )
    return y.to_numpy(dtype)


def _has_integers(y: Any) -> bool:
    """Say whether some of the labels in a list, or in columns, are integers."""
    if isinstance(y, pd.DataFrame):
        return any(dtype.kind in "iu" for dtype in y.dtypes)
    if hasattr(y, "dtype"):
        return False
    return any(isinstance(label, Integral) for label in np.ravel(np.array(y, object)))


def _check_exact(labels: np.ndarray) -> None:
    """Raise if floats that some integers have become may not be these integers."""
    large = labels[np.isfinite(labels) & (np.abs(labels) >= 2**53)]
    if len(large):
        raise ValueError(
            "y must keep its labels apart. Got numbers of several kinds, which become "
            f"floats, and one near {large[0]:.0f}: beyond 2**53 these are not all "
            "integers. Pass an array of one integer dtype, or strings."
        )


def check_positions(y: np.ndarray, loss: Any, module: Any) -> None:
    """Raise unless several labels an example can be trained on.

    Parameters
    ----------
    y : ndarray of shape (n, \\*positions)
    loss, module : object
        Of the estimator.

    Raises
    ------
    ValueError
        If there is no module for them, or the loss is not one of positions.
    """
    if module is None:
        with naming("y"):
            column_or_1d(y)  # raises
    found = _example_loss(loss)
    if found is None or found.classes is None:
        raise ValueError(
            "Several labels an example, as of a sequence, need a loss that says which "
            "of them count: 'cross_entropy', nn.CrossEntropyLoss, nn.NLLLoss or "
            f"'next_token'. Got loss={loss!r} and y of shape {y.shape}."
        )


def check_tokens(y: np.ndarray) -> None:
    """Raise ValueError unless labels can be numbers of tokens."""
    if y.dtype.kind not in "iu":
        raise ValueError(
            f"Tokens must be integers. Got y of {y.dtype}; use y.astype(int)."
        )


def is_next_token(loss: Any) -> bool:
    """Say whether labels are token numbers, which the loss shifts."""
    return isinstance(_example_loss(loss), NextToken)


def ignored_label(loss: Any) -> int | None:
    """Return the label that a loss leaves out, which is no class.

    Parameters
    ----------
    loss : object
        Of an estimator.

    Returns
    -------
    int or None
        None where all labels count.

    Raises
    ------
    ValueError
        If it is the number of a class.
    """
    found = _example_loss(loss)
    if found is None or found.classes is None:
        return None
    index = found.classes.ignore_index
    if index >= 0:
        raise ValueError(
            "NoisyDiffusionClassifier numbers the classes from 0, so that ignore_index "
            f"must be negative. Got {loss!r} with ignore_index={index}; pass one with "
            "ignore_index=-100, and give what is to be left out the label -100."
        )
    return index


def counting(y: np.ndarray, ignored: int | None) -> np.ndarray:
    """Return which labels count, as truth values in the shape of y."""
    if ignored is None or y.dtype.kind not in "iuf":
        return np.ones(y.shape, dtype=bool)
    return np.asarray(y != ignored)


def learn_classes(labels: np.ndarray) -> LabelEncoder:
    """Return what numbers the classes among labels that count.

    Parameters
    ----------
    labels : ndarray of shape (n,)

    Returns
    -------
    LabelEncoder

    Raises
    ------
    ValueError
        If there are fewer than two.
    """
    encoder = LabelEncoder().fit(labels)
    if not len(encoder.classes_):
        raise ValueError("y must hold at least one label. Got none that counts.")
    if len(encoder.classes_) < 2:
        raise ValueError(
            "NoisyDiffusionClassifier needs y with at least two classes. Got "
            f"one class: {encoder.classes_.tolist()[0]!r}."
        )
    return encoder


def class_weights(
    class_weight: Any,
    classes: np.ndarray,
    y: np.ndarray,
    *,
    counted: np.ndarray,
    weights: np.ndarray | None,
) -> np.ndarray:
    """Return what ``class_weight`` says of each class.

    Parameters
    ----------
    class_weight : dict or "balanced"
    classes : ndarray of shape (n_classes,)
    y : ndarray of shape (n,)
        Numbers of classes.
    counted : ndarray of shape (n,)
        Which examples count.
    weights : ndarray of shape (n,) or None
        Of the examples.

    Returns
    -------
    ndarray of shape (n_classes,)

    Raises
    ------
    ValueError
        If one is negative.
    """
    balanced = isinstance(class_weight, str)
    if weights is not None:
        weights = weights[counted]
    with np.errstate(divide="ignore"):
        by_class = compute_class_weight(
            class_weight,
            classes=classes,
            y=classes[y[counted]],
            sample_weight=relative_weights(weights)
            if balanced and weights is not None
            else None,
        )
    if balanced:
        # scikit-learn divides by the weight of a class; one without weight counts 0.
        by_class[np.isinf(by_class)] = 0.0
    by_class = to_array("class_weight", by_class, (None,))
    if (by_class < 0).any():
        raise ValueError(f"class_weight must not be negative. Got {by_class.min()}.")
    return by_class


def accuracy(
    y: np.ndarray,
    predicted: np.ndarray,
    sample_weight: np.ndarray | None,
    loss: Any,
) -> float:
    """Return the share of right labels among those that count.

    Parameters
    ----------
    y : ndarray of shape (n,) or (n, \\*positions)
        Labels, as in ``fit``.
    predicted : ndarray of the same shape
    sample_weight : ndarray of shape (n,) or None
        Of an example, and so of each of its positions.
    loss : object
        Of the estimator.

    Returns
    -------
    float

    Raises
    ------
    ValueError
        If shapes differ, or no label counts.
    """
    if y.ndim > 1 and y.shape != predicted.shape:
        raise ValueError(
            f"y must have the shape of the predictions, {predicted.shape}. Got "
            f"{y.shape}."
        )
    if is_next_token(loss):
        y, predicted = y[:, 1:], predicted[:, :-1]
    counted = counting(y, ignored_label(loss))
    if not counted.any():
        raise ValueError(
            "An accuracy needs labels that count. Got y in which all are left out."
        )
    if sample_weight is not None and y.ndim > 1:
        column = sample_weight.reshape(-1, *(1 for _ in y.shape[1:]))
        sample_weight = np.broadcast_to(column, y.shape)
    if y.ndim == 1 and counted.all():
        return float(accuracy_score(y, predicted, sample_weight=sample_weight))
    weights = None if sample_weight is None else sample_weight[counted]
    right = (y == predicted)[counted]
    return float(accuracy_score(right, np.ones_like(right), sample_weight=weights))


def training_accuracy(
    y: np.ndarray, n_classes: int, loss: Any
) -> Callable[[Tensor], float]:
    """Return what scores the outputs of a training against its encoded labels.

    Parameters
    ----------
    y : ndarray of shape (n,) or (n, \\*positions)
        Numbers of classes.
    n_classes : int
    loss : object
        Of the estimator.

    Returns
    -------
    callable
        Takes outputs, and returns the share of right labels among those that count.
    """
    of_tokens = is_next_token(loss)
    if of_tokens:
        y = y[:, 1:]
    counted = torch.as_tensor(counting(y, ignored_label(loss)))
    target: Tensor | None = None

    def score(outputs: Tensor) -> float:
        nonlocal target, counted
        if target is None:
            target = torch.as_tensor(y, device=outputs.device)
            counted = counted.to(outputs.device)
        if of_tokens:
            outputs = outputs[:, :-1].movedim(-1, 1)
        if outputs.ndim == 1 or outputs.shape[1] == 1:
            predicted = (outputs.reshape(-1) > 0).long()
        else:
            predicted = outputs[:, :n_classes].argmax(1)
        return float((predicted == target)[counted].double().mean())

    return score


def probabilities(outputs: Tensor, n_classes: int, *, of_tokens: bool) -> Tensor:
    """Turn logits into probabilities; for the skorch net, as ``predict_proba`` does.

    Parameters
    ----------
    outputs : Tensor of shape (n, C, \\*positions), (n, T, C) of tokens, or (n,)
    n_classes : int
    of_tokens : bool

    Returns
    -------
    Tensor of shape (n, n_classes, \\*positions)
    """
    if of_tokens:
        outputs = outputs.movedim(-1, 1)
    if outputs.ndim == 1 or outputs.shape[1] == 1:
        second = outputs.reshape(-1).sigmoid()
        return torch.stack([1 - second, second], 1)
    return outputs[:, :n_classes].softmax(1)


def _example_loss(loss: Any) -> ExampleLoss | None:
    """Return the loss of single examples, None where the risk has to say more."""
    if isinstance(loss, ModuleLoss):
        return None
    is_auto = isinstance(loss, str) and loss == "auto"
    try:
        return resolve_loss("cross_entropy" if is_auto else loss)
    except (TypeError, ValueError):
        return None
