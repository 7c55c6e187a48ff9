"""Some of the examples in the place of all: how they are drawn."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from flatmin._utils.random import make_generator, make_seed
from flatmin._utils.random_state import spawn_seeds
from flatmin._utils.validation import Interval
from flatmin.risk import EmpiricalRisk

__all__ = [
    "LEAST",
    "N_BLOCKS",
    "SUBSET_CONSTRAINTS",
    "Sample",
    "draw_sample",
]

# Of how many examples and blocks the interval covered in 200 draws: see
# benchmarks/subsets.py and benchmarks/results/subsets.json. Below it is refused.
N_BLOCKS = 10
LEAST = 400

SUBSET_CONSTRAINTS = [
    None,
    Interval(Integral, 1, None, closed="left"),
    Interval(Real, 0, 1, closed="right"),
]


@dataclass(frozen=True)
class Sample:
    """The examples that are looked at, all of them or a subset in blocks."""

    risk: EmpiricalRisk
    n_all: int  # N
    blocks: tuple[Tensor, ...] = ()  # places in the subset; none where it is everything

    def sizes(self, *, leave_out: bool) -> list[int]:
        """Return the examples of each risk that is looked at: the subset, and parts."""
        n = self.risk.n_examples
        sizes = [len(block) for block in self.blocks]
        return [n, *([n - size for size in sizes] if leave_out else sizes)]

    def check_whole(self, what: str) -> None:
        """Raise if this is a subset.

        Parameters
        ----------
        what : str
            That is wanted.

        Raises
        ------
        ValueError
            With the way out.
        """
        if self.blocks:
            raise ValueError(
                f"{what} has no sampling error that flatmin knows, so it is not given "
                f"for a subset. Got {self.risk.n_examples} of {self.n_all} examples; "
                "pass subset=None, or fit the examples that you choose as data."
            )


def draw_sample(risk: EmpiricalRisk, subset: Any, random_state: Any) -> Sample:
    """Draw a subset without replacement.

    Weights stay those of all examples, so that each mean over the subset is an unbiased
    estimate of the mean over all, whatever the weights.

    Parameters
    ----------
    risk : EmpiricalRisk
        Of all examples.
    subset : int, float or None
        n, or its share of all examples; None is all.
    random_state : int, RandomState instance or None

    Returns
    -------
    Sample

    Raises
    ------
    ValueError
        If it has more examples than there are, or too few for any interval.
    """
    n_all = risk.n_examples
    if subset is None:
        return Sample(risk, n_all)
    n = int(subset) if isinstance(subset, Integral) else round(subset * n_all)
    if n > n_all:
        raise ValueError(
            f"subset must be at most the number of examples, {n_all}. Got {subset}."
        )
    if n == n_all:
        return Sample(risk, n_all)
    if n < LEAST:
        raise ValueError(
            f"subset must be at least {LEAST} examples, since the intervals of fewer "
            f"were seen not to cover. Got {n} of {n_all}; pass {LEAST} or more, or "
            "None for all."
        )
    # Another stream than that of probes, which have the seed itself.
    seed = spawn_seeds(make_seed(random_state), ["subset"])["subset"]
    order = torch.randperm(n_all, generator=make_generator(seed))[:n]
    blocks = torch.arange(n, device=risk.device).tensor_split(N_BLOCKS)
    return Sample(risk.subset(order.to(risk.device)), n_all, blocks)
