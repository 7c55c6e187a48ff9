"""Flatness and noise of a network while somebody else's loop trains it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from flatmin._utils.callables import check_callable
from flatmin._utils.names import check_known
from flatmin._utils.numbers import (
    check_accuracy,
    check_count,
    check_flag,
    check_positive,
)
from flatmin._utils.random import make_generator
from flatmin._utils.random_state import spawn_seeds
from flatmin.analysis._carried import carried
from flatmin.analysis._counted_risk import WorkCounter, counted
from flatmin.analysis._monitored import (
    FOLLOWING,
    OF_ALL_ONLY,
    QUANTITIES,
    MeasuredPoint,
    Quantity,
    find_quantity,
)
from flatmin.analysis._sampling import jackknife
from flatmin.linalg import Estimate
from flatmin.measures import SHARPNESS_MEASURES
from flatmin.measures._registry import BUILT_IN
from flatmin.risk import EmpiricalRisk
from flatmin.risk.losses.resolve_loss import LossLike
from flatmin.risk.ranks.collectives import find_ranks

__all__ = ["FlatnessMonitor"]

# The examples of a call are also measured in this many parts.
_N_PARTS = 4
# Fewer examples than this in a part tell nothing about the others.
_LEAST = 8


class FlatnessMonitor:
    """Measures a network in the middle of its training, within a budget.

    ``monitor(module, step)`` measures ``quantities`` on a fixed subset of the examples
    and returns them. The module comes back untouched: what is measured is a copy in
    evaluation mode, and no global generator moves.

    How many examples the subset has is decided at the first call, in which the
    quantities are measured on 32 examples and counted. Each number is an estimate of
    that of all N examples, and comes with its error: the subset is also measured in
    four parts. Their spread gives the variance of the subset's number; the difference
    of their mean from it gives the bias, which goes as one over the number of examples
    (λ₁ of a few examples is too large); what is drawn has an error of its own. The
    ``_stderr`` of a quantity is the root of the sum of the three squares. Four parts
    leave it three degrees of freedom: an interval that covers in 95 % of draws reaches
    3.2 of them, as Student's t tells, and two cover in some 86 %. With all examples it
    is that of the draws alone.

    "gradient_norm" and "simple_noise_scale" follow from an estimate of ‖g₀‖² that has
    no bias. Near a minimum the estimate may be below 0: then the norm is given as 0 and
    the noise scale as infinity. Their ``_stderr`` is half the way to the farther end of
    what two standard errors of that estimate leave, so that of the norm is never 0 on a
    subset; that of the noise scale is infinity where the examples cannot tell g₀ from
    0. What a function of one's own returns is that
    of the subset, of which flatmin does not know how it goes with the number of
    examples: its ``_stderr`` is NaN unless the subset is all.

    Parameters
    ----------
    X : array-like of shape (n_samples, n_features, ...), or a data set
        Of the training, as :class:`~flatmin.EmpiricalRisk` takes it.
    y : array-like of shape (n_samples,), default=None
        In the loss's form; None with a data set.
    loss : str, loss module, callable or ModuleLoss
        As in :class:`~flatmin.EmpiricalRisk`.
    quantities : iterable of str or callable, or dict of str to either
        Of "loss", "gradient_norm" (‖g₀‖), "max_eigenvalue" (λ₁), "edge_of_stability"
        (λ₁η/2), "hessian_trace" (Tr H), "covariance_trace" (Tr Σ),
        "simple_noise_scale" (Tr Σ / ‖g₀‖²), "curvature_noise_scale", "alignment" (three
        numbers) and the names in :data:`~flatmin.measures.SHARPNESS_MEASURES`. Four
        need a budget for all examples: "curvature_noise_scale", "sam", "asam" and
        "batch"; with less, two numbers of "alignment" are NaN, "overlap" and
        "first_alignment". A function gets ``(risk, theta)`` and returns a number, an
        ``Estimate``, or a dict of these; it goes by its ``__name__``, or by its key.
    every : int, default=1
        Steps between two measurements; at others a call returns an empty dict at once.
    budget : float, default=0.1
        What a call may cost, as a share of the N gradients of one pass over the
        examples, by the counts of the first call; ``cost`` tells what each took. A loss
        counts 1/3 of a gradient, a product with H two. λ₁ takes about 15 products.
    tol : float, default=1e-2
        Residual of eigenpairs, relative to max |λ|; the error of λ₁ is smaller.
    rtol : float, default=0.1
        Relative standard error of traces to reach.
    max_matvecs : int, default=30
        Products for each trace at most.
    target : str, default=None
    output_transform : callable, default=None
    positions : {"all", "example"}, default="all"
    l2 : float, default=0.0
        These four as in :class:`~flatmin.EmpiricalRisk`.
    batch_norm : {"frozen", "error"}, default="frozen"
        "frozen" uses the running statistics that BatchNorm has at the step. A monitor
        has no "batch", since a subset of the examples has other statistics than all.
    hvp : {"exact", "finite_difference"}, default="exact"
    compile : bool, default=False
        These three as in :class:`~flatmin.EmpiricalRisk`.
    device : str or torch.device, default=None
        None is the module's.
    dtype : {"float32", "float64"}, default=None
        None is the module's.
    distributed : bool, default=False
        Whether the processes of the default group of ``torch.distributed``, each of
        which calls the monitor with the same parameters, share the examples; see
        :class:`~flatmin.EmpiricalRisk`. What is drawn is drawn by the first.
    random_state : int, RandomState instance or None, default=0
        Draws the subset, and what the quantities draw: the same at every step.

    Attributes
    ----------
    history_ : pandas.DataFrame
        A row for each measurement: the step, every quantity and its ``_stderr``,
        ``n_examples``, and ``cost``, what was counted over N.
    n_examples_ : int
        Size of the subset, once it is known.

    Raises
    ------
    TypeError, ValueError
        If a parameter is not of its kind; in the first call, if module, loss and data
        do not fit together, or the budget does not reach for 32 examples, or for all
        where a quantity needs them.

    Examples
    --------
    (θ - 1)² has the second derivative 2, for any x = 1:

    >>> net = nn.Linear(1, 1, bias=False)
    >>> X, y = [[1.0]] * 100, [1.0] * 100
    >>> monitor = FlatnessMonitor(
    ...     X, y, loss="squared_error", quantities=["max_eigenvalue"], budget=10
    ... )
    >>> row = monitor(net, step=0)
    >>> round(row["max_eigenvalue"], 4), row["n_examples"]
    (2.0, 100)
    """

    def __init__(
        self,
        X: Any,
        y: Any = None,
        *,
        loss: LossLike,
        quantities: Any = ("loss", "max_eigenvalue", "covariance_trace"),
        every: int = 1,
        budget: float = 0.1,
        tol: float = 1e-2,
        rtol: float = 0.1,
        max_matvecs: int = 30,
        target: str | None = None,
        output_transform: Callable[[Any], Tensor] | None = None,
        positions: Literal["all", "example"] = "all",
        l2: float = 0.0,
        batch_norm: Literal["frozen", "error"] = "frozen",
        hvp: Literal["exact", "finite_difference"] = "exact",
        compile: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | str | None = None,
        distributed: bool = False,
        random_state: int | np.random.RandomState | None = 0,
    ) -> None:
        self.every = check_count("every", every)
        if str(batch_norm) == "batch":
            raise ValueError(
                "A monitor measures a part of the examples, which has other statistics "
                "than all of them. Got batch_norm='batch'; use 'frozen', or an "
                "EmpiricalRisk of all examples with update_from."
            )
        self.budget = check_positive("budget", budget)
        self._quantities = _named(quantities)
        rtol, max_matvecs = check_accuracy(rtol, max_matvecs)
        self._accuracy: dict[str, Any] = {
            "tol": check_positive("tol", tol),
            "rtol": rtol,
            "max_matvecs": max_matvecs,
        }
        names = ["subset", "whole", *(f"part {i}" for i in range(_N_PARTS))]
        self._seeds = spawn_seeds(random_state, names)
        self._arguments = (loss, X, y)
        self._options: dict[str, Any] = {
            "target": target,
            "output_transform": output_transform,
            "positions": positions,
            "l2": l2,
            "batch_norm": batch_norm,
            "hvp": hvp,
            "compile": check_flag("compile", compile),
            "device": device,
            "dtype": dtype,
            "distributed": check_flag("distributed", distributed),
        }
        self._risk: EmpiricalRisk | None = None
        self._parts: list[EmpiricalRisk] = []
        self._starts: dict[str, Tensor] = {}
        self._rows: list[dict[str, Any]] = []

    def __call__(
        self, module: nn.Module, step: int, *, lr: float | None = None
    ) -> dict[str, Any]:
        """Measure, if the step is one of those.

        Parameters
        ----------
        module : torch.nn.Module
            That is trained, in any mode. The same, or one of its form, at every call.
        step : int
        lr : float, default=None
            η, which "edge_of_stability" needs.

        Returns
        -------
        dict of str to number
            The row of ``history_``; empty between two measurements.

        Raises
        ------
        ValueError
            If the module has other parameters than at the call before, the budget is
            too small, or a quantity is not defined here.
        TypeError
            If a function returns no number.
        """
        step = check_count("step", step, at_least=0)
        if step % self.every:
            return {}
        if self._risk is None:
            risk = self._risk = self._begin(module, lr)
        else:
            risk = self._risk
            risk.update_from(module)
        counter = WorkCounter()
        theta = risk.params()
        whole = self._measure(risk, theta, "whole", lr=lr, counter=counter)
        parts = [
            self._measure(part, theta, f"part {i}", lr=lr, counter=counter)
            for i, part in enumerate(self._parts)
        ]
        row: dict[str, Any] = {"step": step}
        share = risk.n_examples / self._n_examples
        following = {
            name: FOLLOWING[quantity.name]
            for name, quantity in self._quantities.items()
            if quantity.name in FOLLOWING
        }
        for name, (value, stderr) in whole.items():
            others = [part[name][0] for part in parts]
            stderr = _error(value, stderr, others, share)
            if name in following:
                value, stderr = carried(following[name], value, stderr)
            row |= {name: value, f"{name}_stderr": stderr}
        row["n_examples"] = risk.n_examples
        row["cost"] = counter.n_gradients / self._n_examples
        self._rows.append(row)
        return dict(row)

    @property
    def history_(self) -> pd.DataFrame:
        """One row a measurement."""
        return pd.DataFrame(self._rows)

    @property
    def n_examples_(self) -> int:
        """How many examples the subset has."""
        if self._risk is None:
            raise AttributeError("n_examples_ is known after the first measurement.")
        return self._risk.n_examples

    def _begin(self, module: nn.Module, lr: float | None) -> EmpiricalRisk:
        """Count what the quantities cost, and return the risk of the subset."""
        loss, X, y = self._arguments
        ranks = find_ranks(self._options["distributed"])
        told = ranks.of_first(torch.tensor(list(self._seeds.values()))).tolist()
        self._seeds = dict(zip(self._seeds, told, strict=True))
        risk = EmpiricalRisk(module, loss, X, y, **self._options)
        n_all = self._n_examples = risk.n_examples
        rng = make_generator(self._seeds["subset"])
        order = torch.randperm(n_all, generator=rng).to(risk.device)
        least = min(_N_PARTS * _LEAST, n_all)
        counter = WorkCounter()
        pilot = risk.subset(order[:least])
        self._measure(pilot, risk.params(), "whole", lr=lr, counter=counter)
        self._starts.clear()
        cost = counter.n_gradients / least
        if self.budget >= cost:
            return risk
        for quantity in self._quantities.values():
            if quantity.name not in OF_ALL_ONLY:
                continue
            raise ValueError(
                f"{quantity.name!r} of a part of the examples has no error that "
                f"flatmin knows. Got budget={self.budget:g} for quantities that cost "
                f"{cost:.3g} gradients of each example; pass budget={cost * 1.05:.2g} "
                "or more, which reaches for all, or leave it out."
            )
        # Once more in four parts.
        n = min(int(self.budget * n_all / (2 * cost)), n_all - 1)
        if n < least:
            needed = min(cost, 2 * cost * least / n_all)
            raise ValueError(
                f"The budget must reach for {least} examples. Got {self.budget:g} "
                f"passes over {n_all} examples for quantities that cost {cost:.3g} "
                f"gradients of each example; pass budget={needed * 1.05:.2g} or more, "
                "or fewer quantities."
            )
        chosen = order[:n]
        self._parts = [risk.subset(part) for part in chosen.tensor_split(_N_PARTS)]
        return risk.subset(chosen)

    def _measure(
        self,
        risk: EmpiricalRisk,
        theta: Tensor,
        which: str,
        *,
        lr: float | None,
        counter: WorkCounter,
    ) -> dict[str, tuple[float, float]]:
        """Return value and standard error of every number of some examples."""
        point = MeasuredPoint(
            counted(risk, counter),
            theta,
            n_examples=self._n_examples,
            seed=self._seeds[which],
            lr=lr,
            v0=self._starts.get(which),
            **self._accuracy,
        )
        found: dict[str, tuple[float, float]] = {}
        whole = point.risk.n_examples == self._n_examples
        for name, quantity in self._quantities.items():
            numbers = _numbers(name, quantity.measure(point))
            if quantity.name is None and not whole:
                numbers = {key: (x, math.nan) for key, (x, _) in numbers.items()}
            found |= numbers
        if "top" in vars(point):
            self._starts[which] = point.top.eigenvectors[:, 0]
        return found


@dataclass(frozen=True)
class _Named:
    """A quantity, and its name where flatmin knows it of a subset or refuses it."""

    measure: Quantity
    name: str | None  # None is a function of the user's, registered or not


def _named(quantities: Any) -> dict[str, _Named]:
    """Return the quantities by the names of their columns, or raise."""
    if isinstance(quantities, str) or not isinstance(quantities, Iterable):
        raise TypeError(
            "quantities must be names or functions, such as ['max_eigenvalue'], or a "
            f"dict of them. Got {quantities!r}."
        )
    known = (*QUANTITIES, *(n for n in SHARPNESS_MEASURES if n not in QUANTITIES))
    if isinstance(quantities, Mapping):
        pairs = list(quantities.items())
    else:
        pairs = [(getattr(q, "__name__", q), q) for q in quantities]
    named: dict[str, _Named] = {}
    for name, quantity in pairs:
        if isinstance(quantity, str):
            check_known("quantity", quantity, known)
            is_own = quantity not in QUANTITIES and (
                SHARPNESS_MEASURES[quantity] not in BUILT_IN
            )
            found = _Named(find_quantity(quantity), None if is_own else quantity)
        else:
            check_callable(f"The quantity {name!r}", quantity, "risk", "theta")
            found = _Named(_of_user(quantity), None)
        if not isinstance(name, str):
            raise TypeError(
                f"A quantity must have a name. Got {quantity!r}; pass a dict of names."
            )
        if name in named or name in ("step", "n_examples", "cost"):
            raise ValueError(
                f"quantities must have names of their own. Got {name!r} twice, or "
                "for a column of the monitor's; pass a dict of other names."
            )
        named[name] = found
    if not named:
        raise ValueError("quantities must name at least one. Got none.")
    return named


def _of_user(function: Callable[..., Any]) -> Quantity:
    return lambda point: function(point.risk, point.theta)


def _numbers(name: str, found: Any) -> dict[str, tuple[float, float]]:
    """Return value and standard error of each number that a quantity has given."""
    if isinstance(found, Mapping):
        numbers: dict[str, tuple[float, float]] = {}
        for key, value in found.items():
            numbers |= _numbers(f"{name}_{key}", value)
        return numbers
    if isinstance(found, Tensor | np.ndarray) and found.ndim == 0:
        found = found.item()
    is_real = isinstance(found, Real) and not isinstance(found, bool)
    if not (is_real or isinstance(found, Estimate)):
        raise TypeError(
            f"The quantity {name!r} must return a number, an Estimate, or a dict of "
            f"these. Got {type(found).__name__}."
        )
    return {name: (float(found), float(getattr(found, "stderr", 0.0)))}


def _error(value: float, stderr: float, parts: list[float], share: float) -> float:
    """Return the standard error of a subset's number as an estimate of the whole.

    Parameters
    ----------
    value : float
        Of the n examples of the subset.
    stderr : float
        Of what was drawn for it.
    parts : list of float
        Of J equal parts of the subset; empty where that is everything.
    share : float
        n / N.

    Returns
    -------
    float
    """
    if all(part == value for part in parts):
        return stderr
    if not math.isfinite(value) or not np.isfinite(parts).all():
        return math.nan
    _, drawn = jackknife(value, parts, kept=1 / len(parts), share=share)
    return math.hypot(drawn, stderr)
