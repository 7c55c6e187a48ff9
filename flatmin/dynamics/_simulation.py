"""What many chains of a law did: where they ended, and when they left."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from flatmin.dynamics._proportion import Proportion
from flatmin.linalg import Estimate
from flatmin.noise import NoiseLaw

__all__ = ["Simulation"]


@dataclass(frozen=True)
class Simulation:
    """What the chains of one law did.

    Examples
    --------
    >>> import torch
    >>> from flatmin.risk import QuadraticRisk
    >>> slopes = torch.tensor([[3.0, 4.0], [-3.0, -4.0], [1.0, -2.0], [-1.0, 2.0]])
    >>> risk = QuadraticRisk(torch.diag(torch.tensor([4.0, 1.0])), slopes)
    >>> theta = torch.zeros(2)
    >>> from flatmin.dynamics import simulate
    >>> runs = simulate(risk, "gd", torch.ones(2), lr=0.1, n_iter=10, n_chains=3)
    >>> runs["gd"].theta[0]  # 0.6¹⁰ and 0.9¹⁰
    tensor([0.0060, 0.3487])
    """

    law: NoiseLaw
    theta: Tensor  # (n_chains, D) after the last step
    n_iter: int
    success: Tensor | None  # (n_chains,) bool: the last point is in the target
    # (n_chains,) first iterate in it; where censored, the last one that was finite
    exit_times: Tensor | None
    censored: Tensor | None  # (n_chains,) bool: no iterate was in it
    iterations: Tensor | None  # (n_records,) of the trajectory
    trajectory: Tensor | None  # (n_records, n_chains, D)

    def success_rate(self, confidence: float = 0.95) -> Proportion:
        """Return the share of chains whose last point is in the target.

        Parameters
        ----------
        confidence : float, default=0.95
            Of the Wilson interval. It holds for chains on the given data; where every
            chain has data of its own, also for other data.

        Returns
        -------
        Proportion

        Raises
        ------
        ValueError
            If there was no ``reached``, or ``confidence`` is not in (0, 1).
        """
        return Proportion.of(_known(self.success), confidence)

    def exit_rate(self, confidence: float = 0.95) -> Proportion:
        """Return the share of chains of which some iterate was in the target.

        Parameters
        ----------
        confidence : float, default=0.95
            Of the Wilson interval; see :meth:`success_rate`.

        Returns
        -------
        Proportion

        Raises
        ------
        ValueError
            If there was no ``reached``, or ``confidence`` is not in (0, 1).
        """
        return Proportion.of(~_known(self.censored), confidence)

    def mean_exit_time(self) -> Estimate:
        """Return the iterations spent outside the target, by all chains, per exit.

        The maximum-likelihood mean of exponential exit times with censoring; its
        standard error is the mean over the root of the number of exits. A chain that
        diverges is counted until its last finite iterate: the time is that of chains
        that have not.

        Returns
        -------
        Estimate
            In iterations, infinite where no chain reached the target; ``exit_rate``
            has the number of exits.

        Raises
        ------
        ValueError
            If there was no ``reached``.
        """
        n_exits = int((~_known(self.censored)).sum())
        if not n_exits:
            never = torch.tensor(math.inf, dtype=torch.float64)
            return Estimate(never, never)
        mean = _known(self.exit_times).sum().double() / n_exits
        return Estimate(mean, mean / n_exits**0.5)


def _known(tensor: Tensor | None) -> Tensor:
    if tensor is None:
        raise ValueError("Without reached= there are no successes or exit times.")
    return tensor
