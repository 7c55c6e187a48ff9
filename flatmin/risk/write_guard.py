"""Copies for somebody's function that writes, in place, into what it is given."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from flatmin._utils.trees import Inputs, leaves_of, map_inputs

__all__ = ["WriteGuard"]

_Result = TypeVar("_Result")


class WriteGuard:
    """Calls a function on tensors that belong to others.

    While a risk is made the function gets copies, and what it writes into them is seen.
    Later only one that has written gets copies. One that writes for the first time then
    has changed the data, and is refused from then on.

    Parameters
    ----------
    message : str
        What is said of it.
    looks : bool, default=True
        Whether copies are compared with what they were made of. Outside of a risk
        nobody does, and the function gets copies for good.
    """

    def __init__(self, message: str, *, looks: bool = True) -> None:
        self.message = message
        self._looks = looks
        self._is_trusted = False
        self._writes = False
        self._has_spoilt = False

    def trust(self) -> None:
        """Make no more copies, unless one of them has been written into."""
        self._is_trusted = True

    def call(
        self,
        function: Callable[[Inputs], _Result],
        X: Inputs,
        *,
        are_copies: bool = False,
    ) -> _Result:
        """Return what a function makes of tensors, which stay as they are.

        Parameters
        ----------
        function : callable
        X : Tensor or Tree
        are_copies : bool, default=False
            Whether nobody else has these tensors.

        Returns
        -------
        object

        Raises
        ------
        ValueError
            If it has written into tensors that are no copies, now or before.
        """
        if self._has_spoilt:
            raise ValueError(self.message)
        given = X
        if not are_copies and (self._writes or not self._is_trusted):
            X = map_inputs(Tensor.clone, X)
        before = _versions(X)
        result = function(X)
        if _versions(X) != before:
            self._writes = True
            if X is given and not are_copies:
                self._has_spoilt = True
                raise ValueError(self.message)
        elif self._looks and X is not given and not self._writes:
            # What writes past PyTorch, by x.data or x.numpy(), counts no version.
            pairs = zip(leaves_of(X), leaves_of(given), strict=True)
            self._writes = not all(torch.equal(*pair) for pair in pairs)
        return result


def _versions(X: Inputs) -> list[int]:
    """Return how often each leaf was written into; PyTorch counts on the host."""
    return [0 if leaf.is_inference() else leaf._version for leaf in leaves_of(X)]
