"""One ``random_state`` in, independent seeds out.

In a file of its own: a generator from a seed needs no scikit-learn.
"""

from collections.abc import Sequence

import numpy as np
from sklearn.utils import check_random_state

__all__ = ["resolve_random_state", "spawn_seeds"]


def resolve_random_state(
    random_state: int | np.random.RandomState | None,
) -> np.random.RandomState:
    """Return scikit-learn's ``check_random_state``, or an error that names it.

    Parameters
    ----------
    random_state : int, RandomState instance or None

    Returns
    -------
    RandomState

    Raises
    ------
    ValueError
        If it is none of these.
    """
    try:
        return check_random_state(random_state)
    except (TypeError, ValueError) as error:
        raise ValueError(
            "random_state must be an integer from 0 to 2**32 - 1, a RandomState "
            f"instance or None. Got {random_state!r}."
        ) from error


def spawn_seeds(
    random_state: int | np.random.RandomState | None, names: Sequence[str]
) -> dict[str, int]:
    """Draw one seed for each named use of a ``random_state``.

    Parameters
    ----------
    random_state : int, RandomState instance or None
        ``None`` draws from NumPy's global state, as scikit-learn does.
    names : sequence of str
        The uses, for example ``("init", "noise")``. A name keeps its seed when
        names are added behind it.

    Returns
    -------
    dict of str to int
        Seeds in ``[0, 2**31 - 1)``.

    Examples
    --------
    >>> spawn_seeds(0, ("init", "noise"))
    {'init': 209652396, 'noise': 398764591}
    """
    rng = resolve_random_state(random_state)
    return {name: int(rng.randint(np.iinfo(np.int32).max)) for name in names}
