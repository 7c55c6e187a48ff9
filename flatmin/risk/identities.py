"""The identities of the mathematics, each as two ways to the same numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from flatmin._utils.columns import as_column
from flatmin._utils.messages import first_line
from flatmin.risk.autodiff.differences import (
    DIFFERENCE_LIMITS,
    STEPS,
    difference_step,
)
from flatmin.risk.data.chunks import Chunk
from flatmin.risk.example_sums.per_example import looped_rows
from flatmin.risk.example_sums.scalars import ExampleScalars, inner_products
from flatmin.risk.products.double_backward import DoubleBackward
from flatmin.risk.products.graphs import ProductGraphs
from flatmin.risk.products.hessian_trial import AWAY
from flatmin.risk.products.linearize import SYMBOLS
from flatmin.risk.products.reference_products import ReferenceProducts
from flatmin.risk.products.slopes import Slope, compare_slope
from flatmin.risk.quantities.label_noise import LabelNoiseRisk
from flatmin.risk.trials import asymmetry, difference, random_like, tolerance

__all__ = ["REFUSALS", "Check", "check_identities"]

# An output larger than that is not taken apart number by number.
_MOST_OUTPUTS = 64

# What a quantity that is not there raises.
REFUSALS = (ValueError, TypeError, ArithmeticError, RuntimeError)


@dataclass(frozen=True)
class Check:
    """One identity, and by how much it fails to hold."""

    identity: str
    difference: float  # relative; NaN where nothing was compared
    tolerance: float
    note: str = ""
    at_kink: bool = False  # what is compared is not differentiable at θ

    @property
    def verdict(self) -> str:
        """Return "holds", "fails", "kink", or "refused" where nothing was compared."""
        if self.difference != self.difference:
            return "refused"
        if self.at_kink:
            return "kink"
        return "holds" if self.difference <= self.tolerance else "fails"


def check_identities(risk: LabelNoiseRisk, theta: Tensor) -> Iterator[Check]:
    """Try every identity at one θ.

    Parameters
    ----------
    risk : LabelNoiseRisk
        Of a few examples, in one chunk.
    theta : Tensor of shape (D,)
        In its dtype.

    Yields
    ------
    Check
    """
    at = _Point(risk, theta)
    for identity, (order, compare) in _IDENTITIES.items():
        if order is None:  # compared with differences of finite steps
            limit = DIFFERENCE_LIMITS[risk._model.precision]
        else:
            limit = tolerance(risk._model.precision, order)
        if risk.l2:
            identity = _PENALISED.get(identity, identity)
        try:
            found = compare(at)
            if isinstance(found, Slope):
                if found.at_kink:
                    found = _away_from_kink(
                        risk, theta, compare, found=found, limit=limit
                    )
                note = "not differentiable here, as ReLU at 0" if found.at_kink else ""
                yield Check(identity, found.off, limit, note, found.at_kink)
            else:
                yield Check(identity, found, limit)
        except REFUSALS as error:
            yield Check(identity, float("nan"), limit, first_line(error))


def _away_from_kink(
    risk: LabelNoiseRisk,
    theta: Tensor,
    compare: Callable[[_Point], float | Slope],
    *,
    found: Slope,
    limit: float,
) -> Slope:
    """Return what is found nearby where that fails: a wrong rule is wrong there too."""
    for seed in (4, 5, 6):
        v = random_like(theta, seed)
        nearby = theta + difference_step(theta, v, AWAY) * v
        beside = compare(_Point(risk, nearby))
        if isinstance(beside, Slope) and not beside.at_kink:
            return beside if beside.off > limit else found
    return found


class _Point:
    """A risk at one θ: each method returns how far two ways to one thing are apart."""

    def __init__(self, risk: LabelNoiseRisk, theta: Tensor) -> None:
        self.risk, self.theta = risk, theta
        self.products = risk.linearize(theta)
        self.a, self.b = random_like(theta, 0), random_like(theta, 1)

    @property
    def chunk(self) -> Chunk:
        """All examples."""
        return next(self.risk._chunks(self.risk.n_examples))

    @property
    def scalars(self) -> ExampleScalars:
        """The losses, with the model bound to θ."""
        self.risk._model.bind(self.theta)
        return self.risk._scalars(self.chunk)

    @cached_property
    def rows(self) -> Tensor:
        """The gᵢ alone, one after the other, (n, D)."""
        self.risk.check_examples("gᵢ")
        return looped_rows(self.risk._model, self.scalars)[1]

    @cached_property
    def outputs(self) -> Tensor:
        """Together, (n, *output_shape)."""
        return self.risk.outputs(self.theta)

    @cached_property
    def u(self) -> Tensor:
        """A direction among outputs."""
        return random_like(self.outputs, 2)

    @property
    def alone(self) -> Iterator[LabelNoiseRisk]:
        """The risk of each example."""
        n = self.risk.n_examples
        return (self.risk.subset(torch.tensor([i])) for i in range(n))

    def outputs_off(self) -> float:
        alone = torch.cat([one.outputs(self.theta) for one in self.alone])
        return difference(self.outputs, alone)

    def losses_off(self) -> float:
        alone = torch.stack([one.value(self.theta) for one in self.alone])
        return difference(self.risk.value(self.theta), alone.mean())

    def graph_off(self) -> float:
        differentiated = self.risk.value_and_gradient(self.theta)[0]
        return difference(self.risk.value(self.theta), differentiated)

    def gradient_slope(self) -> Slope:
        slope = (self.risk.gradient(self.theta) @ self.a).reshape(1)

        def value(losses: Tensor, theta: Tensor) -> Tensor:
            penalty = self.risk.l2 / 2 * theta.square().sum()
            return (losses.mean() + penalty).reshape(1)

        return self._slope(slope, value)

    def gradient_off(self) -> float:
        mean = self.rows.mean(0) + self.risk.l2 * self.theta
        return difference(self.risk.gradient(self.theta), mean)

    def rows_off(self) -> float:
        together = torch.cat(list(self.risk.per_example_gradients(self.theta)))
        return difference(together, self.rows)

    def norms_off(self) -> float:
        norms = self.risk.squared_norms(self.theta)
        return difference(norms, self.rows.double().square().sum(1))

    def variances_off(self) -> float:
        # Squares about 0: where all gᵢ are alike there is no variance to compare.
        square = self.rows.mean(0).double().square()
        variances = self.risk.gradient_variances(self.theta)
        return difference(variances + square, self.rows.double().square().mean(0))

    def weighted_off(self) -> float:
        v = random_like(self.outputs.new_empty(len(self.outputs)), 3)
        weighted = self.risk.weighted_gradient(self.theta, v)
        return difference(weighted, v @ self.rows / self.risk.n_examples)

    def jacobian_off(self) -> float:
        along = self.products.jvp(self.a) * self.u
        back = self.products.vjp(self.u) @ self.a
        size = float(along.norm())
        return float((along.sum() - back).abs()) / (size or 1.0)

    def directional_off(self) -> float:
        along = self.products.directional_derivatives(self.a)
        return difference(along, self.rows @ self.a)

    def ggn_asymmetry(self) -> float:
        return self._asymmetry(self.products.ggn)

    def ggn_off(self) -> float:
        found = self.products.ggn(self.a)
        return difference(found, self._ggn_by_differences())

    def traces_off(self) -> float:
        found = self.risk.gauss_newton_traces(self.theta)
        return difference(found, self._traces_by_rows())

    def hvp_asymmetry(self) -> float:
        return self._asymmetry(self.products.hvp)

    def hvp_slope(self) -> Slope:
        def gradient(losses: Tensor, theta: Tensor) -> Tensor:
            weights = torch.ones_like(losses) / len(losses)
            mean = self.risk._model.gradient(losses, weights)
            return mean + self.risk.l2 * theta

        return self._slope(self.products.hvp(self.a), gradient)

    def squared_hessians_off(self) -> float:
        found = self.risk.squared_hessian_product(self.theta, self.a)
        total = torch.zeros_like(self.theta)
        for chunk in self.risk._chunks(1):
            one = ReferenceProducts(self.risk._ways, self.theta, chunk)
            total += one.hvp(one.hvp(self.a))
        return difference(found, total / self.risk.n_examples)

    def graph_product_off(self, quantity: str) -> float:
        direction = self.u if quantity == "vjp" else self.a
        chunk = self.chunk
        if quantity == "directional_derivatives":
            self.risk.check_examples(quantity)
        graphs = ProductGraphs(self.risk._ways, self.risk.n_examples, work=1 << 60)
        graph = graphs.find(quantity, self.theta, chunk)
        if graph is None:
            raise ValueError(f"no graph: {graphs.paths[quantity]}")
        kept = graphs.prepare(graph, self.theta, chunk)
        reference = ReferenceProducts(self.risk._ways, self.theta, chunk)
        return difference(
            graph.use(*kept, direction), getattr(reference, quantity)(direction)
        )

    def _asymmetry(self, product: Callable[[Tensor], Tensor]) -> float:
        Ab = product(self.b).double()
        aAb, size_Ab = float(self.a.double() @ Ab), float(Ab.norm())
        return asymmetry(self.a, product(self.a), self.b, aAb, size_Ab)

    def _slope(
        self, product: Tensor, function: Callable[[Tensor, Tensor], Tensor]
    ) -> Slope:
        """Compare a derivative along a with differences, of a function of ℓ̃ and θ."""
        risk = self.risk
        point = DoubleBackward(risk._model, risk._loss, self.theta, self.chunk)
        return compare_slope(point, function, product, self.a)

    def _ggn_by_differences(self) -> Tensor:
        """Return G a with Hᵢ (J a)ᵢ as a difference of the slopes of the loss."""
        # In float64 whatever the module is in: the loss is none of it.
        outputs, chunk = self.outputs.double(), self.chunk.double()
        loss = self.risk._loss.to(dtype=torch.float64)

        @torch.enable_grad()
        def slopes(flat: Tensor) -> Tensor:
            leaf = flat.view(outputs.shape).detach().requires_grad_()
            total = loss.per_example(leaf, chunk.y).sum()
            return torch.autograd.grad(total, leaf)[0].flatten()

        along = self.products.jvp(self.a).double().flatten()
        # Not relative to outputs that do not move, as those that a mask sets to -1e9.
        moving = outputs.flatten() * (along != 0)
        h = difference_step(moving, along, STEPS[torch.float64][0])
        ahead, behind = (slopes(outputs.flatten() + s * h * along) for s in (1, -1))
        curved = (ahead - behind) / (2 * h)
        weighed = chunk.weigh(curved.view(outputs.shape)).to(self.outputs)
        mean = self.products.vjp(weighed) / self.risk.n_examples
        return mean + self.risk.l2 * self.a

    def _traces_by_rows(self) -> Tensor:
        """Return Tr(Gᵢ) from the rows of one output at a time, (n,)."""
        outputs, scalars = self.outputs, self.scalars
        n = outputs.shape[1:].numel()
        if n > _MOST_OUTPUTS:
            raise ValueError(f"not taken apart: an output has {n} numbers")
        total = torch.zeros(len(outputs), dtype=torch.float64, device=outputs.device)
        for unit in torch.eye(n, dtype=outputs.dtype, device=outputs.device):
            z = unit.view(outputs.shape[1:]).expand(outputs.shape)
            root = self.risk._loss.root_product(outputs, scalars.args[0], z)
            if len(scalars.args) > 1:
                root = root * as_column(scalars.args[1].sqrt(), root)
            products = ExampleScalars(scalars.X, (root,), inner_products)
            rows = looped_rows(self.risk._model, products)[1]
            total += rows.double().square().sum(1)
        return total


# What some identities are called where there is a penalty.
_PENALISED = {
    "g₀ = (1/N) Σ gᵢ": "g₀ = (1/N) Σ gᵢ + λθ",
    "G v = (1/N) Σ Jᵢᵀ Hᵢ Jᵢ v, Hᵢ by differences": (
        "G v = (1/N) Σ Jᵢᵀ Hᵢ Jᵢ v + λv, Hᵢ by differences"
    ),
}

# Identity -> order of the derivative, None for differences in a step; what compares.
_IDENTITIES: dict[str, tuple[int | None, Callable[[_Point], float | Slope]]] = {
    "outputs together = outputs alone": (0, _Point.outputs_off),
    "L = mean of the losses alone": (0, _Point.losses_off),
    "L without a graph = L that is differentiated": (0, _Point.graph_off),
    "vᵀ∇L = (L(θ + hv) - L(θ - hv)) / 2h": (None, _Point.gradient_slope),
    "g₀ = (1/N) Σ gᵢ": (1, _Point.gradient_off),
    "gᵢ together = gᵢ alone": (1, _Point.rows_off),
    "‖gᵢ‖² = that of the gᵢ alone": (1, _Point.norms_off),
    "diag Σ = that of the gᵢ alone": (1, _Point.variances_off),
    "Σ vᵢgᵢ/N = that of the gᵢ alone": (1, _Point.weighted_off),
    "uᵀ(J v) = vᵀ(Jᵀu)": (1, _Point.jacobian_off),
    "gᵢᵀv = that of the gᵢ alone": (1, _Point.directional_off),
    "aᵀGb = bᵀGa": (2, _Point.ggn_asymmetry),
    "G v = (1/N) Σ Jᵢᵀ Hᵢ Jᵢ v, Hᵢ by differences": (None, _Point.ggn_off),
    "Tr(Gᵢ) = Σ ‖Jᵢᵀ Sᵢ eₖ‖²": (1, _Point.traces_off),
    "aᵀHb = bᵀHa": (2, _Point.hvp_asymmetry),
    "H v = (∇L(θ + hv) - ∇L(θ - hv)) / 2h": (None, _Point.hvp_slope),
    "(1/N) Σ Hᵢ² v = that of the Hᵢ alone": (2, _Point.squared_hessians_off),
    **{
        f"{name} of the graph = that of the reference": (
            2,
            partial(_Point.graph_product_off, quantity=quantity),
        )
        for quantity, name in SYMBOLS.items()
    },
}
