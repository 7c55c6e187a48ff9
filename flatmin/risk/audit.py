"""The identities of the mathematics on one module, loss and data: what holds, what not.

A table as ``torch.autograd.gradcheck`` would print it, for a user who wants to know
what a number rests on, and for a bug report. In float64 where the module allows.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flatmin._utils.messages import first_line
from flatmin._utils.versions import list_versions
from flatmin.risk.data.opened_data import trial_indices
from flatmin.risk.identities import REFUSALS, Check, check_identities
from flatmin.risk.quantities.label_noise import LabelNoiseRisk
from flatmin.risk.rounding import leave_out_casts
from flatmin.risk.trials import difference, random_like, tolerance

__all__ = ["Audit", "Check", "audit"]


class Cost(NamedTuple):
    """What one quantity of the audited risk takes."""

    quantity: str
    path: str
    gradients: float  # time of one call over that of one gradient


@dataclass(frozen=True)
class Audit:
    """What :meth:`EmpiricalRisk.audit` found; its ``str`` is the table.

    Attributes
    ----------
    checks : tuple of Check
        The identities: ``identity``, the relative ``difference``, its ``tolerance``,
        and the ``verdict``: "holds", "fails", "kink", or "refused".
    costs : tuple of Cost
        Of each quantity: the ``path`` that it takes, and the time of one call in
        ``gradients``.
    n_examples : int
        That the identities were tried on.
    dtype : str
        Of the copy that they were tried in.
    gradients : float
        The time that the audit took, in gradients of the whole data.
    subject : str
        Module, loss, sizes and device, as the first line of the table has them.
    versions : tuple of (str, str)
        Python's, and those of the packages that compute.

    Examples
    --------
    >>> import torch
    >>> from flatmin import EmpiricalRisk
    >>> line = torch.nn.Linear(2, 1)
    >>> risk = EmpiricalRisk(line, "squared_error", torch.eye(2), torch.ones(2, 1))
    >>> audit = risk.audit()
    >>> audit.fails
    ()
    >>> len(audit.checks) > 5
    True
    """

    checks: tuple[Check, ...]
    costs: tuple[Cost, ...]
    n_examples: int
    dtype: str
    gradients: float
    subject: str
    versions: tuple[tuple[str, str], ...]

    @property
    def fails(self) -> tuple[Check, ...]:
        """The identities that do not hold."""
        return tuple(check for check in self.checks if check.verdict == "fails")

    def __str__(self) -> str:
        """Return the table."""
        return "\n".join(self._lines())

    __repr__ = __str__

    def _lines(self) -> Iterator[str]:
        yield self.subject
        yield f"identities on {self.n_examples} examples in {self.dtype}:"
        width = max(len(check.identity) for check in self.checks)
        for check in self.checks:
            numbers = f"{check.difference:9.1e} {check.tolerance:9.0e}"
            note = f"  {check.note}" if check.note else ""
            yield f"  {check.identity:{width}} {numbers}  {check.verdict}{note}"
        yield "paths, and the time of a call in gradients of the whole data:"
        width = max(len(cost.quantity) for cost in self.costs)
        for cost in self.costs:
            yield f"  {cost.quantity:{width}} {cost.gradients:7.2f}  {cost.path}"
        yield f"the audit took {self.gradients:.0f} gradients of the whole data"
        yield ", ".join(f"{name} {value}" for name, value in self.versions)


def audit(risk: Any, theta: Tensor) -> Audit:
    """Try every identity; see :meth:`EmpiricalRisk.audit`.

    Parameters
    ----------
    risk : EmpiricalRisk
    theta : Tensor of shape (D,)

    Returns
    -------
    Audit
    """
    few = own = _in_float64(risk)
    start = time.perf_counter()
    lowest = few._model.lowest_dtype
    if few.dtype == torch.float64 and lowest != few.dtype:
        # What the module casts to less is taken for float64 where that can be.
        few = copy.deepcopy(own)  # a subset shares the network of the risk
        few._model.bind(theta.to(few.dtype))
        leave_out_casts(few._model, few._loss, next(few._chunks(few.n_examples)))
    gradient = _seconds(lambda: risk.gradient(theta))
    checks = tuple(check_identities(few, theta.to(few.dtype)))
    if few is not own:
        checks += (_check_casts(own, few, theta.to(few.dtype)),)
    costs = tuple(_costs(risk, theta, gradient))
    took = (time.perf_counter() - start) / gradient
    module = type(risk._model.module).__name__
    subject = (
        f"{module}, loss {risk._loss.name}: D = {risk.n_params:,}, "
        f"N = {risk.n_examples:,}, {_name(risk.dtype)} on {risk.device.type}, chunks "
        f"of {risk.chunk_size}"
    )
    if lowest != few.dtype:
        subject += f"; the module computes in {_name(lowest)} inside"
    return Audit(
        checks,
        costs,
        few.n_examples,
        _name(few.dtype),
        took,
        subject,
        tuple(list_versions().items()),
    )


def _in_float64(risk: Any) -> Any:
    """Return the risk of a few examples, in float64 where the module allows."""
    few = risk
    if risk._ranks.size > 1:  # every rank has the few, and tries them by itself
        few = risk._of_few()
    elif risk.batch_norm != "batch":
        few = risk.subset(trial_indices(risk.n_examples))
    with suppress(RuntimeError, ValueError):
        few = few.to(dtype=torch.float64)
    return few


def _check_casts(own: Any, exact: Any, theta: Tensor) -> Check:
    """Compare H v with that of the casts taken for float64."""
    identity = "H v of the module's casts, and without them"
    limit, v = tolerance(own._model.precision, 2), random_like(theta, 0)
    try:
        found = [risk.linearize(theta).hvp(v) for risk in (own, exact)]
    except REFUSALS as error:
        return Check(identity, float("nan"), limit, first_line(error))
    return Check(identity, difference(*found), limit)


def _costs(risk: LabelNoiseRisk, theta: Tensor, gradient: float) -> Iterator[Cost]:
    """Yield what each quantity takes once it has been asked for."""
    point, v = risk.linearize(theta), random_like(theta, 0)
    rng = torch.Generator(device=theta.device).manual_seed(0)
    scale = torch.ones((), dtype=theta.dtype, device=theta.device)
    calls: dict[str, tuple[str, Callable[[], object]]] = {
        "L": ("", lambda: risk.value(theta)),
        "∇L": ("", lambda: risk.gradient(theta)),
        "‖gᵢ‖²": ("per-example sums", lambda: risk.squared_norms(theta)),
        "diag Σ": ("per-example sums", lambda: risk.gradient_variances(theta)),
        "H v": ("hvp", lambda: point.hvp(v)),
        "G v": ("ggn", lambda: point.ggn(v)),
        "gᵢᵀv": (
            "directional_derivatives",
            lambda: point.directional_derivatives(v),
        ),
        "a draw of N(0, G)": (
            "",
            lambda: risk.value_and_gauss_newton_draw(theta, scale, rng),
        ),
    }
    for name, (quantity, call) in calls.items():
        try:
            seconds = _seconds(call)
        except REFUSALS as error:
            yield Cost(name, f"refused: {first_line(error)}", float("nan"))
            continue
        yield Cost(name, risk.paths.get(quantity, "one pass"), seconds / gradient)


def _seconds(call: Callable[[], object]) -> float:
    """Return how long a call takes: the best of three after a first one."""
    call()
    best = float("inf")
    for _ in range(3):
        _wait()
        start = time.perf_counter()
        call()
        _wait()
        best = min(best, time.perf_counter() - start)
    return best


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
