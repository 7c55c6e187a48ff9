"""What a net holds while it trains: it is given, saved, brought back and let go."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from skorch import NeuralNet
from skorch.history import History

from flatmin._runs.storable import as_storable
from flatmin.dynamics._callback_state import (
    check_unchanged,
    fixed_values,
    load_callbacks,
    store_callbacks,
)
from flatmin.dynamics._checkpoints import Checkpoints
from flatmin.dynamics._descent import NoisyDescent
from flatmin.dynamics._descent_state import check_history, check_rows
from flatmin.dynamics._early_stopping import EarlyStopping
from flatmin.dynamics._recorder import Recorder
from flatmin.risk.network.module_copy import copy_module

__all__ = ["AttachedNet"]

_OF_A_TRAINING = (
    "descent_",
    "recorder_",
    "_plan_",
    "_block_end_",
    "_begun_block_",
    "_fixed_",
)


@dataclass(frozen=True)
class _Plan:
    """What an epoch runs; see :meth:`AttachedNet.attach`."""

    max_iter: int  # in all epochs together
    record_every: int  # iterations an epoch
    offset: int  # iterations before the first one here
    progress: Callable[[int], Any]
    checkpoints: Checkpoints
    stopping: EarlyStopping | None
    n_steps_before: int  # of the optimizer, in earlier fits
    n_clipped_before: int | None  # of them clipped; None where nothing is clipped


@dataclass(frozen=True)
class _BlockEnd:
    """Where skorch was when the last block ended."""

    n_blocks: int  # rows of the net's history
    callbacks: dict[str, Any] | TypeError  # what they remember, or why that is lost


class AttachedNet(NeuralNet):
    """A net that is told by :meth:`attach` what an epoch runs."""

    optimizer_: torch.optim.Optimizer

    def attach(
        self,
        descent: NoisyDescent,
        recorder: Recorder,
        *,
        max_iter: int,
        record_every: int,
        offset: int,
        n_steps_before: int = 0,
        progress: Callable[[int], Any],
        checkpoints: Checkpoints,
        stopping: EarlyStopping | None = None,
        n_clipped_before: int | None = None,
    ) -> None:
        """Give the net what an epoch runs.

        Parameters
        ----------
        descent : NoisyDescent
            Steps this net's ``optimizer_``.
        recorder : Recorder
        max_iter : int
            Iterations in all epochs together.
        record_every : int
            Iterations an epoch.
        offset : int
            Iterations before the first one here.
        n_steps_before : int, default=0
            The optimizer's steps in those of them that are no warm-up.
        progress : callable
            Called with 1 after each iteration.
        checkpoints : Checkpoints
            Get what :meth:`state_to_save` returns, besides the descent.
        stopping : EarlyStopping, default=None
            Looks at every block.
        n_clipped_before : int, default=None
            Of ``n_steps_before``, the clipped ones; None where nothing is clipped.
        """
        self.descent_ = descent
        self.recorder_ = recorder
        self.rows_: list[dict[str, Any]] = []
        self._plan_ = _Plan(
            max_iter,
            record_every,
            offset,
            progress,
            checkpoints,
            stopping,
            n_steps_before,
            n_clipped_before,
        )
        self._begun_block_: dict[str, Any] | None = None
        self._fixed_: dict[str, str] | None = None

    def state_to_save(self) -> dict[str, Any]:
        """Return what the net and its callbacks remembered at the last block's end.

        A block that is resumed begins again for skorch, and goes on in the descent.

        Returns
        -------
        dict
            Storable values, for :meth:`load_state`.

        Raises
        ------
        TypeError
            If something that they remember is not storable, or could not be brought
            back.
        """
        end = self._block_end_
        if isinstance(end.callbacks, TypeError):
            raise end.callbacks
        history = self.history.to_list()[: end.n_blocks]
        history = as_storable(history, "the history of the net")
        try:
            check_history(history)
        except ValueError as error:
            raise TypeError(str(error)) from error
        kept, stopping = self.descent_.kept, self._plan_.stopping
        return {
            "rows": self.rows_,
            "history": history,
            "callbacks": end.callbacks,
            "kept": None if kept is None else kept.state_dict(),
            "stopping": None if stopping is None else stopping.state_dict(),
        }

    def load_state(self, state: dict[str, Any], *, begun: bool) -> None:
        """Go back to where a checkpoint was written.

        Parameters
        ----------
        state : dict
            From :meth:`state_to_save`, and the "descent".
        begun : bool
            Whether callbacks have been told that the training begins.

        Raises
        ------
        ValueError
            If it is not the state of this net.
        """
        check_rows(state["rows"])
        check_history(state["history"])
        kept, stopping = self.descent_.kept, self._plan_.stopping
        if kept is not None:
            kept.load_state_dict(state["kept"])
        if stopping is not None:
            stopping.load_state_dict(state["stopping"], self.descent_.theta)
        self.rows_ = list(state["rows"])
        self.history = History(state["history"])
        remembered = copy.deepcopy(state["callbacks"])  # lists that will grow
        load_callbacks(self.callbacks_, remembered, begun=begun)
        self._block_end_ = _BlockEnd(len(self.history), state["callbacks"])
        self._fixed_ = fixed_values(self.callbacks_)
        self.descent_.load_state_dict(
            state["descent"], has_callbacks=bool(self.callbacks)
        )
        in_block = self.descent_.iteration % self._plan_.record_every != 0
        self._begun_block_ = state["descent"] if in_block else None

    def end_block(self) -> None:
        """Note where skorch is, and save if that is due."""
        checkpoints = self._plan_.checkpoints
        if checkpoints.saves:
            self.descent_.follow()
            self.note_block_end()
            checkpoints.end_block(self.descent_, self.state_to_save)

    def note_block_end(self) -> None:
        """Note where skorch is, for :meth:`state_to_save`."""
        remembered: dict[str, Any] | TypeError
        try:
            remembered = store_callbacks(self.callbacks_)
            now = fixed_values(self.callbacks_)
            self._fixed_ = now if self._fixed_ is None else self._fixed_
            check_unchanged(self._fixed_, now)
        except TypeError as error:
            remembered = error
        self._block_end_ = _BlockEnd(len(self.history), remembered)

    def detach(self) -> None:
        """Let go of the data that training needed; the net still predicts."""
        for name in _OF_A_TRAINING:
            self.__dict__.pop(name, None)
        self.train_split = None
        # On the module's own parameters again, with what the optimizer has learned: a
        # preconditioner is read from it.
        trained = self.optimizer_
        self.initialize_optimizer()
        # Another library's state may be of any kind, and a callback may have added
        # groups: the training is not to be lost for that.
        if type(trained).__module__.startswith("torch.optim"):
            with suppress(ValueError):
                self.optimizer_.load_state_dict(_own_storage(trained.state_dict()))

    def __getstate__(self) -> dict[str, Any]:
        twin: Any = object.__new__(type(self))
        vars(twin).update(vars(self))
        # ``module`` is the instance that became ``module_``, and ``criterion_`` the
        # one that was ``criterion``: once is enough.
        for name in (*_OF_A_TRAINING, "module", "criterion_"):
            vars(twin).pop(name, None)
        if hasattr(self, "descent_"):  # a pickled view is tied to nothing
            _untie(twin, self)
        return NeuralNet.__getstate__(twin)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.module, self.criterion_ = self.module_, self.criterion


def _own_storage(state: dict[str, Any]) -> dict[str, Any]:
    """Return the state of an optimizer with tensors that share no storage."""
    # A view of the flat state would hold the whole of it.
    parts = {
        key: {n: v.clone() if isinstance(v, torch.Tensor) else v for n, v in p.items()}
        for key, p in state["state"].items()
    }
    return {**state, "state": parts}


def _untie(twin: Any, net: Any) -> None:
    """Give the copy of a net in training a module and an optimizer of its own."""
    twin.module_, twin.criterion_ = copy_module(net.module_), net.criterion_
    twin.initialize_optimizer()
    twin.optimizer_.load_state_dict(net.optimizer_.state_dict())
    del twin.__dict__["criterion_"]
