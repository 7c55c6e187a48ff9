"""Label noise."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import column_or_1d
from sklearn.utils.multiclass import check_classification_targets

from flatmin._utils.arrays import to_numpy
from flatmin._utils.messages import naming
from flatmin._utils.numbers import check_between, check_count, check_flag
from flatmin._utils.random_state import resolve_random_state


def corrupt_labels(
    y: ArrayLike,
    n: int | None = None,
    *,
    fraction: float | None = None,
    allow_same: bool = False,
    random_state: int | np.random.RandomState | None = None,
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Replace the labels of randomly chosen examples by random labels.

    Exactly `n` examples are chosen without replacement, and the new label of each is
    drawn uniformly from the classes that occur in `y`, its own class left out unless
    `allow_same` is true.

    Parameters
    ----------
    y : array-like of shape (n_samples,)
        Class labels of any type: numbers, booleans, strings. It is not modified.

    n : int, default=None
        Number of labels to redraw. Give either `n` or `fraction`.

    fraction : float, default=None
        Share of the labels to redraw, from 0 to 1; ``n = round(fraction * n_samples)``.

    allow_same : bool, default=False
        If True, the new label is drawn from all K classes, so that on average n / K of
        the chosen examples keep the right one. The code released with [1]_ does that;
        its text speaks of "randomly wrong labels", which is the default here.

    random_state : int, RandomState instance or None, default=None
        Determines which examples are chosen and their new labels. Pass an int for the
        same result in every call.

    Returns
    -------
    y_corrupt : ndarray of shape (n_samples,)
        A copy of `y` with the new labels; its dtype is that of `y`.

    corrupted : ndarray of shape (n_samples,), dtype=bool
        True for the `n` chosen examples, also where `allow_same` left a label right.

    Raises
    ------
    TypeError
        If `allow_same` is not a bool.

    ValueError
        If not exactly one of `n` and `fraction` is given, if it is no integer, or no
        number, or out of range, or if `y` does not hold the labels of at least two
        classes.

    See Also
    --------
    load_noisy_fashion_mnist : Fashion-MNIST with wrong labels, as in the paper.

    References
    ----------
    .. [1] Zhu, Wu, Yu, Wu and Ma (2018). "The Regularization Effects of
       Anisotropic Noise in Stochastic Gradient Descent".
       :doi:`10.48550/arXiv.1803.00195`

    Examples
    --------
    >>> import numpy as np
    >>> from flatmin.datasets import corrupt_labels
    >>> y = np.repeat(["bag", "coat", "shirt"], 100)
    >>> y_corrupt, corrupted = corrupt_labels(y, fraction=0.2, random_state=0)
    >>> int(corrupted.sum())
    60
    >>> bool(np.array_equal(y_corrupt != y, corrupted))
    True
    """
    allow_same = check_flag("allow_same", allow_same)
    with naming("y"):
        labels: NDArray[Any] = column_or_1d(to_numpy("y", y))
        check_classification_targets(labels)
    n_chosen = _resolve_n(n, fraction, len(labels))
    classes, codes = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise ValueError(
            "corrupt_labels needs labels of at least two classes, or there is nothing "
            f"to exchange. Got y with the classes {classes.tolist()}."
        )
    rng = resolve_random_state(random_state)
    new_codes, corrupted = redraw_codes(
        codes, len(classes), n_chosen, rng=rng, allow_same=allow_same
    )
    y_corrupt = labels.copy()
    y_corrupt[corrupted] = classes[new_codes[corrupted]]
    return y_corrupt, corrupted


def redraw_codes(
    codes: NDArray[np.integer[Any]],
    n_classes: int,
    n: int,
    *,
    rng: np.random.RandomState,
    allow_same: bool,
) -> tuple[NDArray[np.integer[Any]], NDArray[np.bool_]]:
    """Redraw `n` of the class numbers `codes`, each from 0 to ``n_classes - 1``.

    Parameters
    ----------
    codes : ndarray of shape (n_samples,)
        Class numbers; not modified.

    n_classes : int
        Number of classes to draw from, at least 2 unless `allow_same` is true.

    n : int
        Number of examples to choose.

    rng : RandomState
        Source of the draws.

    allow_same : bool
        Whether an example may be given its own class again.

    Returns
    -------
    new_codes : ndarray of shape (n_samples,)
        Class numbers after the redraw, of the dtype of `codes`.

    corrupted : ndarray of shape (n_samples,), dtype=bool
        True for the chosen examples.
    """
    chosen = rng.choice(len(codes), size=n, replace=False)
    corrupted = np.zeros(len(codes), dtype=bool)
    corrupted[chosen] = True
    # A shift by 1 to K - 1 modulo K is uniform over the other classes; a shift by 0 to
    # K - 1 is uniform over all of them.
    shift = rng.randint(0 if allow_same else 1, n_classes, size=n)
    new_codes = codes.copy()
    new_codes[chosen] = (codes[chosen] + shift) % n_classes
    return new_codes, corrupted


def _resolve_n(n: int | None, fraction: float | None, n_samples: int) -> int:
    if fraction is not None and n is None:
        return round(check_between("fraction", fraction, 0, 1) * n_samples)
    if n is None or fraction is not None:
        raise ValueError(
            "corrupt_labels needs exactly one of n and fraction. "
            f"Got n={n} and fraction={fraction}."
        )
    n = check_count("n", n, at_least=0)
    if n > n_samples:
        raise ValueError(
            f"n={n} labels cannot be redrawn, y has only {n_samples}. Lower n, or give "
            "fraction, a share of the labels, instead."
        )
    return n
