"""A run in a folder: what it is, and how far it has come."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from numbers import Integral
from types import NoneType
from typing import Any

import torch
from torch import Tensor

from flatmin._runs.checkpoint_files import CheckpointFolder
from flatmin._runs.fingerprint import check_identity, hashes
from flatmin._utils.random import make_generator
from flatmin.dynamics import (
    Checkpoints,
    callback_settings,
    check_rows,
    store_callbacks,
)
from flatmin.estimators._parameter_roles import parameters_for
from flatmin.estimators._run import Run
from flatmin.estimators._settings import FolderSettings
from flatmin.noise import Step, step_for
from flatmin.noise._registry import BUILT_IN
from flatmin.risk.ranks.collectives import is_first

__all__ = ["RunCheckpoints", "check_can_resume"]

# Parameters that a run does not depend on. Where it runs is its environment.
_NOT_ITS_OWN = parameters_for("folder", "bookkeeping", "device")


class RunCheckpoints:
    """Saves one run, and finds it again.

    Parameters
    ----------
    estimator : estimator
        With an integer as ``random_state``.
    run : Run
    theta : Tensor of shape (D,)
        Where the run begins.
    callbacks : iterable of (name, callback) pairs
        Initialised.

    Attributes
    ----------
    found : dict or None
        What was saved last of the same run: its phase, "warmup", "noise" or
        "finished", and what that phase has saved.

    Raises
    ------
    ValueError
        If the folder holds another run, or nothing that can be read.
    TypeError
        If a callback remembers what cannot be stored.
    """

    def __init__(
        self,
        estimator: Any,
        run: Run,
        theta: Tensor,
        callbacks: Iterable[tuple[str, Any]],
    ) -> None:
        folder = run.folder
        if folder is None:
            raise ValueError("A run is saved in a folder. Got checkpoint_dir=None.")
        store_callbacks(callbacks)
        self._folder = CheckpointFolder(folder.path)
        self._every = folder.every
        self._run = run
        self._writes = is_first(estimator.distributed)
        self._identity = hashes(_identity(estimator, run, theta))
        self._environment = {
            "torch": str(torch.__version__),
            "device": run.risk.device.type,
            "threads": torch.get_num_threads(),
        }
        self.found: dict[str, Any] | None = self._folder.read()
        self._phases: set[str] = set()
        if self.found is not None:
            with self.restoring():
                check_identity(
                    self._folder.path, self.found.pop("identity", {}), self._identity
                )
                _check_found(self.found)
            self._phases.add(self.found["phase"])
            if self.found["phase"] != "finished":
                self._compare_environment(self.found["environment"])

    @property
    def n_done(self) -> int:
        """How many iterations of how many phases were found; 0 where none were."""
        if self.found is None:
            return 0
        done: int = self.found["offset"] + self.found["descent"]["iteration"]
        return 1 + done

    @contextmanager
    def restoring(self) -> Iterator[None]:
        """Name the folder where what it holds does not fit.

        Yields
        ------
        None

        Raises
        ------
        ValueError
            For whatever goes wrong inside: nothing has been trained yet.
        """
        try:
            yield
        except Exception as error:
            text = str(error)
            if isinstance(error, ValueError) and str(self._folder.path) in text:
                raise
            raise ValueError(
                f"The checkpoint in {self._folder.path} is whole and does not fit this "
                f"run. {type(error).__name__}: {text} Empty the folder, or name "
                "another one, to begin anew."
            ) from error

    def of_phase(self, phase: str) -> Checkpoints:
        """Return what saves a phase.

        Parameters
        ----------
        phase : {"warmup", "noise"}

        Returns
        -------
        Checkpoints
        """
        return Checkpoints(lambda parts: self.save(phase, parts), self._every)

    def save(self, phase: str, parts: Callable[[], Mapping[str, Any]]) -> None:
        """Save a phase; a failure ends the run only if nothing would be lost.

        Parameters
        ----------
        phase : {"warmup", "noise", "finished"}
        parts : callable
            Returns what it has to say.

        Raises
        ------
        OSError
            If nothing can be written, and nothing has been before.
        TypeError
            If what is to be saved of this phase is not made of storable values, and
            nothing of it has been saved before.

        Warns
        -----
        UserWarning
            If nothing could be written. What was saved before is still there.
        """
        run = self._run
        try:
            content = {
                "identity": self._identity,
                "environment": self._environment,
                "phase": phase,
                "offset": run.offset,
                "warmup_rows": run.rows,
                "diverged": run.diverged,
                **parts(),
            }
            if self._writes:
                self._folder.write(content)
            self._phases.add(phase)
        except (OSError, TypeError) as error:
            known = self._phases
            if isinstance(error, TypeError) and phase != "finished":
                known = known & {phase}
            if not known:
                raise
            warnings.warn(
                f"No checkpoint could be written into {self._folder.path}: {error} The "
                "last one there is whole, and the training goes on without a new one.",
                stacklevel=2,
            )

    def check_law(self, theta: Tensor, batches: Any) -> None:
        """Raise before any work if the state of somebody's law cannot be stored.

        Parameters
        ----------
        theta : Tensor of shape (D,)
        batches : GradientBatches or None
            With draws that are not those of the run.
        """
        law, rng = self._run.law, make_generator(0, self._run.risk.device)
        known = BUILT_IN
        if type(law) in known and type(getattr(law, "law", law)) in (NoneType, *known):
            return
        risk = self._run.risk if batches is None else batches.draw()
        state = None
        # Where the warm-up leads to it may be able to.
        with suppress(RuntimeError, ValueError):
            told = step_for(law.refresh, Step(0, 1.0))  # only the state's kind matters
            state = law.refresh(risk, theta, rng, **told)
        law.store_state(state)

    def _compare_environment(self, found: Mapping[str, Any]) -> None:
        if found != self._environment:
            warnings.warn(
                f"The run in {self._folder.path} was begun with {found}, and goes on "
                f"with {self._environment}: it may differ, in the last bits, from one "
                "that was not interrupted.",
                stacklevel=2,
            )


def _check_found(found: Mapping[str, Any]) -> None:
    check_rows(found["warmup_rows"])
    phase, offset, diverged = found["phase"], found["offset"], found["diverged"]
    fits = phase in ("warmup", "noise", "finished") and type(offset) is int
    fits = fits and type(found["descent"]["iteration"]) is int
    if not (fits and isinstance(diverged, str | None)):
        raise ValueError("It does not say how far the run has come.")


def check_can_resume(random_state: Any, folder: FolderSettings | None) -> None:
    """Raise if a run that is saved could not be found again.

    Parameters
    ----------
    random_state : object
        The estimator's.
    folder : FolderSettings or None

    Raises
    ------
    ValueError
        If there is a folder, and no integer as a seed.
    """
    if folder is not None and not isinstance(random_state, Integral):
        raise ValueError(
            "A checkpoint_dir needs an integer random_state: otherwise fit, called "
            f"again, would be another run. Got random_state={random_state!r}."
        )


def _identity(estimator: Any, run: Run, theta: Tensor) -> dict[str, Any]:
    settings = estimator.get_params(deep=False)
    return {
        **{name: held for name, held in settings.items() if name not in _NOT_ITS_OWN},
        "kind of estimator": type(estimator),
        "module": run.module,
        "method": run.law,
        "warmup": run.warmup and vars(run.warmup),
        "random_state": run.seeds,
        "callbacks": [_describe_callback(item) for item in estimator.callbacks or ()],
        "X and y": run.examples.identity(),
        "sample_weight": run.weights,
        "X_val and y_val": run.validation and run.validation.identity(),
        "the start": [
            theta,
            run.offset,
            [generator.get_state() for generator in run.generators.values()],
        ],
    }


def _describe_callback(item: Any) -> Any:
    name, callback = item if isinstance(item, tuple) else (None, item)
    if callback is None or isinstance(callback, type):
        return [name, callback]
    return [name, type(callback), callback_settings(callback)]
