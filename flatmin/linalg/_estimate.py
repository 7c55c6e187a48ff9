"""What is estimated: its value, its standard error and its cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from flatmin._utils.results import ShortRepr, as_array

__all__ = ["Estimate"]


@dataclass(frozen=True, repr=False)
class Estimate(ShortRepr):
    """A number, or one for each coordinate, and how well it is known.

    ``float`` gives the number and ``np.asarray`` the array. Where nothing is drawn
    ``stderr`` is 0: the value is then exact, or a solver's to its tolerance.

    Examples
    --------
    >>> import torch
    >>> estimate = Estimate(torch.tensor(6.0), torch.tensor(0.25), 40)
    >>> estimate, float(estimate)
    (Estimate(value=6, stderr=0.25, n_matvecs=40), 6.0)
    """

    value: Tensor  # (), (*chains), or (D,) of a diagonal
    stderr: Tensor  # the same shape
    n_matvecs: int = 0  # products with the matrix; 0 where there is none

    def __float__(self) -> float:
        return float(self.value)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return as_array(self.value, dtype, copy)
