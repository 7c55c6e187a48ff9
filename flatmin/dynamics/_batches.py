"""The examples that one iteration sees, where it does not see all."""

from __future__ import annotations

import torch
from torch import Tensor

from flatmin.noise import NoiseLaw
from flatmin.risk import EmpiricalRisk

__all__ = ["GradientBatches"]


class GradientBatches:
    """Fresh random batches of B examples, each as a risk of its own.

    A batch is drawn without replacement, independently of the others: its gradient has
    the mean g₀ and the covariance (N - B)/(N - 1) Σ/B, to which a law that sees the
    batch alone adds its noise. With Σ_B the batch's own covariance, of mean
    (1 - 1/B) N/(N - 1) Σ, one that has C = Σ_B/m ends up near (1/B + 1/m) Σ.

    Parameters
    ----------
    risk : EmpiricalRisk
        Of all N examples.
    size : int
        B, less than N.
    rng : torch.Generator
        On the risk's device; serves nothing else, so that equal seeds give the same
        batches to every law.

    Attributes
    ----------
    indices : Tensor of shape (B,) or None
        The examples of the last batch drawn.

    Raises
    ------
    ValueError
        If no example has a loss of its own, under ``batch_norm="batch"``.
    """

    def __init__(self, risk: EmpiricalRisk, size: int, rng: torch.Generator) -> None:
        risk.check_examples(f"gradient_batch_size={size}")
        self.risk = risk
        self.size = size
        self.rng = rng
        self.indices: Tensor | None = None

    def draw(self) -> EmpiricalRisk:
        """Return the risk of the next batch.

        Returns
        -------
        EmpiricalRisk
        """
        n, device = self.risk.n_examples, self.risk.device
        order = torch.randperm(n, generator=self.rng, device=device)
        self.indices = order[: self.size].clone()
        return self.risk.subset(self.indices)

    def check(self, law: NoiseLaw) -> None:
        """Raise if a law's settings cannot work on B examples; draws nothing.

        Where a law asks for the examples' own gradients and they come by layer, all of
        them are tried now, and no iteration waits for a trial.

        Parameters
        ----------
        law : NoiseLaw

        Raises
        ------
        ValueError
            The law's own, and where its examples come from.
        """
        first = torch.arange(self.size, device=self.risk.device)
        part = self.risk.subset(first)
        try:
            law.check(part)
        except ValueError as error:
            raise ValueError(
                f"{error} An iteration sees gradient_batch_size={self.size} examples."
            ) from error
        if law.needs_example_gradients:
            theta = self.risk.params()
            part.squared_norms(theta)
            if self.risk.paths.get("per-example sums") == "by layer":
                self.risk.squared_norms(theta)
