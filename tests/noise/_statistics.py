"""Sample means and covariances, judged by their own standard errors."""

import torch
from scipy import stats

# Draws that may depend on each other: a multiple of the batches of an epoch.
BLOCK = 8
# Of one judgement, however many numbers it looks at.
FALSE_ALARM = 1e-7


def assert_mean(blocks, expected):
    """Judge the mean of independent blocks, shape (n_blocks, ...), by their spread."""
    error = (blocks.mean(0) - expected).abs()
    stderr = blocks.std(0) / len(blocks) ** 0.5
    # What does not vary has to agree to rounding.
    score = (error / stderr.clamp(min=1e-9)).max()
    bound = stats.t.isf(FALSE_ALARM / 2 / error.numel(), len(blocks) - 1)
    assert score <= bound, f"off by {score:.1f} standard errors, {bound:.1f} allowed"


def assert_distribution(draws, covariance):
    """Judge mean 0 and the covariance of draws of shape (M, D).

    In the eigenbasis of the covariance, scaled to variance 1: so every direction
    counts alike, however little noise it has, and outside there is none.
    """
    values, vectors = torch.linalg.eigh(covariance)
    has_noise = values > 1e-9 * values[-1]
    outside = draws @ vectors[:, ~has_noise]
    assert (outside.abs() <= 1e-4 * values[-1].clamp(min=0).sqrt() + 1e-13).all()

    white = draws @ vectors[:, has_noise] / values[has_noise].sqrt()
    white = white.unflatten(0, (-1, BLOCK))  # (n_blocks, BLOCK, rank)
    rank = white.shape[-1]
    if rank > 0:
        squares = white.mT @ white / BLOCK
        assert_mean(white.mean(1), 0.0)
        assert_mean(squares, torch.eye(rank, dtype=draws.dtype))
        assert_mean(squares.diagonal(dim1=1, dim2=2).mean(1), 1.0)
