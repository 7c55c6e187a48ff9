"""What all ranks know of the examples, where each has a part of its own."""

from __future__ import annotations

import zlib

import numpy as np
import torch

from flatmin._utils.placement import resolve_device
from flatmin.risk.data.shared_data import own_shard
from flatmin.risk.data.source import Source
from flatmin.risk.ranks.collectives import Ranks
from flatmin.risk.ranks.shard import Shard

__all__ = ["OwnPart", "find_own_part"]


class OwnPart:
    """The n of the N examples that this rank has, after those of lower ranks.

    Parameters
    ----------
    shard : Shard
    ranks : Ranks
    device : torch.device
        Where the ranks' collectives run.

    Attributes
    ----------
    rows : ndarray of shape (n,), int
        Their places among the N.
    """

    def __init__(self, shard: Shard, ranks: Ranks, device: torch.device) -> None:
        self.rows: np.ndarray = torch.as_tensor(shard.rows).cpu().numpy()
        self._shard = shard
        self._ranks = ranks
        self._device = device

    def of_all(self, name: str, values: np.ndarray) -> np.ndarray:
        """Return one value, or row, of each of the N examples, the same on all ranks.

        Parameters
        ----------
        name : str
            What they are.
        values : ndarray of shape (n, ...)
            Of this rank's examples.

        Returns
        -------
        ndarray of shape (N, ...)

        Raises
        ------
        ValueError
            If other ranks have other kinds of numbers.
        """
        values = np.ascontiguousarray(values)
        kind = f"{values.dtype} of shape {('n', *values.shape[1:])}"
        self._ranks.agree(name)
        if self._ranks.differ(torch.tensor(zlib.crc32(kind.encode()))):
            raise ValueError(
                f"{name} must be of one kind on all ranks. Got {kind} on rank "
                f"{self._ranks.rank}, and another on another rank."
            )
        # As bytes, which a sum with zeros keeps as they are.
        part = torch.from_numpy(values.reshape(len(values), -1).view(np.uint8).copy())
        part = part.to(self._device)
        (whole,) = self._ranks.sum(self._shard.spread(part))
        found = whole.cpu().numpy().view(values.dtype)
        return found.reshape(len(whole), *values.shape[1:])


def find_own_part(
    source: Source, ranks: Ranks, device: torch.device | str
) -> OwnPart | None:
    """Return this rank's part, or None where all ranks have all examples.

    Parameters
    ----------
    source : Source
    ranks : Ranks
    device : torch.device or str

    Returns
    -------
    OwnPart or None
    """
    if ranks.size == 1 or not source.is_subset:
        return None
    place = resolve_device(device)
    return OwnPart(own_shard(len(source), ranks, place), ranks, place)
