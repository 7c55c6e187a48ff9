"""What the loaders of images have in common."""

import numpy as np
from numpy.typing import NDArray

_SUBSETS = {"train": ("train",), "test": ("test",), "all": ("train", "test")}


def splits_of(subset: str, function: str) -> tuple[str, ...]:
    """Return the splits that make up a subset.

    Parameters
    ----------
    subset : {"train", "test", "all"}
        What the user asks for.

    function : str
        Name of the public function, for the error.

    Returns
    -------
    splits : tuple of {"train", "test"}
        The splits in the order of their rows.

    Raises
    ------
    ValueError
        If `subset` is none of the options.
    """
    if not isinstance(subset, str) or subset not in _SUBSETS:
        raise ValueError(
            f"The 'subset' parameter of {function} must be one of "
            f"{list(_SUBSETS)}. Got {subset!r} instead."
        )
    return _SUBSETS[subset]


def scale_pixels(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Divide pixels by 255.

    Parameters
    ----------
    pixels : ndarray of any shape, dtype=uint8
        Intensities from 0 to 255.

    Returns
    -------
    scaled : ndarray of the same shape, dtype=float32
        Intensities from 0 to 1.
    """
    return np.divide(pixels, 255, dtype=np.float32)
