"""Estimates from random probes: plain means, or sketches with one vector left out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flatmin.linalg._operator import LinearOperator
from flatmin.linalg._probes import rademacher
from flatmin.linalg._running_mean import PILOT_DRAWS, RunningMean
from flatmin.linalg._sketch import Sketch, max_sketch

__all__ = ["probed_estimate"]

# Vectors that a sketch has to have room for to be worth throwing the pilot away.
_ENOUGH = 20


def probed_estimate(
    operator: LinearOperator,
    sample: Callable[[Tensor, Tensor], Tensor],
    sketch: Sketch,
    leave_one_out: Callable[[Sketch], tuple[Tensor, Tensor]],
    *,
    method: str,
    rtol: float,
    max_matvecs: int,
    rng: torch.Generator,
    bar: Any,
) -> tuple[Tensor, Tensor]:
    """Return an estimate and its standard error, of one shape and in float64.

    Parameters
    ----------
    operator : LinearOperator of shape (D, D)
    sample : callable
        Takes z and Az, returns an unbiased draw.
    sketch : Sketch
        Of the operator, empty.
    leave_one_out : callable
        Takes the sketch, returns the estimate and its standard error.
    method : {"auto", "hutchinson", "sketch"}
    rtol : float
        ‖stderr‖ to reach, over ‖value‖.
    max_matvecs : int
    rng : torch.Generator
    bar : tqdm.tqdm
        Counts products.

    Returns
    -------
    value : Tensor
    stderr : Tensor
    """

    def draw() -> Tensor:
        z = rademacher(operator, rng)
        draw = sample(z, operator.matvec(z))
        bar.update()
        return draw

    mean = RunningMean()
    if method == "auto":
        while mean.n < min(PILOT_DRAWS, max_matvecs):
            mean.add(draw())
        k_max = max_sketch(operator, max_matvecs - mean.n)
        # Half of the budget: then a plain mean is sure to do, and on a flat spectrum a
        # sketch is not.
        many = mean.n_needed(rtol) > max_matvecs / 2
        method = "sketch" if many and k_max >= _ENOUGH else "hutchinson"
    if method == "hutchinson":
        mean.draw_until(draw, rtol, max_matvecs)
        return mean.mean, mean.stderr

    k_max = max_sketch(operator, max_matvecs - mean.n)
    n_new = min(PILOT_DRAWS, k_max)
    while True:
        sketch.grow(n_new, rng)
        bar.update(2 * n_new)
        value, stderr = leave_one_out(sketch)
        if sketch.k == k_max:
            return value, stderr
        norm = torch.linalg.vector_norm
        if bool(norm(stderr) <= rtol * norm(value)):
            return value, stderr
        n_new = min(sketch.k // 2, k_max - sketch.k)
