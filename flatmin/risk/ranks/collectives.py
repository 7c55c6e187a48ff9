"""The processes that share the examples of a risk, and what they say to each other.

Each public word of a risk first makes this rank's part, from its own examples. Then the
ranks *agree*: one small collective says whether all of them have a part, of the same
word at the same θ. Then one all-reduce adds the parts. A rank that raises comes to the
agreement too, so that no other waits for it.

In ``risk`` this file alone speaks to ``torch.distributed``; ``linalg``, on the same
floor, has ``linalg/_distributed.py`` for vectors. In one process nothing of it runs.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from flatmin._utils.messages import message
from flatmin._utils.numbers import check_flag
from flatmin._utils.process_group import NO_PROCESS_GROUP, TOLD_TO_RANKS

__all__ = ["ALONE", "Ranks", "find_ranks", "is_first"]

_MESSAGE_BYTES = 2000
_KINDS: dict[str, type[Exception]] = {
    kind.__name__: kind
    for kind in (
        *(ArithmeticError, FloatingPointError, ZeroDivisionError, OverflowError),
        *(AttributeError, IndexError, KeyError, TypeError, ValueError),
        *(MemoryError, NotImplementedError, OSError, FileNotFoundError, RuntimeError),
    )
}


class Ranks:
    """The processes of the default group; one object for each risk.

    Parameters
    ----------
    rank : int
        Of this process.
    size : int
        p, how many there are.
    serial : int
        Of the risk, the same on all ranks.

    Attributes
    ----------
    n_bytes : int
        What this rank has handed to an all-reduce so far, agreements left out.
    """

    def __init__(self, rank: int, size: int, serial: int = 0) -> None:
        self.rank = rank
        self.size = size
        self.serial = serial
        self.n_bytes = 0
        self._at_work = False

    @property
    def within(self) -> bool:
        """Whether a word is at work: what it calls returns this rank's part."""
        return self._at_work

    def once(self, number: float) -> float:
        """Return what is added once, by the first rank, where parts are added."""
        return number if self.rank == 0 or not self._at_work else 0.0

    @contextmanager
    def together(self, word: str) -> Iterator[list[Any]]:
        """Do this rank's part of something, and agree with the others at the end.

        Parameters
        ----------
        word : str
            What is done, the same on all ranks.

        Yields
        ------
        list
            To be filled with what it is asked about: tensors on a CPU and generators
            must be the same on all ranks.

        Raises
        ------
        Exception
            What this rank has raised, or another one: all of them raise.
        RuntimeError
            If the ranks do different things, or one does not answer.
        """
        asked: list[Any] = []
        if self.size == 1 or self._at_work:
            yield asked
            return
        with self.announced(word):
            self._at_work = True
            try:
                yield asked
            finally:
                self._at_work = False
        self.agree(word, *asked)

    @contextmanager
    def announced(self, word: str) -> Iterator[None]:
        """Tell the others, at their next agreement, what this rank raises.

        Within a word nothing is told: what is caught there does not end it.

        Parameters
        ----------
        word : str

        Yields
        ------
        None

        Raises
        ------
        Exception
            As it comes.
        """
        try:
            yield
        except Exception as error:
            if not (
                self.size == 1 or self._at_work or getattr(error, TOLD_TO_RANKS, False)
            ):
                _mark(error)
                with suppress(RuntimeError):  # the others are gone
                    self._agree(word, (-1, -1), error)
            raise

    def agree(self, word: str, *asked: Any) -> None:
        """Raise on all ranks if one has raised, or does something else.

        Parameters
        ----------
        word : str
        *asked : object

        Raises
        ------
        Exception
            Of the kind that another rank has raised.
        RuntimeError
            If the ranks do different things, or one does not answer.
        """
        if self.size > 1:
            of_word = zlib.crc32(f"{self.serial} {word}".encode())
            self._agree(word, (of_word, _checksum(asked)), None)

    def differ(self, *tensors: Tensor) -> bool:
        """Return whether tensors are others on some ranks than on the first.

        Parameters
        ----------
        *tensors : Tensor

        Returns
        -------
        bool
            The same on all ranks.
        """
        found = _checksum([tensor.cpu() for tensor in tensors])
        said = torch.tensor([found, -found])
        with _answered():
            dist.all_reduce(said, op=dist.ReduceOp.MAX, group=_control_group())
        return int(said[0]) != -int(said[1])

    def of_first(self, tensor: Tensor) -> Tensor:
        """Return a tensor of the first rank, on a CPU.

        Parameters
        ----------
        tensor : Tensor
            Of the same shape and dtype on all ranks.

        Returns
        -------
        Tensor
        """
        if self.size == 1:
            return tensor
        self.agree("what the first rank says", torch.tensor(tensor.shape))
        found = tensor.clone()
        with _answered():
            dist.broadcast(found, 0, group=_control_group())
        return found

    def sum(self, *parts: Tensor) -> tuple[Tensor, ...]:
        """Return the sums over all ranks, the same bits on each, by one all-reduce.

        Parameters
        ----------
        *parts : Tensor
            In memory that stays as it is.

        Returns
        -------
        tuple of Tensor
        """
        if self.size == 1:
            return parts
        dtype = functools.reduce(torch.promote_types, (part.dtype for part in parts))
        total = torch.cat([part.detach().reshape(-1).to(dtype) for part in parts])
        self.n_bytes += total.numel() * total.element_size()
        with _answered():
            dist.all_reduce(total)
        sums = total.split([part.numel() for part in parts])
        return tuple(
            found.view(part.shape).to(part.dtype)
            for found, part in zip(sums, parts, strict=True)
        )

    def _agree(
        self, word: str, digest: tuple[int, int], error: Exception | None
    ) -> None:
        failed, (of_word, of_asked) = 0 if error is None else self.rank + 1, digest
        said = torch.tensor([failed, of_word, -of_word, of_asked, -of_asked])
        _check_group(self)
        group = _control_group()
        with _answered():
            dist.all_reduce(said, op=dist.ReduceOp.MAX, group=group)
        failed, most, least, asked, same = said.tolist()
        if failed:
            self._raise_from(failed - 1, error, group)
        elif most != -least:
            raise _mark(
                RuntimeError(
                    "All ranks must ask for the same words of a risk in the same "
                    f"order. Got {word} on rank {self.rank}, and something else on "
                    "another rank: look for what only some ranks do, and for calls "
                    "from several threads."
                )
            )
        elif asked != -same:
            raise _mark(
                RuntimeError(
                    f"All ranks must ask for {word} at the same θ, with the same "
                    f"arrays and the same random numbers. Got others on rank "
                    f"{self.rank} than on another rank: give all ranks one seed, and "
                    "start them from the same parameters, X and y "
                    "(torch.distributed.broadcast(parameter, 0) makes them so)."
                )
            )

    def _raise_from(self, rank: int, error: Exception | None, group: Any) -> None:
        """Hand on what one rank has raised; there the error itself goes on."""
        text = torch.zeros(_MESSAGE_BYTES, dtype=torch.uint8)
        if rank == self.rank and error is not None:
            said = f"{type(error).__name__}\n{message(error)}".encode()[:_MESSAGE_BYTES]
            text[: len(said)] = torch.frombuffer(bytearray(said), dtype=torch.uint8)
        with _answered():
            dist.broadcast(text, rank, group=group)
        if error is not None:
            return  # and goes on
        heard = bytes(text.tolist()).rstrip(b"\0").decode(errors="ignore")
        name, _, reason = heard.partition("\n")
        # The same kind, so that what catches it does so on all ranks.
        if name in _KINDS:
            raise _mark(_KINDS[name](f"rank {rank} raised: {reason}"))
        raise _mark(RuntimeError(f"rank {rank} raised {name}: {reason}"))

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_at_work": False}


ALONE = Ranks(0, 1)


_SERIALS = iter(range(1, 1 << 62))


def find_ranks(distributed: bool) -> Ranks:
    """Return the ranks of the default process group.

    Parameters
    ----------
    distributed : bool
        False is one process alone.

    Returns
    -------
    Ranks

    Raises
    ------
    TypeError
        If it is no bool.
    RuntimeError
        If there is no process group.
    """
    if not check_flag("distributed", distributed):
        return ALONE
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError(NO_PROCESS_GROUP)
    _control_group()
    return Ranks(dist.get_rank(), dist.get_world_size(), next(_SERIALS))


def is_first(distributed: bool) -> bool:
    """Return whether this process is the one that shows and writes.

    Parameters
    ----------
    distributed : bool

    Returns
    -------
    bool
    """
    return not (distributed and dist.is_initialized() and dist.get_rank())


def _mark(error: Exception) -> Exception:
    """Note that all ranks raise, and return the error."""
    with suppress(AttributeError):
        setattr(error, TOLD_TO_RANKS, True)
    return error


def _control_group() -> Any:
    """Return a group whose collectives run on the host, for what is agreed on."""
    default = dist.group.WORLD
    if dist.get_backend() == "gloo":
        return default
    if default not in _CONTROL:  # NCCL knows no host
        _CONTROL.clear()
        _CONTROL[default] = dist.new_group(backend="gloo")
    return _CONTROL[default]


_CONTROL: dict[Any, Any] = {}


def _check_group(ranks: Ranks) -> None:
    """Raise RuntimeError if the process group is not the one of the risk."""
    found = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else None
    if found != (ranks.rank, ranks.size):
        raise RuntimeError(
            "A risk lives in the process group that it was made in. Got one of rank "
            f"{ranks.rank} of {ranks.size}, in a process that "
            f"{'has none' if found is None else f'is rank {found[0]} of {found[1]}'}; "
            "make the risk anew there."
        )


@contextmanager
def _answered() -> Iterator[None]:
    """Say what it means that a collective fails."""
    try:
        yield
    except RuntimeError as error:
        raise RuntimeError(
            "All ranks must take part in what one is asked. Another rank has ended, or "
            "has not answered within the time-out of the process group: look at what "
            "it printed last. The time-out is that of init_process_group(timeout=...). "
            f"Got: {message(error)}"
        ) from error


def _checksum(asked: Iterable[Any]) -> int:
    """Return a number for tensors and generators; other things do not count."""
    found = 0
    for value in asked:
        if isinstance(value, torch.Generator):
            value = value.get_state()
        # What is on a GPU would have to be waited for.
        if isinstance(value, Tensor) and value.device.type == "cpu":
            held = value.detach().contiguous().reshape(-1)
            if held.numel():
                found = zlib.crc32(held.view(torch.uint8).numpy().data, found)
    return found
