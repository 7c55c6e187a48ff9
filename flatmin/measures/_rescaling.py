"""Other parameters of the same function: layers scaled up and others down."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from flatmin._utils.numbers import check_positive
from flatmin.curvature._finite import check_finite
from flatmin.curvature._point import Point, as_one_point
from flatmin.measures._layers import check_layers
from flatmin.risk import EmpiricalRisk

__all__ = ["rescale_layers"]

# Rounding of outputs, in units of eps times the largest: some digits of a deep network.
_ROUNDINGS = 1000


def rescale_layers(
    risk: EmpiricalRisk, theta: Point, factors: Mapping[str, float]
) -> Tensor:
    """Return θ' with layers multiplied by positive numbers, and the same function.

    For networks whose layers are followed by a positively homogeneous function, as
    ReLU, leaky ReLU and pooling are: φ(cx) = cφ(x) for c > 0. A layer's weights are
    multiplied by its factor; a bias, of any layer, by the product of the factors up to
    its own, in the order of θ. The product of all factors must be 1. What measures of
    sharpness make of it tells which of them depend on the parameters, and which on the
    function alone.

    That the function is the same is tried on the data of the risk, and for factors near
    1 with their powers up to 4, which a function that is not homogeneous cannot hide.

    Parameters
    ----------
    risk : EmpiricalRisk
        Of a module whose layers come one after the other, in the order of θ.
    theta : Tensor or ndarray of shape (D,)
    factors : mapping of str to float
        By the names of modules that have parameters; others have 1.

    Returns
    -------
    Tensor of shape (D,)

    Raises
    ------
    TypeError
        If ``factors`` is no mapping, or the risk has no outputs.
    ValueError
        If there is no such layer, a factor is not positive, or the function changes.
    FloatingPointError
        If an output is not finite.

    References
    ----------
    L. Dinh et al., "Sharp minima can generalize for deep nets", ICML 2017, arXiv
    1703.04933.

    Examples
    --------
    >>> from torch.nn import Linear, ReLU, Sequential
    >>> net = Sequential(Linear(1, 1), ReLU(), Linear(1, 1))
    >>> risk = EmpiricalRisk(net, "squared_error", [[1.0]], [[1.0]])
    >>> theta = torch.tensor([3.0, 1.0, 0.5, 2.0])  # 0.5 relu(3 x + 1) + 2
    >>> rescale_layers(risk, theta, {"0": 2.0, "2": 0.5})
    tensor([6.0000, 2.0000, 0.2500, 2.0000])
    """
    check_layers(risk)
    if not isinstance(factors, Mapping):
        raise TypeError(
            "factors must be a mapping of layer names to numbers, as {'0': 2.0, "
            f"'2': 0.5}}. Got {type(factors).__name__}."
        )
    theta = as_one_point(risk, theta, "rescale_layers").to(risk.device, risk.dtype)
    layers = list(dict.fromkeys(n.rpartition(".")[0] for n in risk.layout.names))
    scales = {}
    for name, factor in factors.items():
        for alias, shared in risk.layout.aliases:
            if alias.rpartition(".")[0] == name != shared.rpartition(".")[0]:
                raise ValueError(
                    "factors must name layers with parameters of their own. Got "
                    f"{name!r}, whose {alias} is {shared}; a layer that shares its "
                    "weight has no factor of its own."
                )
        if name not in layers:
            raise ValueError(
                f"factors must name layers that have parameters. Got {name!r}; there "
                f"are {', '.join(map(repr, layers))}."
            )
        scales[name] = check_positive(f"factors[{name!r}]", factor)
    outputs = check_finite("An output", risk.outputs(theta).flatten(), risk)
    found = _scaled(risk, theta, scales)
    _check_same(outputs, risk.outputs(found).flatten())
    furthest = max((abs(math.log(c)) for c in scales.values()), default=0.0)
    if 0 < furthest < math.log(4):
        further = {name: c ** (math.log(4) / furthest) for name, c in scales.items()}
        # What rounding leaves of their product would have a power, too.
        further[next(iter(further))] /= math.prod(further.values())
        _check_same(outputs, risk.outputs(_scaled(risk, theta, further)).flatten())
    return found


def _scaled(risk: EmpiricalRisk, theta: Tensor, scales: Mapping[str, float]) -> Tensor:
    parts = {name: part.clone() for name, part in risk.layout.unflatten(theta).items()}
    total, before = 1.0, None
    for name, part in parts.items():
        layer, _, own = name.rpartition(".")
        if layer != before:
            total, before = total * scales.get(layer, 1.0), layer
        if own.startswith("bias"):
            part *= total
        elif part.ndim > 1:
            part *= scales.get(layer, 1.0)
    return risk.layout.flatten(parts)


def _check_same(outputs: Tensor, others: Tensor) -> None:
    size = outputs.abs().max()
    off = (others - outputs).abs().max() / size
    if bool(off <= _ROUNDINGS * torch.finfo(outputs.dtype).eps):
        return
    raise ValueError(
        "factors must leave the function as it is: their product must be 1, and what "
        "lies between the layers positively homogeneous, as ReLU is and tanh and batch "
        f"norm are not. Got outputs that change by {float(off):.2g} of the largest, at "
        "factors of this kind; choose layers between which only such functions lie."
    )
