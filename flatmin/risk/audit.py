"""The identities of the mathematics on one module, loss and data: what holds, what not.

A table as ``torch.autograd.gradcheck`` would print it, for a user who wants to know
what a number rests on, and for a bug report. In float64 where the module allows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from flatmin._utils.messages import first_line
from flatmin._utils.versions import list_versions
from flatmin.risk.chunks import pad_chunk
from flatmin.risk.double_backward import DoubleBackward
from flatmin.risk.example_scalars import ExampleScalars
from flatmin.risk.finite_difference import central_difference
from flatmin.risk.held_constants import HeldConstants
from flatmin.risk.per_example import looped_rows
from flatmin.risk.reference_products import ReferenceProducts, losses_in, random_like
from flatmin.risk.traces import Traces
from flatmin.risk.trials import asymmetry, difference, tolerance

if TYPE_CHECKING:
    from flatmin.risk.empirical import EmpiricalRisk

__all__ = ["Audit", "Check", "audit"]

# An output larger than that is not taken apart number by number.
_MOST_OUTPUTS = 64


@dataclass(frozen=True)
class Check:
    """One identity, and by how much it fails to hold."""

    identity: str
    difference: float  # relative; NaN where nothing was compared
    tolerance: float
    note: str = ""
    at_kink: bool = False  # the difference grows as the step of a difference falls

    @property
    def verdict(self) -> str:
        """Return "holds", "fails", "kink", or "refused" where nothing was compared."""
        if self.difference != self.difference:
            return "refused"
        if self.at_kink:
            return "kink"
        return "holds" if self.difference <= self.tolerance else "fails"


class Cost(NamedTuple):
    """What one quantity of the audited risk takes."""

    quantity: str
    path: str
    gradients: float  # time of one call over that of one gradient


@dataclass(frozen=True)
class Audit:
    """What :meth:`EmpiricalRisk.audit` found; its ``str`` is the table."""

    checks: tuple[Check, ...]
    costs: tuple[Cost, ...]
    n_examples: int  # that the identities were tried on
    dtype: str  # of the copy that they were tried in
    gradients: float  # what the audit took, in gradients of the whole data
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


def audit(risk: EmpiricalRisk, theta: Tensor, few: EmpiricalRisk) -> Audit:
    """Try every identity; see :meth:`EmpiricalRisk.audit`.

    Parameters
    ----------
    risk : EmpiricalRisk
        Whose paths and costs are told.
    theta : Tensor of shape (D,)
    few : EmpiricalRisk
        Of some of its examples, in float64 where possible.

    Returns
    -------
    Audit
    """
    start = time.perf_counter()
    gradient = _seconds(lambda: risk.gradient(theta))
    checks = tuple(_checks(few, theta.to(few.dtype)))
    costs = tuple(_costs(risk, theta, gradient))
    took = (time.perf_counter() - start) / gradient
    module = type(risk._model.module).__name__
    subject = (
        f"{module}, loss {risk._loss.name}: D = {risk.n_params:,}, "
        f"N = {risk.n_examples:,}, {_name(risk.dtype)} on {risk.device.type}, chunks "
        f"of {risk.chunk_size}"
    )
    return Audit(
        checks,
        costs,
        few.n_examples,
        _name(few.dtype),
        took,
        subject,
        tuple(list_versions().items()),
    )


def _checks(risk: EmpiricalRisk, theta: Tensor) -> Iterator[Check]:
    """Yield the identities, each a pair of ways to the same numbers."""
    rows = _Once(lambda: looped_rows(risk._model, _scalars(risk, theta))[1])
    point = risk.linearize(theta)
    a, b = random_like(theta, 0), random_like(theta, 1)
    outputs = risk.outputs(theta)
    u = random_like(outputs, 2)
    v = random_like(outputs.new_empty(len(outputs)), 3)

    def batch_alone() -> tuple[Tensor, Tensor]:
        alone = [risk.subset(torch.tensor([i])).outputs(theta) for i in _each(risk)]
        return outputs, torch.cat(alone)

    def losses_alone() -> tuple[Tensor, Tensor]:
        alone = [risk.subset(torch.tensor([i])).value(theta) for i in _each(risk)]
        return risk.value(theta), torch.stack(alone).mean()

    def with_graph() -> tuple[Tensor, Tensor]:
        return risk.value(theta), risk.value_and_gradient(theta)[0]

    def mean(losses: Tensor) -> Tensor:
        return losses.mean().reshape(1)

    def gradient(losses: Tensor) -> Tensor:
        return risk._model.gradient(losses, torch.ones_like(losses) / len(losses))

    def of_the_graph(quantity: str, direction: Tensor) -> tuple[Tensor, Tensor]:
        chunk = next(risk._chunks(risk.n_examples))
        traces = Traces(risk._ways, risk.n_examples, work=1 << 60)
        graph = traces.find(quantity, theta, chunk)
        if graph is None:
            raise ValueError(f"no graph: {traces.paths[quantity]}")
        found = graph.use(
            *graph.prepare(theta, *pad_chunk(chunk, len(chunk.X))), direction
        )
        reference = ReferenceProducts(risk._ways, theta, chunk)
        return found, getattr(reference, quantity)(direction)

    yield _check("outputs together = outputs alone", 0, theta, batch_alone)
    yield _check("L = mean of the losses alone", 0, theta, losses_alone)
    yield _check("L without a graph = L that is differentiated", 0, theta, with_graph)
    yield _slope(
        "vᵀ∇L = (L(θ + hv) - L(θ - hv)) / 2h",
        *(risk, theta, a, mean),
        lambda: (risk.gradient(theta) @ a).reshape(1),
    )
    yield _check(
        "g₀ = (1/N) Σ gᵢ", 1, theta, lambda: (risk.gradient(theta), rows().mean(0))
    )
    yield _check(
        "gᵢ together = gᵢ alone",
        1,
        theta,
        lambda: (torch.cat(list(risk.per_example_gradients(theta))), rows()),
    )
    yield _check(
        "‖gᵢ‖² = that of the gᵢ alone",
        1,
        theta,
        lambda: (risk.squared_norms(theta), rows().double().square().sum(1)),
    )
    yield _check(
        "diag Σ = that of the gᵢ alone",
        1,
        theta,
        lambda: (
            risk.gradient_variances(theta) + rows().mean(0).double().square(),
            rows().double().square().mean(0),
        ),
    )
    yield _check(
        "Σ vᵢgᵢ/N = that of the gᵢ alone",
        1,
        theta,
        lambda: (risk.weighted_gradient(theta, v), v @ rows() / risk.n_examples),
    )
    yield _check(
        "uᵀ(J v) = vᵀ(Jᵀu)",
        1,
        theta,
        lambda: (
            (point.jvp(a) * u).sum().reshape(1),
            (point.vjp(u) @ a).reshape(1),
        ),
        scale=lambda: (point.jvp(a) * u).norm(),
    )
    yield _check(
        "gᵢᵀv = that of the gᵢ alone",
        1,
        theta,
        lambda: (point.directional_derivatives(a), rows() @ a),
    )
    yield _symmetry("aᵀGb = bᵀGa", theta, point.ggn, a, b)
    yield _check(
        "G v = (1/N) Σ Jᵢᵀ Hᵢ Jᵢ v, Hᵢ by differences",
        None,
        theta,
        lambda: (point.ggn(a), _gauss_newton(risk, theta, point.jvp(a), point.vjp)),
    )
    yield _check(
        "Tr(Gᵢ) = Σ ‖Jᵢᵀ Sᵢ eₖ‖²", 1, theta, lambda: _traces(risk, theta, outputs)
    )
    yield _symmetry("aᵀHb = bᵀHa", theta, point.hvp, a, b)
    yield _slope(
        "H v = (∇L(θ + hv) - ∇L(θ - hv)) / 2h",
        *(risk, theta, a, gradient),
        lambda: point.hvp(a),
    )
    yield _check(
        "(1/N) Σ Hᵢ² v = that of the Hᵢ alone",
        2,
        theta,
        lambda: (risk.squared_hessian_product(theta, a), _squared(risk, theta, a)),
    )
    for quantity, name in _TRACED.items():
        direction = u if quantity == "vjp" else a
        yield _check(
            f"{name} of the graph = that of the reference",
            2,
            theta,
            partial(of_the_graph, quantity, direction),
        )


_TRACED = {
    "hvp": "H v",
    "ggn": "G v",
    "jvp": "J v",
    "vjp": "Jᵀu",
    "directional_derivatives": "gᵢᵀv",
}


def _check(
    identity: str,
    order: int | None,
    theta: Tensor,
    pair: Callable[[], tuple[Tensor, Tensor]],
    scale: Callable[[], Tensor] | None = None,
) -> Check:
    """Compare a pair."""
    limit = _limit(theta, order)
    try:
        found, right = pair()
        if scale is None:
            off = difference(found, right)
        else:
            size = float(scale())
            off = float((found - right).abs().max()) / (size or 1.0)
    except (ValueError, TypeError, ArithmeticError, RuntimeError) as error:
        return Check(identity, float("nan"), limit, first_line(error))
    return Check(identity, off, limit)


def _limit(theta: Tensor, order: int | None) -> float:
    if order is not None:  # None is for differences in a step
        return tolerance(theta.dtype, order)
    return 1e-4 if theta.dtype == torch.float64 else 5e-2


def _symmetry(
    identity: str,
    theta: Tensor,
    product: Callable[[Tensor], Tensor],
    a: Tensor,
    b: Tensor,
) -> Check:
    limit = tolerance(theta.dtype, 2)
    try:
        return Check(identity, asymmetry(a, product(a), b, product(b)), limit)
    except (ValueError, ArithmeticError, RuntimeError) as error:
        return Check(identity, float("nan"), limit, first_line(error))


class _Once:
    """A value that several identities share, computed for the first."""

    def __init__(self, make: Callable[[], Tensor]) -> None:
        self._make = make
        self._value: Tensor | None = None

    def __call__(self) -> Tensor:
        if self._value is None:
            self._value = self._make()
        return self._value


def _each(risk: EmpiricalRisk) -> range:
    return range(risk.n_examples)


def _scalars(risk: EmpiricalRisk, theta: Tensor) -> ExampleScalars:
    risk._model.bind(theta)
    return risk._scalars(next(risk._chunks(risk.n_examples)))


def _slope(
    identity: str,
    risk: EmpiricalRisk,
    theta: Tensor,
    v: Tensor,
    function: Callable[[Tensor], Tensor],
    expected: Callable[[], Tensor],
) -> Check:
    """Compare a derivative along v with differences of a function of the losses."""
    # At two steps, and with constants by decree held where that makes a difference.
    limit = _limit(theta, None)
    try:
        product = expected()
    except (ValueError, TypeError, ArithmeticError, RuntimeError) as error:
        return Check(identity, float("nan"), limit, first_line(error))
    chunk = next(risk._chunks(risk.n_examples))
    point = DoubleBackward(risk._model, risk._loss, theta, chunk)

    def off(context: AbstractContextManager[Any]) -> tuple[float, float]:
        losses = losses_in(point, context)
        losses(theta)  # what is held is held here

        def at(theta: Tensor) -> Tensor:
            return function(losses(theta)).detach()

        steps = (1e-5, 1e-7) if theta.dtype == torch.float64 else (1e-2, 1e-3)
        found = [central_difference(at, theta, v, step) for step in steps]
        # A difference across a kink can be of any size.
        size = product.norm() or 1.0
        wide, narrow = (float((f - product).norm() / size) for f in found)
        return wide, narrow

    constants = HeldConstants()
    wide, narrow = off(nullcontext())
    if min(wide, narrow) > limit:
        held = off(constants)
        wide, narrow = held if constants.n_held else (wide, narrow)
    difference = min(wide, narrow)
    at_kink = difference > limit and not wide / 3 <= narrow <= wide * 3
    note = "grows as the step falls, as at ReLU's kink" if at_kink else ""
    return Check(identity, difference, limit, note, at_kink)


def _gauss_newton(
    risk: EmpiricalRisk, theta: Tensor, Jv: Tensor, vjp: Callable[[Tensor], Tensor]
) -> Tensor:
    """Return G v with Hᵢ (J v)ᵢ as a difference of the slopes of the loss."""
    outputs, y = risk.outputs(theta), next(risk._chunks(risk.n_examples)).y

    @torch.enable_grad()
    def slopes(flat: Tensor) -> Tensor:
        leaf = flat.view(outputs.shape).detach().requires_grad_()
        total = risk._loss.per_example(leaf, y).sum()
        return torch.autograd.grad(total, leaf)[0].flatten()

    HJv = central_difference(slopes, outputs.flatten(), Jv.flatten(), 1e-5)
    chunk = next(risk._chunks(risk.n_examples))
    return vjp(chunk.weigh(HJv.view(outputs.shape))) / risk.n_examples


def _traces(
    risk: EmpiricalRisk, theta: Tensor, outputs: Tensor
) -> tuple[Tensor, Tensor]:
    """Return Tr(Gᵢ) exactly, and from the rows of one output at a time."""
    n = outputs.shape[1:].numel()
    if n > _MOST_OUTPUTS:
        raise ValueError(f"not taken apart: an output has {n} numbers")
    scalars = _scalars(risk, theta)
    total = torch.zeros(len(outputs), dtype=torch.float64, device=outputs.device)
    for unit in torch.eye(n, dtype=outputs.dtype, device=outputs.device):
        z = unit.view(outputs.shape[1:]).expand(outputs.shape)
        root = risk._loss.root_product(outputs, scalars.args[0], z)
        if len(scalars.args) > 1:
            root = root * scalars.args[1].sqrt().view(-1, *(1 for _ in root.shape[1:]))
        products = ExampleScalars(scalars.X, (root,), _inner_products)
        rows = looped_rows(risk._model, products)[1]
        total += rows.double().square().sum(1)
    return risk.gauss_newton_traces(theta), total


def _inner_products(outputs: Tensor, cotangents: Tensor) -> Tensor:
    return (outputs * cotangents).reshape(len(outputs), -1).sum(1)


def _squared(risk: EmpiricalRisk, theta: Tensor, v: Tensor) -> Tensor:
    """Return (1/N) Σ Hᵢ² v, one example at a time."""
    total = torch.zeros_like(theta)
    for chunk in risk._chunks(1):
        one = ReferenceProducts(risk._ways, theta, chunk)
        total += one.hvp(one.hvp(v))
    return total / risk.n_examples


def _costs(risk: EmpiricalRisk, theta: Tensor, gradient: float) -> Iterator[Cost]:
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
        except (ValueError, TypeError, ArithmeticError, RuntimeError) as error:
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
