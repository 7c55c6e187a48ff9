"""Steps of an optimizer for laws whose iteration is l steps at η/l."""

from __future__ import annotations

import torch

from flatmin.noise import NoiseLaw, Step

__all__ = ["move", "step_to_tell"]


def step_to_tell(
    law: NoiseLaw, optimizer: torch.optim.Optimizer, iteration: int
) -> Step:
    """Return what a law is told of the step that it draws for.

    Parameters
    ----------
    law : NoiseLaw
    optimizer : torch.optim.Optimizer
    iteration : int

    Returns
    -------
    Step
        With η/l.

    Raises
    ------
    ValueError
        If the optimizer has several η.
    """
    rates = {float(group["lr"]) for group in optimizer.param_groups}
    if len(rates) > 1:
        raise ValueError(
            f"{type(law).__name__} needs one learning rate for all parameters. Got "
            f"{sorted(rates)}; give param_groups one lr, or use a law that does not "
            "take a step."
        )
    return Step(iteration, rates.pop() / int(law.n_substeps))


def move(optimizer: torch.optim.Optimizer, n_substeps: int) -> None:
    """Let an optimizer step at η/l; its η is then what it was, also after an error.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
    n_substeps : int
        l.
    """
    if n_substeps == 1:
        optimizer.step()
        return
    groups = optimizer.param_groups
    rates = [group["lr"] for group in groups]
    for group, rate in zip(groups, rates, strict=True):
        group["lr"] = rate / n_substeps
    try:
        optimizer.step()
    finally:
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate
