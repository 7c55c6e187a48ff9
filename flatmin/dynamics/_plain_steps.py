"""Where a law's noise is what it says for the plain step θ ← θ - η g only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from flatmin.noise import NoiseLaw

__all__ = ["check_plain_steps"]


def check_plain_steps(
    law: NoiseLaw,
    optimizer: type[torch.optim.Optimizer],
    settings: Mapping[str, Any],
    batched: bool,
    *,
    clip_norm: float | None = None,
) -> None:
    """Raise where an optimizer makes of a law's steps what it does not mean.

    These are l steps at η/l, and noise in parameter units.

    Parameters
    ----------
    law : NoiseLaw
    optimizer : torch.optim.Optimizer class
    settings : mapping of str to object
        Its settings; those of groups as skorch's ``param_groups``.
    batched : bool
        Whether an iteration sees a batch of the examples.
    clip_norm : float, default=None
        The norm at which gradients are clipped, if they are.

    Raises
    ------
    ValueError
        If the steps are not plain ones, θ ← θ - η g, or an iteration sees a batch
        where it must not.
    """
    name, n_substeps = type(law).__name__, law.n_substeps
    parts = f"{name} takes {n_substeps} steps at a part of η"
    groups = [group for _, group in settings.get("param_groups") or ()]
    momentum = any(each.get("momentum") for each in (settings, *groups))
    if momentum or clip_norm is not None or not issubclass(optimizer, torch.optim.SGD):
        got = (
            f"Got {optimizer.__name__} with {dict(settings)}; use optimizer='sgd' "
            "without momentum."
        )
        if clip_norm is not None:
            got = f"Got clip_norm={clip_norm}; leave it at None."
        if n_substeps > 1:
            raise ValueError(
                f"{parts}, which is the same time for plain steps only. {got}"
            )
        if law.in_parameter_units:
            raise ValueError(
                f"The noise of {name} is in parameter units, which it has by plain "
                f"steps θ - η g only. {got} Or use a law in gradient units."
            )
    if batched and law.needs_all_examples:
        raise ValueError(
            f"The noise of {name} has the size that it says beside a gradient of all "
            "examples, and gradient_batch_size adds the noise of its batches. Leave "
            "gradient_batch_size at None."
        )
    if batched and n_substeps > 1:
        raise ValueError(
            f"{parts} on the same examples, and gradient_batch_size draws others once "
            "an iteration. Leave gradient_batch_size at None."
        )
