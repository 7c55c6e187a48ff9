"""Vectors shared out over the ranks of the default process group."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from flatmin._utils.process_group import NO_PROCESS_GROUP, TOLD_TO_RANKS

__all__ = ["VectorShards", "default_group"]

# Without a second copy of the whole. PyTorch 2.13 has renamed it.
_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class VectorShards:
    """How vectors are shared out over the processes, and what these say to each other.

    Rank r of p has the coordinates r w, …, r w + w - 1 with w = ⌈D/p⌉. Where D does
    not fill the last shards, they end in zeros. All methods but :meth:`shard` are
    collective: every rank calls them, in the same order.

    Parameters
    ----------
    size : int
        D.
    device : torch.device
        Where the backend of the group finds what is sent.
    rank : int, default=0
    count : int, default=1
        p. One process calls no collective.

    Attributes
    ----------
    width : int
        w.
    """

    def __init__(
        self, size: int, device: torch.device, *, rank: int = 0, count: int = 1
    ) -> None:
        self.size = size
        self.device = device
        self.rank = rank
        self.count = count
        self.width = -(-size // count)

    @property
    def coordinates(self) -> slice:
        """The coordinates of this rank."""
        start = min(self.rank * self.width, self.size)
        return slice(start, min(start + self.width, self.size))

    def sum(self, numbers: Tensor) -> Tensor:
        """Return the sum over the ranks, with the same bits on each.

        Parameters
        ----------
        numbers : Tensor of any shape

        Returns
        -------
        Tensor of that shape
            Added in the order of the ranks; an all-reduce promises no order.
        """
        if self.count == 1:
            return numbers
        first, *others = self._of_all(numbers)
        for other in others:
            first = first + other
        return first

    def largest(self, number: Tensor) -> Tensor:
        """Return the largest of a number of each rank; NaN if one is.

        Parameters
        ----------
        number : Tensor of shape ()

        Returns
        -------
        Tensor of shape ()
        """
        if self.count == 1:
            return number
        return torch.stack(self._of_all(number)).amax()

    def of_first(self, numbers: Tensor) -> Tensor:
        """Return what rank 0 has.

        Parameters
        ----------
        numbers : Tensor of any shape
            The same shape on each rank.

        Returns
        -------
        Tensor of that shape
        """
        if self.count == 1:
            return numbers
        sent = numbers.to(self.device).contiguous()
        dist.broadcast(sent, src=0)
        return sent.to(numbers.device)

    def same_generator(self, rng: torch.Generator) -> torch.Generator:
        """Return a generator in the state of that of rank 0.

        Parameters
        ----------
        rng : torch.Generator

        Returns
        -------
        torch.Generator
        """
        if self.count > 1:
            rng.set_state(self.of_first(rng.get_state()))
        return rng

    def shard(self, vector: Tensor) -> Tensor:
        """Return the shard of this rank.

        Parameters
        ----------
        vector : Tensor of shape (D,)

        Returns
        -------
        Tensor of shape (w,)
            A copy, or of one process the vector itself.
        """
        if self.count == 1:
            return vector
        mine = vector[self.coordinates]
        return torch.nn.functional.pad(mine, (0, self.width - len(mine)))

    def whole(self, shard: Tensor) -> Tensor:
        """Return the vector that the ranks hold.

        Parameters
        ----------
        shard : Tensor of shape (w,)

        Returns
        -------
        Tensor of shape (D,)
            On the device of the group.
        """
        if self.count == 1:
            return shard.to(self.device)
        sent = shard.to(self.device).contiguous()
        vector = sent.new_empty(self.count * self.width)
        _gather(vector, sent)
        return vector[: self.size]

    @contextmanager
    def agreed(self, work: str) -> Iterator[None]:
        """Do what each rank does for itself, and raise on all where one has raised.

        Parameters
        ----------
        work : str
            What is done.

        Yields
        ------
        None

        Raises
        ------
        RuntimeError
            If another rank has raised; there its own error goes on.
        """
        error: Exception | None = None
        try:
            yield
        except Exception as raised:
            error = raised
        if self.count > 1 and not getattr(error, TOLD_TO_RANKS, False):
            mine = torch.tensor(0 if error is None else self.rank + 1)
            failed = int(self.largest(mine))
            if failed and error is None:
                raise RuntimeError(
                    f"rank {failed - 1} raised in {work}; its own error tells why."
                )
        if error is not None:
            raise error

    def _of_all(self, numbers: Tensor) -> list[Tensor]:
        sent = numbers.to(self.device).contiguous()
        found = [torch.empty_like(sent) for _ in range(self.count)]
        dist.all_gather(found, sent)
        return [part.to(numbers.device) for part in found]


def default_group(size: int, device: torch.device) -> VectorShards:
    """Return this process among the ranks of the default process group.

    Parameters
    ----------
    size : int
        D.
    device : torch.device
        As of :class:`VectorShards`.

    Returns
    -------
    VectorShards

    Raises
    ------
    RuntimeError
        If there is no such group.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError(NO_PROCESS_GROUP)
    return VectorShards(size, device, rank=dist.get_rank(), count=dist.get_world_size())
