"""When a run is saved on its way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flatmin.dynamics._descent import NoisyDescent

__all__ = ["Checkpoints"]


class Checkpoints:
    """Saves a run when it is due.

    Parameters
    ----------
    save : callable, default=None
        Takes a function that returns what is to be saved, a dict; None saves nothing.
    every : int, default=None
        Iterations between two checkpoints, at the multiples; None is at the end of
        every block.
    """

    def __init__(
        self,
        save: Callable[[Callable[[], dict[str, Any]]], Any] | None = None,
        every: int | None = None,
    ) -> None:
        self._save = save
        self._every = every
        self._saved_at: int | None = None

    @property
    def saves(self) -> bool:
        """Whether there is anything to do."""
        return self._save is not None

    def run(
        self,
        descent: NoisyDescent,
        n_iter: int,
        progress: Callable[[int], Any],
        parts: Callable[[], dict[str, Any]],
    ) -> None:
        """Take the steps of a block, and save those that are due before its end.

        Parameters
        ----------
        descent : NoisyDescent
        n_iter : int
            How many.
        progress : callable
            As in :meth:`NoisyDescent.run`.
        parts : callable
            Returns what is to be saved besides the descent.
        """
        end = descent.iteration + n_iter
        while descent.iteration < end and descent.diverged is None:
            left = end - descent.iteration
            if self._save is not None and self._every is not None:
                left = min(left, self._every - descent.iteration % self._every)
            descent.run(left, progress)
            if descent.iteration < end and descent.diverged is None:
                self._write(descent, parts)

    def end_block(
        self, descent: NoisyDescent, parts: Callable[[], dict[str, Any]]
    ) -> None:
        """Save at the end of a block, if that is due.

        Parameters
        ----------
        descent : NoisyDescent
        parts : callable
            As in :meth:`run`.
        """
        before, now = self._saved_at, descent.iteration
        if before is None or self._every is None:
            due = before != now
        else:
            due = now // self._every > before // self._every
        if due:
            self._write(descent, parts)

    def _write(
        self, descent: NoisyDescent, parts: Callable[[], dict[str, Any]]
    ) -> None:
        if self._save is not None:
            self._save(lambda: {**parts(), "descent": descent.state_dict()})
        self._saved_at = descent.iteration
