"""Which examples are unlike the others."""

from __future__ import annotations

from torch import Tensor

from flatmin._utils.trees import Inputs, leaves_of

__all__ = ["unlike_others"]


def unlike_others(X: Inputs) -> list[int]:
    """Return the examples with the largest and the smallest numbers.

    What looks at the whole of its input (``if x.max() > 1: x = x / 255``) sees
    something else in them than in most.

    Parameters
    ----------
    X : Tensor of shape (n, ...) or Tree

    Returns
    -------
    list of int
        For each leaf the first of those with the largest and the smallest maximum and
        minimum; of integers and masks also with the fewest and the most zeros.

    Examples
    --------
    >>> import torch
    >>> unlike_others(torch.tensor([[1.0, 2.0], [0.0, 2.0], [1.0, 3.0], [2.0, 2.0]]))
    [0, 1, 2, 3]
    """
    found = set()
    for leaf in leaves_of(X):
        for values in _of_each(leaf):
            found |= {int(values.argmin()), int(values.argmax())}
    return sorted(found)


def _of_each(leaf: Tensor) -> tuple[Tensor, ...]:
    if leaf.is_complex():
        leaf = leaf.abs()
    elif not leaf.is_floating_point():  # of some integers there is no maximum
        leaf = leaf.long()
    if leaf.ndim == 1:
        return (leaf,)
    if not leaf[0].numel():
        return ()
    axes = tuple(range(1, leaf.ndim))
    found = leaf.amax(axes), leaf.amin(axes)
    # Of images that takes ten times as long.
    return found if leaf.is_floating_point() else (*found, leaf.count_nonzero(axes))
