"""The learning rate of every iteration, worked out before the first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    ReduceLROnPlateau,
)

from flatmin._utils.messages import first_line
from flatmin._utils.names import check_known, check_text
from flatmin._utils.quiet import ignored

__all__ = ["SCHEDULES", "Schedule", "make_schedule"]

# Name -> the scheduler, and what a run of n iterations gives it.
SCHEDULES: dict[str, tuple[type[LRScheduler], Callable[[int], dict[str, Any]]]] = {
    "cosine": (CosineAnnealingLR, lambda n: {"T_max": n}),
    "linear": (
        LinearLR,
        lambda n: {"start_factor": 1.0, "end_factor": 0.0, "total_iters": n},
    ),
}

# What PyTorch's schedulers change in a group.
_NAMES = ("lr", "momentum", "betas")


@dataclass(frozen=True)
class Schedule:
    """What the groups of an optimizer hold at each iteration.

    A scheduler of PyTorch counts its calls and nothing else. So a table of what it
    gives is the same schedule, without a state to save or to bring back.
    """

    values: Mapping[str, np.ndarray]  # name -> (n_iter, n_groups, ...)

    def apply(self, optimizer: torch.optim.Optimizer, iteration: int) -> None:
        """Set the groups to an iteration's numbers.

        Parameters
        ----------
        optimizer : torch.optim.Optimizer
        iteration : int
            After the last one its numbers stay.
        """
        for name, table in self.values.items():
            row = table[min(iteration, len(table) - 1)].tolist()
            for group, value in zip(optimizer.param_groups, row, strict=True):
                group[name] = tuple(value) if isinstance(value, list) else value

    @property
    def lowest_rate(self) -> tuple[float, int]:
        """The smallest η of all groups, and its first iteration."""
        rates = self.values["lr"].min(axis=1)
        at = int(rates.argmin())
        return float(rates[at]), at

    @property
    def largest_momentum(self) -> float:
        """Of all iterations and groups; 0 where the schedule leaves it alone."""
        momenta = self.values.get("momentum")
        return 0.0 if momenta is None else float(momenta.max())


def make_schedule(
    schedule: str | Callable[..., LRScheduler],
    settings: Mapping[str, Any],
    optimizer: torch.optim.Optimizer,
    n_iter: int,
) -> Schedule:
    """Work out a schedule; the optimizer is not touched.

    Parameters
    ----------
    schedule : {"cosine", "linear"}, LRScheduler class or callable
        A function of the optimizer, and of ``settings``, returns a scheduler of
        PyTorch.
    settings : mapping of str to object
        Its keyword arguments.
    optimizer : torch.optim.Optimizer
        With the learning rate that the schedule begins from.
    n_iter : int
        Iterations; the scheduler is stepped after each.

    Returns
    -------
    Schedule

    Raises
    ------
    TypeError
        If it is no scheduler.
    ValueError
        If a parameter does not fit, the scheduler ends before the iterations do, it
        changes something else, or a learning rate is negative or not finite.

    Examples
    --------
    >>> optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    >>> make_schedule("linear", {}, optimizer, 4).values["lr"].ravel().tolist()
    [1.0, 0.75, 0.5, 0.25]
    """
    make, filled = _resolve(schedule, n_iter)
    for name in settings:
        check_text("a name in schedule_params", name)
    twin = _twin(optimizer)
    before, rest = _numbers(twin), _rest(twin)
    # PyTorch warns that the optimizer has not stepped before the scheduler.
    with ignored(UserWarning):
        try:
            scheduler = make(twin, **{**filled, **settings})
        except (TypeError, ValueError, ArithmeticError, KeyError) as error:
            raise ValueError(
                f"schedule_params must be what {_name(make)} takes. Got "
                f"{dict(settings)!r}: {first_line(error)}."
            ) from error
        if isinstance(scheduler, ReduceLROnPlateau):
            raise ValueError(
                "ReduceLROnPlateau follows a measured number, and a schedule the "
                "iteration alone. Use skorch's callback "
                "LRScheduler('ReduceLROnPlateau', monitor='train_loss')."
            )
        if not isinstance(scheduler, LRScheduler):
            raise TypeError(
                "schedule must be a name, an LRScheduler class of PyTorch or a "
                f"function of the optimizer that returns one. Got {scheduler!r} from "
                f"{_name(make)}."
            )
        tables = _tabulate(scheduler, twin, before, n_iter)
    changed = sorted(
        {
            name
            for was, now in zip(rest, _rest(twin), strict=True)
            for name, value in was.items()
            if now.get(name) is not value and now.get(name) != value
        }
    )
    if changed:
        raise ValueError(
            f"A schedule may change {', '.join(_NAMES)} of the optimizer. Got "
            f"{_name(make)}, which changes {', '.join(changed)} too."
        )
    return Schedule(tables)


def _resolve(schedule: Any, n_iter: int) -> tuple[Callable[..., Any], dict[str, Any]]:
    if isinstance(schedule, str):
        check_known("schedule", schedule, SCHEDULES)
        kind, fill = SCHEDULES[schedule]
        return kind, fill(max(n_iter, 1))
    if not callable(schedule):
        raise TypeError(
            f"schedule must be a name ({', '.join(SCHEDULES)}), an LRScheduler class "
            "of PyTorch or a function of the optimizer that returns one. Got "
            f"{schedule!r}."
        )
    return schedule, {}


def _twin(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Return an optimizer of one number a group, with the same settings."""
    # The base class makes it: a constructor may want arguments that are not known here.
    groups = [
        {**group, "params": [nn.Parameter(torch.zeros(1))]}
        for group in optimizer.param_groups
    ]
    twin: torch.optim.Optimizer = object.__new__(type(optimizer))
    torch.optim.Optimizer.__init__(twin, groups, dict(optimizer.defaults))
    return twin


def _tabulate(
    scheduler: LRScheduler,
    twin: torch.optim.Optimizer,
    before: Mapping[str, list[Any]],
    n_iter: int,
) -> dict[str, np.ndarray]:
    rows: dict[str, list[Any]] = {name: [] for name in before}
    for t in range(max(n_iter, 1)):
        if t:
            try:
                scheduler.step()
            except (ValueError, ArithmeticError) as error:
                raise ValueError(
                    f"The schedule must last for {n_iter} iterations. Got an error "
                    f"after {t}: {first_line(error)}."
                ) from error
        for name, row in _numbers(twin).items():
            rows[name].append(row)
    tables = {name: np.array(row, dtype=np.float64) for name, row in rows.items()}
    rates = tables["lr"]
    wrong = ~(np.isfinite(rates) & (rates >= 0)).all(axis=1)
    if wrong.any():
        at = int(wrong.argmax())
        raise ValueError(
            "The learning rates of a schedule must be finite and not negative. Got "
            f"{rates[at].tolist()} in iteration {at}."
        )
    return {
        name: table
        for name, table in tables.items()
        if name == "lr" or (table != np.array(before[name])).any()
    }


def _numbers(optimizer: torch.optim.Optimizer) -> dict[str, list[Any]]:
    """Return what a scheduler may change, by name and group."""
    groups = optimizer.param_groups
    names = [name for name in _NAMES if name in groups[0]]
    return {name: [_number(group[name]) for group in groups] for name in names}


def _rest(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Return what no scheduler may change in a group, such as its weight decay."""
    known = ("params", "initial_lr", *_NAMES)
    return [
        {name: value for name, value in group.items() if name not in known}
        for group in optimizer.param_groups
    ]


def _number(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_number(item) for item in value]
    return float(value.item() if isinstance(value, Tensor) else value)


def _name(make: Any) -> str:
    return getattr(make, "__name__", type(make).__name__)
