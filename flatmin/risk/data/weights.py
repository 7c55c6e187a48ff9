"""The weights of the examples, and what they are divided by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flatmin._utils.weights import relative_weights
from flatmin.risk.data.inputs import as_tensor
from flatmin.risk.data.shared_data import SharedData
from flatmin.risk.losses.example_loss import ExampleLoss
from flatmin.risk.ranks.collectives import Ranks

__all__ = ["KnownWeights", "as_weights", "example_weights", "normalised_weights"]


@dataclass(frozen=True)
class KnownWeights:
    """Weights that another risk of the same examples has: N wᵢ / Σw, or None."""

    values: Tensor | None  # (N,)


def as_weights(
    sample_weight: Any, n_examples: int, device: torch.device
) -> Tensor | None:
    """Return sample weights in float64.

    Parameters
    ----------
    sample_weight : array-like of shape (N,) or None
    n_examples : int
        N.
    device : torch.device

    Returns
    -------
    Tensor of shape (N,) or None

    Raises
    ------
    ValueError
        If the shape does not fit, or a weight is negative or not finite.
    """
    if sample_weight is None:
        return None
    weights = as_tensor(sample_weight, "sample_weight", device).double()
    if weights.shape != (n_examples,):
        raise ValueError(
            f"sample_weight must have shape ({n_examples},). "
            f"Got {tuple(weights.shape)}."
        )
    if bool((weights < 0).any()):
        raise ValueError(
            f"sample_weight must not be negative. Got {float(weights.min()):g}."
        )
    return weights


def example_weights(
    sample_weight: Any,
    positions: str,
    shared: SharedData,
    ranks: Ranks,
    *,
    loss: ExampleLoss,
    size: int,
    like: Tensor,
) -> Tensor | None:
    """Return N wᵢ / Σw, with the weights that the loss gives to targets.

    Parameters
    ----------
    sample_weight : Tensor of shape (N,) or (n,), KnownWeights or None
        Of all examples, or of this rank's own.
    positions : {"all", "example"}
        Of a risk.
    shared : SharedData
    ranks : Ranks
        Σw is over the examples of all of them.
    loss : ExampleLoss
    size : int
        Examples to read at a time.
    like : Tensor
        Of the dtype and on the device that are wanted.

    Returns
    -------
    Tensor of shape (N,) or None
        Known ones as they are.

    Raises
    ------
    ValueError
        If the sample weights of all ranks are 0.
    """
    if isinstance(sample_weight, KnownWeights):
        weights = sample_weight.values
    else:
        counts = shared.own.target_weights(loss, size)
        given = [isinstance(part, Tensor) for part in (sample_weight, counts)]
        ranks.agree("the weights", torch.tensor(given))
        if counts is not None:
            (counts,) = ranks.sum(shared.shard.spread(counts))
        if sample_weight is not None and shared.tried is shared.own:
            (sample_weight,) = ranks.sum(shared.shard.spread(sample_weight))
        if sample_weight is not None and not bool(sample_weight.any()):
            raise ValueError("sample_weight must have a positive sum. Got zeros only.")
        if counts is not None and positions == "example":
            counts = counts > 0
        weights = normalised_weights(sample_weight, counts, like.dtype)
    return None if weights is None else weights.to(like.device, like.dtype)


def normalised_weights(
    sample_weight: Tensor | None, target_weights: Tensor | None, dtype: torch.dtype
) -> Tensor | None:
    """Return N wᵢ / Σw, w the products of two weights; None when all are equal.

    Parameters
    ----------
    sample_weight : Tensor of shape (N,) or None
    target_weights : Tensor of shape (N,) or None
        What the targets of each example count in the loss's own mean.
    dtype : torch.dtype

    Returns
    -------
    Tensor of shape (N,) or None

    Raises
    ------
    ValueError
        If no target counts.
    """
    given = [w for w in (sample_weight, target_weights) if w is not None]
    if not given:
        return None
    products = relative_weights(*(w.double().cpu().numpy() for w in given))
    weights = torch.as_tensor(products, device=given[0].device)
    total = weights.sum()
    if not bool(total > 0):
        raise ValueError(
            "At least one target must count. Got targets that are all left out "
            "(ignore_index), of a class of weight 0, or of an example of sample_weight "
            "0."
        )
    normalised = weights * (len(weights) / total)
    if bool((normalised - 1).abs().max() < 1e-15):
        return None
    return normalised.to(dtype)
