"""The points θ of a run that are kept for later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from flatmin._utils.memory import available_memory, in_gigabytes
from flatmin._utils.numbers import is_count

__all__ = ["KeptParams", "check_room", "count_kept"]

# Rows that wait on a GPU until they are fetched together: fetching one stops it.
_N_WAITING = 16


class KeptParams:
    """Every k-th θ of the noise, in a table in the main memory.

    Parameters
    ----------
    theta : Tensor of shape (D,)
        Gives D and the dtype.
    every : int
        k. Counted from the first noisy iteration of all fits that go on from one
        another.
    n_iter : int
        The most iterations that will come.
    n_before : int, default=0
        Noisy iterations of earlier fits.
    offset : int, default=0
        Iterations before these, the warm-up's too: what is kept counts them.
    before : tuple of (sequence of int, Tensor of shape (n, D)), default=None
        What earlier fits have kept.
    """

    def __init__(
        self,
        theta: Tensor,
        every: int,
        n_iter: int,
        *,
        n_before: int = 0,
        offset: int = 0,
        before: tuple[Sequence[int], Tensor] | None = None,
    ) -> None:
        iterations, rows = before or ([], theta.new_empty((0, len(theta))))
        self._every = every
        self._n_before = n_before
        self._offset = offset
        self._iterations = [int(t) for t in iterations]
        # One table from the beginning: rows in a list would be there twice at the end.
        n_rows = len(rows) + count_kept(every, n_iter, n_before)
        self._table = torch.empty((n_rows, len(theta)), dtype=theta.dtype)
        self._table[: len(rows)] = rows
        self._waiting: list[Tensor] = []

    def keep_if_due(self, iteration: int, theta: Tensor) -> None:
        """Keep θ, if that is due and has not been done.

        Parameters
        ----------
        iteration : int
            Of this fit.
        theta : Tensor of shape (D,)
        """
        if (self._n_before + iteration) % self._every:
            return
        at = self._offset + iteration
        if self._iterations and self._iterations[-1] >= at:
            return
        self._iterations.append(at)
        if theta.device.type == "cpu":
            self._table[len(self._iterations) - 1] = theta
            return
        self._waiting.append(theta.clone())
        if len(self._waiting) >= _N_WAITING:
            self._fetch()

    def drop_after(self, iteration: int) -> None:
        """Forget what came later, where a training returns to an earlier θ.

        Parameters
        ----------
        iteration : int
            Of this fit.
        """
        self._fetch()
        while self._iterations and self._iterations[-1] > self._offset + iteration:
            self._iterations.pop()

    def rows(self) -> tuple[list[int], Tensor]:
        """Return what has been kept.

        Returns
        -------
        iterations : list of int
        params : Tensor of shape (n, D)
            A part of the table.
        """
        self._fetch()
        return list(self._iterations), self._table[: len(self._iterations)]

    def state_dict(self) -> dict[str, Any]:
        """Return what has been kept, as storable values.

        Returns
        -------
        dict
        """
        iterations, params = self.rows()
        return {"iterations": iterations, "params": params}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to where :meth:`state_dict` was called.

        Parameters
        ----------
        state : mapping

        Raises
        ------
        ValueError
            If it does not fit the run.
        """
        iterations, params = state["iterations"], state["params"]
        n_rows, n_params = self._table.shape
        fits = isinstance(iterations, list) and len(iterations) <= n_rows
        fits = fits and all(is_count(t, 0) for t in iterations)
        fits = fits and iterations == sorted(set(iterations))
        fits = fits and isinstance(params, Tensor) and params.dtype == self._table.dtype
        if not (fits and params.shape == (len(iterations), n_params)):
            raise ValueError("The checkpoint holds another trajectory than the run's.")
        self._iterations = list(iterations)
        self._table[: len(iterations)] = params
        self._waiting = []

    def _fetch(self) -> None:
        if self._waiting:
            n = len(self._iterations)
            self._table[n - len(self._waiting) : n] = torch.stack(self._waiting).cpu()
            self._waiting = []


def count_kept(every: int, n_iter: int, n_before: int = 0) -> int:
    """Return how many points are kept, the one before the first step counted.

    Parameters
    ----------
    every : int
    n_iter : int
    n_before : int, default=0
        All as in :class:`KeptParams`.

    Returns
    -------
    int

    Examples
    --------
    >>> count_kept(10, 25), count_kept(10, 25, n_before=25)
    (3, 3)
    """
    return (n_before + n_iter) // every - (n_before - 1) // every


def check_room(n_rows: int, n_params: int, dtype: torch.dtype) -> None:
    """Raise before any work if so many points do not fit into memory.

    Parameters
    ----------
    n_rows : int
    n_params : int
    dtype : torch.dtype

    Raises
    ------
    ValueError
        With what they take, and what is free.
    """
    needed, free = n_rows * n_params * dtype.itemsize, available_memory()
    if free is not None and needed > free:
        raise ValueError(
            f"keep_params_every would keep {n_rows} points of {n_params} numbers, "
            f"{in_gigabytes(needed)}, and {in_gigabytes(free)} of memory are free. "
            f"Keep fewer: at most {free // (n_params * dtype.itemsize)} fit."
        )
