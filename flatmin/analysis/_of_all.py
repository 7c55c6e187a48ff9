"""Numbers of a sample as estimates of those of all examples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flatmin import measures
from flatmin._utils.arrays import to_numpy
from flatmin.analysis._results import Alignment, Eigenpairs
from flatmin.analysis._sample import Sample
from flatmin.analysis._sampling import Sampling, jackknife
from flatmin.linalg import Estimate
from flatmin.risk import EmpiricalRisk

__all__ = ["alignment_of_all", "eigen_of_all", "estimate_all", "mean_of_all"]

# What is smooth in H and Σ, of the rows of an alignment.
_SMOOTH = (
    *("Tr(H)", "Tr(Σ)", "‖H‖_F", "‖Σ‖_F", "Tr(HΣ)"),
    *("Tr(H)Tr(Σ)/D", "anisotropy gain"),
)
_OF_NO_EXAMPLE = "projection residual, random"
_NO_ERROR = "of a subset it has no sampling error that flatmin knows"


@dataclass(frozen=True)
class Found:
    """A number, or an array, with its error and cost; of a subset, what that knows."""

    value: Any
    stderr: Any
    n_matvecs: int = 0
    sampling: Sampling | None = None


Measure = Callable[[EmpiricalRisk], Found | Estimate]


def estimate_all(
    sample: Sample,
    own: Found | Estimate,
    measure: Measure,
    *,
    leave_out: bool | None = None,
) -> Found:
    """Return a number of a sample as an estimate of that of all examples.

    Parameters
    ----------
    sample : Sample
    own : Estimate
        What ``measure`` gives for the sample.
    measure : callable
        Of a risk; it draws the same numbers at every call.
    leave_out : bool, default=None
        Measure the subset without each block, which costs J - 1 times the subset, or
        each block alone, which costs it once more. Leaving out is right for what is far
        from linear in the examples, but multiplies the error of probes by J - 1; None
        leaves out where no probe is drawn.

    Returns
    -------
    Found
        Its error holds those of the draw of examples and of probes. For a sample of all
        it is ``own``.
    """
    if not sample.blocks:
        return Found(own.value, own.stderr, own.n_matvecs)
    value, drawn = _number(own.value), _number(own.stderr)
    if leave_out is None:
        leave_out = not np.any(np.nan_to_num(drawn))
    found = []
    for j in range(len(sample.blocks)):
        part = torch.cat(_without(sample.blocks, j)) if leave_out else sample.blocks[j]
        found.append(measure(sample.risk.subset(part)))
    n, n_blocks = sample.risk.n_examples, len(sample.blocks)
    bias, stderr = jackknife(
        value,
        [_known(one) for one in found],
        kept=1 - 1 / n_blocks if leave_out else 1 / n_blocks,
        share=n / sample.n_all,
    )
    sampling = Sampling(n, sample.n_all, n_blocks, bias, stderr)
    cost = own.n_matvecs + sum(one.n_matvecs for one in found)
    return Found(value - bias, np.hypot(stderr, drawn), cost, sampling)


def mean_of_all(sample: Sample, measure: Measure) -> Found:
    """Return what is a mean over the examples, up to terms of order 1/n.

    Parameters
    ----------
    sample : Sample
    measure : callable

    Returns
    -------
    Found
    """
    return estimate_all(sample, measure(sample.risk), measure, leave_out=False)


def eigen_of_all(
    sample: Sample, solve: Callable[[EmpiricalRisk], Eigenpairs]
) -> Eigenpairs:
    """Return the largest eigenvalues of a sample as estimates of those of all examples.

    Parameters
    ----------
    sample : Sample
    solve : callable
        Of a risk; gives as many pairs at every call.

    Returns
    -------
    Eigenpairs
        Vectors and residuals are the sample's own. NaN is what a solver has not found.
    """
    pairs = solve(sample.risk)
    if not sample.blocks:
        return pairs
    found = estimate_all(
        sample,
        _eigenvalues(pairs),
        lambda risk: _eigenvalues(solve(risk)),
        leave_out=True,
    )
    return replace(
        pairs,
        eigenvalues=found.value,
        n_matvecs=found.n_matvecs,
        stderr=found.stderr,
        sampling=found.sampling,
    )


def alignment_of_all(
    sample: Sample, measure: Callable[[EmpiricalRisk], measures.Alignment]
) -> Alignment:
    """Return how Σ lies to H on a sample as an estimate of how it does on all examples.

    Parameters
    ----------
    sample : Sample
    measure : callable
        Of a risk.

    Returns
    -------
    Alignment
        Of a subset only what is smooth in H and Σ; the rest is NaN, since vectors of a
        few examples differ from those of all by no error that is known.
    """
    own = measure(sample.risk)
    frame, pairs = own.to_frame(), own.pairs_to_frame()
    inner, undefined = own.inner_products.cpu().numpy(), dict(own.undefined)
    found = estimate_all(
        sample, _smooth_rows(own), lambda risk: _smooth_rows(measure(risk))
    )
    if sample.blocks:
        rest = frame.index.difference([*_SMOOTH, _OF_NO_EXAMPLE], sort=False)
        undefined |= dict.fromkeys([*rest, "pairs"], _NO_ERROR)
        pairs, inner = pairs * np.nan, inner * np.nan
        frame.loc[rest] = np.nan
        frame.loc[list(_SMOOTH), "value"] = found.value
        frame.loc[list(_SMOOTH), "stderr"] = found.stderr
    cost, sampling = found.n_matvecs, found.sampling
    return Alignment(own.n_params, frame, pairs, inner, cost, undefined, sampling)


def _smooth_rows(result: measures.Alignment) -> Found:
    rows = result.to_frame().loc[list(_SMOOTH)]
    value, stderr = rows["value"].to_numpy(), rows["stderr"].to_numpy()
    return Found(value, stderr, result.n_matvecs)


def _eigenvalues(pairs: Eigenpairs) -> Found:
    found = np.where(pairs.converged, pairs.eigenvalues, np.nan)
    return Found(found, np.zeros_like(found), pairs.n_matvecs)


def _without(blocks: tuple[Tensor, ...], j: int) -> tuple[Tensor, ...]:
    return blocks[:j] + blocks[j + 1 :]


def _known(one: Found | Estimate) -> Any:
    """Return the number, or NaN where how far off it is is not known."""
    value, stderr = _number(one.value), _number(one.stderr)
    return np.where(np.isnan(stderr), np.nan, value)


def _number(value: Any) -> Any:
    """Return one number as a float, and an array in float64."""
    array = np.asarray(to_numpy("a number", value), dtype=np.float64)
    return array if array.ndim else float(array)
