"""A risk that counts what it is asked, in gradients of one example."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

from flatmin.risk import EmpiricalRisk
from flatmin.risk.products.linearize import Linearization

__all__ = ["WorkCounter", "counted"]

# What a word costs, in gradients of each of its examples. A loss is the forward third
# of a gradient. A product with H costs 1.3 to 2.1 gradients where a graph serves, a
# sweep of per-example sums 1.2 to 1.7: the larger figures, so that a budget holds.
_FORWARD = 1 / 3
_COSTS = {
    "accuracy": _FORWARD,
    "batch_statistics": _FORWARD,
    "covariance_trace_gradient": 6.0,
    "gradient": 1.0,
    "gradient_variances": 2.0,
    "label_covariance_product": 2.0,
    "label_traces": 2.0,
    "model_slopes": 1.0,
    "outputs": _FORWARD,
    "per_example_gradients": 2.0,
    "squared_gradient_sum": 2.0,
    "squared_hessian_product": 8.0,
    "squared_norms": 2.0,
    "value": _FORWARD,
    "value_and_gauss_newton_draw": 1.0,
    "value_and_gradient": 1.0,
    "value_and_label_draw": 1.0,
    "value_and_noisy_gradient": 1.0,
    "value_gradient_and_product": 5.0,
    "value_gradient_and_variances": 2.0,
    "vjp": 1.0,
    "weighted_gradient": 1.0,
}
_PREPARE = 1.0
_PRODUCTS = {
    "directional_derivatives": 1.0,
    "fisher": 1.0,
    "ggn": 1.0,
    "hvp": 2.0,
    "jvp": 1.0,
    "vjp": 1.0,
}


class WorkCounter:
    """Adds up gradients of one example; what a word asks of others counts once."""

    def __init__(self) -> None:
        self.n_gradients = 0.0
        self._inside = False

    @contextmanager
    def adding(self, n_gradients: float) -> Iterator[None]:
        """Add to the sum, unless a word that has been counted is at work."""
        outer, self._inside = self._inside, True
        if not outer:
            self.n_gradients += n_gradients
        try:
            yield
        finally:
            self._inside = outer


def counted(risk: EmpiricalRisk, counter: WorkCounter) -> EmpiricalRisk:
    """Return the same risk, which tells a counter what it is asked.

    Parameters
    ----------
    risk : EmpiricalRisk
    counter : WorkCounter

    Returns
    -------
    EmpiricalRisk
        Subsets of it count, too.
    """
    twin: Any = copy.copy(risk)
    twin.__class__ = _CountedRisk
    twin._counter = counter
    return twin


class _CountedLinearization(Linearization):
    _counter: WorkCounter


class _CountedRisk(EmpiricalRisk):
    _counter: WorkCounter

    def linearize(
        self, theta: Any, *, select: Any = None, n_products: Any = None
    ) -> Linearization:
        with self._counter.adding(_PREPARE * self.n_examples):
            point = super().linearize(theta, select=select, n_products=n_products)
        if type(point) is not Linearization:  # that of several chains goes uncounted
            return point
        counted: Any = point
        counted.__class__ = _CountedLinearization
        counted._counter = self._counter
        return counted

    def losses_at(self, thetas: Any) -> Any:
        with self._counter.adding(_FORWARD * self.n_examples * len(thetas)):
            return super().losses_at(thetas)

    def gauss_newton_traces(
        self, theta: Any, rng: Any = None, *, n_sweeps: int | None = None
    ) -> Any:
        made = self.n_outputs if rng is None else n_sweeps or 1
        with self._counter.adding(2 * made * self.n_examples):
            return super().gauss_newton_traces(theta, rng, n_sweeps=n_sweeps)

    def value_and_batch_gradient(self, theta: Any, indices: Any) -> Any:
        with self._counter.adding(indices.numel()):
            return super().value_and_batch_gradient(theta, indices)

    def batch_gradients(self, theta: Any, batches: Any) -> Any:
        with self._counter.adding(batches.numel()):
            return super().batch_gradients(theta, batches)


def _counting(base: type, name: str, cost: float) -> Callable[..., Any]:
    word = getattr(base, name)

    @wraps(word)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        with self._counter.adding(cost * self.n_examples):
            return word(self, *args, **kwargs)

    return call


for _name, _cost in _COSTS.items():
    setattr(_CountedRisk, _name, _counting(EmpiricalRisk, _name, _cost))
for _name, _cost in _PRODUCTS.items():
    setattr(_CountedLinearization, _name, _counting(Linearization, _name, _cost))
