"""What a risk is asked, the right answer, and the size that rounding is relative to."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st

from ._draws import index_vectors, vectors


@dataclass(frozen=True)
class Quantity:
    """``ask(risk, θ, arg)`` is to be ``right(reference, arg)``."""

    ask: Callable
    right: Callable
    size: Callable = lambda ref, arg, right: norm(right)
    arg: Callable[..., Any] = lambda problem, n: st.none()
    arg_name: str | None = None


def norm(t):
    return torch.linalg.vector_norm(t.double())


def norms(rows):
    return torch.linalg.vector_norm(rows.reshape(len(rows), -1), dim=1)


def direction(problem, n):
    return vectors(problem.n_params)


def per_example(problem, n):
    return vectors(n)


def of_outputs(problem, n):
    return vectors(n, *problem.output_shape)


def minibatch(problem, n):
    return st.integers(1, 6).flatmap(lambda m: index_vectors(n, m))


def minibatches(problem, n):
    shapes = st.tuples(st.integers(1, 4), st.integers(1, 3))
    return shapes.flatmap(lambda shape: index_vectors(n, *shape))


def variances(ref, _):
    return ref.gradients.var(0, correction=0)


def size_of_variances(ref, _, right):
    # A row that is off by eps changes its square about the mean by eps |row| |centred|;
    # where float64 takes the mean's square off the mean square, by its rounding.
    rows = ref.gradients
    centred = (rows - rows.mean(0)).abs()
    rest = (ref.eps**2 + _EPS64) / ref.eps * rows.abs()
    return norm((rows.abs() * (centred + rest)).mean(0))


def curvatures(ref):
    # With p next to 1, diag(p) - ppᵀ cancels: its rounding is relative to p itself.
    return ref.w * norms(ref.jacobians) ** 2


def mean_norm(rows):
    """Return a size function for the mean of rows, whose terms may cancel."""
    return lambda ref, arg, right: norms(rows(ref, arg)).mean()


QUANTITIES = {
    "value": Quantity(
        lambda r, t, _: r.value(t),
        lambda ref, _: ref.losses.mean(),
        lambda ref, _, right: ref.losses.abs().mean(),
    ),
    "outputs": Quantity(lambda r, t, _: r.outputs(t), lambda ref, _: ref.outputs),
    "gradient": Quantity(
        lambda r, t, _: r.gradient(t),
        lambda ref, _: ref.gradients.mean(0),
        mean_norm(lambda ref, _: ref.gradients),
    ),
    "per_example_gradients": Quantity(
        lambda r, t, _: torch.cat(list(r.per_example_gradients(t))),
        lambda ref, _: ref.gradients,
    ),
    "gradient_variances": Quantity(
        lambda r, t, _: r.gradient_variances(t), variances, size_of_variances
    ),
    "squared_norms": Quantity(
        lambda r, t, _: r.squared_norms(t),
        lambda ref, _: ref.gradients.square().sum(1),
    ),
    "squared_gradient_sum": Quantity(
        lambda r, t, _: r.squared_gradient_sum(t),
        lambda ref, _: ref.gradients.square().sum(0),
    ),
    "hvp": Quantity(
        lambda r, t, v: r.linearize(t).hvp(v),
        lambda ref, v: ref.hessian_products(v).mean(0),
        mean_norm(lambda ref, v: ref.hessian_products(v)),
        direction,
        "v",
    ),
    "ggn": Quantity(
        lambda r, t, v: r.linearize(t).ggn(v),
        lambda ref, v: ref.gauss_newton_products(v).mean(0),
        lambda ref, v, _: curvatures(ref).mean() * norm(v),
        direction,
        "v",
    ),
    "jvp": Quantity(
        lambda r, t, v: r.linearize(t).jvp(v),
        lambda ref, v: (ref.jacobians @ v.to(ref.theta)).view(ref.outputs.shape),
        lambda ref, v, _: norm(ref.jacobians.abs() @ v.to(ref.theta).abs()),
        direction,
        "v",
    ),
    "vjp": Quantity(
        lambda r, t, u: r.linearize(t).vjp(u),
        lambda ref, u: torch.einsum(
            "nap,na->p", ref.jacobians, u.to(ref.theta).reshape(len(u), -1)
        ),
        lambda ref, u, _: (norms(ref.jacobians) * norms(u.to(ref.theta))).sum(),
        of_outputs,
        "u",
    ),
    "directional_derivatives": Quantity(
        lambda r, t, v: r.linearize(t).directional_derivatives(v),
        lambda ref, v: ref.gradients @ v.to(ref.theta),
        lambda ref, v, _: norm(ref.gradients.abs() @ v.to(ref.theta).abs()),
        direction,
        "v",
    ),
    "weighted_gradient": Quantity(
        lambda r, t, c: r.weighted_gradient(t, c),
        lambda ref, c: c.to(ref.theta) @ ref.gradients / len(c),
        lambda ref, c, _: (c.to(ref.theta).abs() * norms(ref.gradients)).mean(),
        per_example,
        "v",
    ),
    "batch_gradient": Quantity(
        lambda r, t, i: r.batch_gradient(t, i),
        lambda ref, i: ref.gradients[i].mean(0),
        lambda ref, i, _: norms(ref.gradients[i]).mean(),
        minibatch,
        "indices",
    ),
    "batch_gradients": Quantity(
        lambda r, t, i: r.batch_gradients(t, i),
        lambda ref, i: ref.gradients[i].mean(1),
        lambda ref, i, _: norm(ref.gradients[i]),
        minibatches,
        "batches",
    ),
    "subset": Quantity(
        lambda r, t, i: r.subset(i).gradient(t),
        lambda ref, i: ref.gradients[i].mean(0),
        lambda ref, i, _: norms(ref.gradients[i]).mean(),
        minibatch,
        "indices",
    ),
    "gauss_newton_traces": Quantity(
        lambda r, t, _: r.gauss_newton_traces(t),
        lambda ref, _: torch.einsum(
            "nap,nab,nbp->n", ref.jacobians, ref.output_hessians, ref.jacobians
        ),
        lambda ref, _, right: norm(curvatures(ref)),
    ),
}
CHOOSING = ("batch_gradient", "batch_gradients", "subset")
LINEAR = ("hvp", "ggn", "jvp", "vjp", "directional_derivatives")


def compare(name, found, ref, arg):
    """Fail unless a number is right to the digits that its precision can have.

    That is some hundred roundings of the terms that are added up. Where this is not
    reached, plain autograd on inputs that are rounded in another way, or in float32,
    has to lose as many digits: then it is the condition of the problem.
    """
    quantity = QUANTITIES[name]
    right = quantity.right(ref, arg)
    assert found.shape == right.shape, (name, found.shape, right.shape)
    if not right.isfinite().all():  # of θ or v that are not finite
        assert not found.isfinite().all(), (name, found, right)
        return
    off, limit = norm(found - right), 200 * ref.eps * quantity.size(ref, arg, right)
    if off <= limit + _TINY:
        return
    in_float32 = quantity.right(ref.in_float32(), arg)
    if ref.eps == _EPS32 and not in_float32.isfinite().all():
        assert not found.isfinite().all(), (name, found, right)  # too large for it
        return
    lost = norm(quantity.right(ref.disturbed(), arg) - right)
    lost_there = norm(in_float32 - right) * (ref.eps / _EPS32)
    limit += 30 * lost + 30 * lost_there.nan_to_num(0, 0, 0)
    assert off <= limit + _TINY, (
        f"{name}: got {found.tolist()} where {right.tolist()} is right; off by "
        f"{off:.2g}, allowed {limit:.2g}"
    )


_EPS64 = torch.finfo(torch.float64).eps
_EPS32 = torch.finfo(torch.float32).eps
_TINY = 1e3 * torch.finfo(torch.float32).tiny
