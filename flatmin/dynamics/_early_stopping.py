"""When a training ends early, by the rules of scikit-learn's MLPClassifier."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from flatmin._utils.numbers import is_count

__all__ = ["EarlyStopping"]


class EarlyStopping:
    """Looks at every block, and says when there is no progress any more.

    The rules are those of ``sklearn.neural_network.MLPClassifier``, with a block in the
    place of its epoch. A block counts as one without progress if its number is not
    better than the best so far by ``tol``.

    Parameters
    ----------
    column : {"valid_score", "loss"}
        Of the rows of ``history_``. A score is to rise, and the θ of the best one is
        kept; a loss is to fall.
    n_iter_no_change : int
        The training ends after more blocks without progress, one after another.
    tol : float

    Attributes
    ----------
    stops : bool
        Whether the training is to end.
    best_theta : Tensor of shape (D,) or None
        Of the best block, for a score.
    best_iteration : int or None
        Its iteration in ``history_``.
    """

    def __init__(self, column: str, n_iter_no_change: int, tol: float) -> None:
        self.column = column
        self.stops = False
        self.best_theta: Tensor | None = None
        self.best_iteration: int | None = None
        self._n_iter_no_change = n_iter_no_change
        self._tol = tol
        self._sign = 1.0 if column == "valid_score" else -1.0
        self._best = -math.inf
        self._n_without = 0

    def judge(self, row: Mapping[str, Any], theta: Tensor) -> None:
        """Judge a block.

        Parameters
        ----------
        row : mapping
            Of ``history_``, measured at θ.
        theta : Tensor of shape (D,)
        """
        value = self._sign * row[self.column]
        if value >= self._best + self._tol:
            self._n_without = 0
        else:  # also where it is NaN
            self._n_without += 1
        if value > self._best:
            self._best = value
            if self.column == "valid_score":
                self.best_theta = theta.clone()
                self.best_iteration = row["iteration"]
        self.stops = self._n_without > self._n_iter_no_change

    def state_dict(self) -> dict[str, Any]:
        """Return what it remembers, as storable values.

        Returns
        -------
        dict
        """
        return {
            "best": self._best,
            "n_without": self._n_without,
            "best_theta": self.best_theta,
            "best_iteration": self.best_iteration,
        }

    def load_state_dict(self, state: Mapping[str, Any], like: Tensor) -> None:
        """Go back to where :meth:`state_dict` was called.

        Parameters
        ----------
        state : mapping
        like : Tensor of shape (D,)
            θ of the run.

        Raises
        ------
        ValueError
            If it is not the state of such a run.
        """
        theta, iteration = state["best_theta"], state["best_iteration"]
        fits = type(state["best"]) is float and is_count(state["n_without"], 0)
        if theta is None:
            fits = fits and iteration is None
        else:
            fits = fits and is_count(iteration, 0) and isinstance(theta, Tensor)
            fits = fits and theta.shape == like.shape and theta.dtype == like.dtype
        if not fits:
            raise ValueError(
                "The checkpoint holds another early stopping than the run."
            )
        self._best, self._n_without = state["best"], state["n_without"]
        self.best_theta = None if theta is None else theta.to(like.device)
        self.best_iteration = iteration
        self.stops = False  # a block that stops the run is not saved
