"""Where an iteration may be several steps at a part of η."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from flatmin.noise import NoiseLaw

__all__ = ["check_substeps"]


def check_substeps(
    law: NoiseLaw,
    optimizer: type[torch.optim.Optimizer],
    params: Mapping[str, Any],
    batched: bool,
) -> None:
    """Raise where l steps at η/l are not what a law means by an iteration.

    Parameters
    ----------
    law : NoiseLaw
    optimizer : torch.optim.Optimizer class
    params : mapping of str to object
        Its settings.
    batched : bool
        Whether an iteration sees a batch of the examples.

    Raises
    ------
    ValueError
        If the optimizer is not the plain step θ ← θ - η g, or iterations see batches.
    """
    if law.n_substeps == 1:
        return
    title = f"{type(law).__name__} takes {law.n_substeps} steps at a part of η"
    if not issubclass(optimizer, torch.optim.SGD) or params.get("momentum"):
        raise ValueError(
            f"{title}, which is the same time for plain steps only. Got "
            f"{optimizer.__name__} with {dict(params)}; use optimizer='sgd' without "
            "momentum."
        )
    if batched:
        raise ValueError(
            f"{title} on the same examples, and gradient_batch_size draws others once "
            "an iteration. Leave gradient_batch_size at None."
        )
