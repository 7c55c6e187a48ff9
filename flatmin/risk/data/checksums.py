"""Checksums of examples, to see whether a data set gives the same ones again."""

from __future__ import annotations

from functools import lru_cache
from hashlib import sha256

import numpy as np
import torch
from torch import Tensor

from flatmin._utils.trees import Inputs, Tree

__all__ = ["Checksums"]

_HALF = np.uint64(32)
_BLOCK = 1 << 15


class Checksums:
    """What each example of a data set was when it was first read.

    Sixteen bytes an example. For 784 numbers of float32 it takes half a microsecond,
    where to read them takes ten.

    Parameters
    ----------
    n_examples : int

    Attributes
    ----------
    n_passes : int
        Through all examples that have been begun.
    """

    def __init__(self, n_examples: int) -> None:
        self.n_passes = 0
        self._sums = np.zeros(n_examples, np.uint64)
        self._widths = np.zeros(n_examples, np.int64)  # in bytes; 0 if never read

    def __len__(self) -> int:
        return len(self._sums)

    def changed(self, indices: np.ndarray, X: Inputs, y: Tensor) -> np.ndarray:
        """Remember examples that are new, and return the others that have changed.

        Padding makes an example as long as the longest that is read with it: only
        examples of the same length are compared.

        Parameters
        ----------
        indices : ndarray of shape (n,)
            Which examples they are; one may come twice.
        X : Tensor of shape (n, ...) or Tree
            Each leaf counts, and its name.
        y : Tensor of shape (n, ...)

        Returns
        -------
        ndarray of shape (n_changed,)
            Their indices.
        """
        sums, width = np.zeros(len(indices), np.uint64), 1
        for place, part in _placed(X, y):
            words = _as_words(part)
            sums += _checksums(words, place)
            width += part[0].numel() * part.element_size()
        is_new = self._widths[indices] == 0
        self._sums[indices[is_new]] = sums[is_new]
        self._widths[indices[is_new]] = width
        same_width = self._widths[indices] == width
        found: np.ndarray = indices[same_width & (self._sums[indices] != sums)]
        return found

    def all(self) -> np.ndarray | None:
        """Return the checksums of all examples, None where some were never read."""
        return self._sums if bool(self._widths.all()) else None


def _placed(X: Inputs, y: Tensor) -> list[tuple[int, Tensor]]:
    """Return each array with a number that tells which it is."""
    if not isinstance(X, Tree):
        return [(0, X), (1, y)]
    seeds = (sha256(name.encode()).digest()[:8] for name in X.names)
    places = [int.from_bytes(seed, "big") for seed in seeds]
    return [(1, y), *zip(places, X.leaves, strict=True)]


def _as_words(part: Tensor) -> np.ndarray:
    """Return the bytes of each example, eight at a time, on the host."""
    rows = part.detach().cpu().contiguous().reshape(len(part), -1).view(torch.uint8)
    missing = -rows.shape[1] % 8
    if missing:
        rows = torch.cat([rows, rows.new_zeros(len(rows), missing)], 1)
    words: np.ndarray = rows.numpy().view(np.uint64)
    return words


def _checksums(words: np.ndarray, place: int) -> np.ndarray:
    """Σ aⱼwⱼ modulo 2⁶⁴ of each row, aⱼ the halves of its words."""
    # Weights of 64 random bits for digits of 32: two rows that differ have the same
    # checksum with a probability of at most 2⁻³³, however they differ (multilinear
    # hashing: D. Lemire and O. Kaser, "Strongly universal string hashing is fast", The
    # Computer Journal 2014). A sum without weights would not see a picture mirrored.
    # With the low halves come the high ones at 2³² times a weight; they get their own.
    of_words, of_halves = _weights(words.shape[1], place)
    sums = np.empty(len(words), np.uint64)
    step = max(1, _BLOCK // max(1, words.shape[1]))  # what stays in the cache
    high = np.empty_like(words[:step])
    for start in range(0, len(words), step):
        part = words[start : start + step]
        some = sums[start : start + step]
        np.einsum("ij,j->i", part, of_words, out=some)
        np.right_shift(part, _HALF, out=high[: len(part)])
        some += np.einsum("ij,j->i", high[: len(part)], of_halves)
    return sums


@lru_cache(maxsize=32)
def _weights(n_words: int, place: int) -> np.ndarray:
    rng = np.random.default_rng(place)
    return rng.integers(0, 2**64, (2, n_words), dtype=np.uint64)
