"""A data set that is read a chunk at a time, and the same at every pass."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import data

from flatmin._utils.locks import Lock
from flatmin._utils.trees import Inputs, Tree, as_tree
from flatmin.risk.data.checksums import Checksums
from flatmin.risk.data.pairs import as_pair, collated, take_targets_out

__all__ = ["Source", "find_source", "is_data_set", "split_targets"]

# So many examples are read twice before anything is computed, a few at a time. Images
# that are flipped with probability 0.1 at each read agree in all 64 pairs once in
# 300,000 times.
_N_TRIED, _AT_A_TIME = 64, 4

# How a loader iterates that gives what its data set and its collate_fn give.
_READS_ITS_DATA_SET = (data.DataLoader.__iter__, data.DataLoader._get_iterator)

# The locks by the id of the data set. Several risks may read one data set, and what it
# reads from, such as an open file, is at one position at a time.
_READING: weakref.WeakValueDictionary[int, Lock] = weakref.WeakValueDictionary()
_FINDING = Lock()


class Source:
    """A map-style data set of examples, and how these are put together.

    An example is a pair (x, y), or a mapping that holds y under a name.

    Some examples are read twice at first, and whatever is read later is compared with
    a checksum of what came first, in every pass and minibatch.

    Parameters
    ----------
    dataset : torch.utils.data.Dataset
    collate : callable
        Makes a batch (X, y), or a mapping, of a list of examples.
    n_workers : int
        Processes that read ahead.
    target : str, default=None
        The name of y, where a batch is a mapping.

    Raises
    ------
    ValueError
        If it is empty or gives other examples when it is read again; here, or when
        that is read.
    """

    def __init__(
        self,
        dataset: Any,
        collate: Callable[..., Any],
        n_workers: int,
        target: str | None = None,
    ):
        self.dataset = dataset
        self.target = target
        self.collate = collate
        self.n_workers = n_workers
        self.targets: Tensor | None = None  # (N, ...) in place of the data set's
        self.joins = False
        self._like: Tree | None = None  # what came first, with the order of its names
        self._dtypes: dict[str, torch.dtype] = {}  # of what came first
        self._other_dtypes = ""  # what is said where a later batch has others
        n = len(dataset)
        if n == 0:
            raise ValueError("The data set must hold at least one example. Got none.")
        self._checksums = Checksums(n)
        few = np.linspace(0, n - 1, min(_N_TRIED, n)).round().astype(int).tolist()
        parts = [few[i : i + _AT_A_TIME] for i in range(0, len(few), _AT_A_TIME)]
        for part in parts:
            self.read(part)
        # Backwards: what depends on how often, or after what, it is read is seen.
        for part in reversed(parts):
            self.read(part[::-1])

    def __len__(self) -> int:
        return len(self._checksums)

    @property
    def is_subset(self) -> bool:
        """Whether it is a rank's own part, where several share the examples."""
        return isinstance(self.dataset, data.Subset)

    @property
    def checksums(self) -> np.ndarray | None:
        """One number an example, shape (N,), of what was read first.

        None where some examples were never read. The targets that
        :meth:`with_targets` has put in are not in it.
        """
        return self._checksums.all()

    def with_targets(self, targets: Tensor) -> Source:
        """Return the same inputs with targets that are held in memory.

        Parameters
        ----------
        targets : Tensor of shape (N, ...)

        Returns
        -------
        Source
        """
        source = copy.copy(self)
        source.targets = targets
        return source

    def part(self, indices: list[int]) -> Source:
        """Return some of the examples.

        Parameters
        ----------
        indices : list of int

        Returns
        -------
        Source
        """
        source = copy.copy(self)
        source.dataset = data.Subset(self.dataset, indices)
        source.targets = None if self.targets is None else self.targets[indices]
        source._checksums = Checksums(len(indices))
        return source

    def joined(self) -> Source:
        """Return the same examples as pairs ((x, y), y): the module is given both."""
        source = copy.copy(self)
        source.joins = True
        return source

    def _out(self, X: Inputs, y: Tensor, rows: Any) -> tuple[Inputs, Tensor]:
        y = y if self.targets is None else self.targets[rows]
        if self.joins:
            X = as_tree((X.unpacked() if isinstance(X, Tree) else X, y))
        return X, y

    def read(self, indices: list[int]) -> tuple[Inputs, Tensor]:
        """Return X and y of some examples.

        Parameters
        ----------
        indices : list of int

        Returns
        -------
        X : Tensor of shape (n, ...) or Tree
        y : Tensor of shape (n, ...)
        """
        with _one_reader(self.dataset):
            batch = collated(self.collate, [self.dataset[i] for i in indices])
        X, y = self._pair(batch)
        self._compare(np.asarray(indices), X, y, "when some are read by their index")
        return self._out(X, y, indices)

    def batches(self, size: int) -> Iterator[tuple[Inputs, Tensor]]:
        """Yield X and y of all examples in order.

        Parameters
        ----------
        size : int
            Examples at a time.

        Yields
        ------
        X : Tensor of shape (n, ...) or Tree
        y : Tensor of shape (n, ...)

        Raises
        ------
        ValueError
            If they are others than before.
        """
        n, name = len(self), type(self.dataset).__name__
        if len(self.dataset) != n:
            raise ValueError(
                f"A risk is a mean over the same examples at every pass. Got {name}, "
                f"which had {n} of them and now has {len(self.dataset)}; make a new "
                "risk, or fit again."
            )
        loader: data.DataLoader[Any] = data.DataLoader(
            self.dataset,
            batch_size=size,
            collate_fn=partial(collated, self.collate),
            num_workers=self.n_workers,
            generator=torch.Generator(),  # it draws a seed: not from the global one
        )
        self._checksums.n_passes += 1
        when = f"in pass {self._checksums.n_passes}"
        start, batches = 0, iter(loader)
        # Worker processes read copies of the data set, which need no lock.
        elsewhere: AbstractContextManager[Any] = nullcontext()
        while True:
            with elsewhere if self.n_workers else _one_reader(self.dataset):
                batch = next(batches, None)
            if batch is None:
                return
            X, y = self._pair(batch)
            rows = np.arange(start, min(start + size, n))
            self._compare(rows, X, y, when)
            start += len(rows)
            yield self._out(X, y, slice(int(rows[0]), start))

    def all_targets(self, size: int) -> Iterator[Tensor]:
        """Yield the targets of all examples in order.

        Parameters
        ----------
        size : int
            Examples at a time.

        Yields
        ------
        Tensor of shape (n, ...)
        """
        if self.targets is not None:
            yield from self.targets.split(size)
            return
        for _, y in self.batches(size):
            yield y

    def _pair(self, batch: Any) -> tuple[Inputs, Tensor]:
        """Return X, its leaves in the order of what came first, and y."""
        X, y = as_pair(batch, self.target)
        if isinstance(X, Tree):
            if self._like is None:
                self._like = X.map(lambda leaf: leaf[:0])
            X = X.in_order_of(self._like)
        self._note_dtypes(X, y)
        return X, y

    def _note_dtypes(self, X: Inputs, y: Tensor) -> None:
        """Note if a batch has another dtype than the first: collate goes by items."""
        named = X.named() if isinstance(X, Tree) else [("X", X)]
        for name, leaf in [*named, ("y", y)]:
            first = self._dtypes.setdefault(name, leaf.dtype)
            if leaf.dtype != first:
                self._other_dtypes = (
                    "Examples must have one dtype, whichever are read together. Got "
                    f"{name} of {first} in one batch and of {leaf.dtype} in another, "
                    f"from {type(self.dataset).__name__}; return one type from "
                    "__getitem__, as float(y) where some y are Python ints and some "
                    "floats, or convert in a collate_fn."
                )

    def _compare(self, indices: np.ndarray, X: Inputs, y: Tensor, when: str) -> None:
        """Raise if these are not the examples that were asked for, or not as before."""
        name = type(self.dataset).__name__
        if not len(X) == len(y) == len(indices):
            raise ValueError(
                "A data set and its collate_fn must give one x and one y for each "
                f"example. Got {len(X)} and {len(y)} for {len(indices)} of {name} "
                f"{when}."
            )
        changed = np.unique(self._checksums.changed(indices, X, y))
        if len(changed) and self._other_dtypes:
            raise ValueError(self._other_dtypes)
        if len(changed):
            raise ValueError(
                f"A risk sees the same examples at every pass. Got {name}, which gives "
                f"others when it is read again: {len(changed)} of {len(indices)} "
                f"differ {when}, the first is number {changed[0]}. Switch off its "
                "random augmentation, draw it from a generator that is seeded with the "
                "index, or store one draw of it."
            )


def is_data_set(X: Any) -> bool:
    """Tell data that hold their targets, and are read, from arrays.

    Parameters
    ----------
    X : object

    Returns
    -------
    bool
    """
    return isinstance(X, data.Dataset | data.DataLoader | Source)


def split_targets(X: Any, y: Any, target: str | None) -> tuple[Any, Any]:
    """Take the targets out of a mapping of arrays that holds them under a name.

    Parameters
    ----------
    X : object
        As it comes.
    y : object
    target : str or None
        The name.

    Returns
    -------
    X : object
        The mapping without the targets; anything else as it is.
    y : object

    Raises
    ------
    TypeError
        If ``target`` is no string.
    ValueError
        If the mapping has no such name, or targets come twice.
    """
    if target is None:
        return X, y
    if not isinstance(target, str):
        raise TypeError(
            "target must be the name of the targets in a mapping, or None. Got "
            f"{target!r}."
        )
    if is_data_set(X):
        return X, y
    if not isinstance(X, Mapping):
        if y is None:
            raise ValueError(
                f"target={target!r} is a name in a mapping X, or in a data set's. Got "
                f"X of {type(X).__name__} and y=None; pass y, or a mapping."
            )
        return X, y
    if y is not None:
        if target in X.keys():  # noqa: SIM118 - a SliceDict is not asked by "in"
            raise ValueError(
                f"The targets must come once. Got y and, with target={target!r}, "
                "those in X; leave out one."
            )
        return X, y
    return take_targets_out(X, target)


def find_source(X: Any, y: Any, target: str | None = None) -> Source | None:
    """Return the data set behind X, or None if X is an array or a tree of them.

    Parameters
    ----------
    X : array-like, mapping, tuple, torch.utils.data.Dataset, DataLoader or Source
    y : array-like or None
        None for a data set, which holds its targets.
    target : str, default=None
        The name of the targets, where the data set gives mappings.

    Returns
    -------
    Source or None

    Raises
    ------
    TypeError
        If it can only be iterated over.
    ValueError
        If a loader shuffles, leaves examples out or changes them, or targets come twice
        or not at all.
    """
    if isinstance(X, data.IterableDataset):
        raise TypeError(
            f"A risk needs a data set with a length and an order. Got the iterable "
            f"{type(X).__name__}; use one with __len__ and __getitem__."
        )
    if not is_data_set(X):
        if y is None:
            raise ValueError(
                "y must be given with arrays; only a data set holds its own. Got None."
            )
        return None
    if y is not None:
        raise ValueError(
            f"y must be None with a {type(X).__name__}, whose examples are pairs "
            f"(x, y). Got {type(y).__name__}."
        )
    if isinstance(X, Source):
        return X
    if not isinstance(X, data.DataLoader):
        return Source(X, data.default_collate, 0, target)
    if isinstance(X.dataset, data.IterableDataset):
        return find_source(X.dataset, None, target)
    kind = type(X)
    if (kind.__iter__, kind._get_iterator) != _READS_ITS_DATA_SET:
        raise ValueError(
            "A risk reads the data set of a DataLoader by its collate_fn. Got a "
            f"{kind.__name__}, which yields batches in a way of its own; if its "
            "examples are those of its data set, pass "
            "DataLoader(loader.dataset, collate_fn=loader.collate_fn)."
        )
    # With a batch_sampler of one's own the other two say nothing.
    sampler: Any = X.sampler if X.batch_sampler is None else X.batch_sampler
    drop_last = X.drop_last
    if type(sampler) is data.BatchSampler:
        sampler, drop_last = sampler.sampler, sampler.drop_last
    # A subclass of the sampler may leave some out.
    if type(sampler) is not data.SequentialSampler:
        raise ValueError(
            "A risk reads its examples in one order, again and again. Got a DataLoader "
            f"with a {type(sampler).__name__}; make it with shuffle=False, or pass "
            "its data set, of some examples as torch.utils.data.Subset."
        )
    dataset: Any = X.dataset
    if len(sampler) != len(dataset):
        raise ValueError(
            "A risk reads a loader's whole data set. Got a DataLoader whose sampler "
            f"has {len(sampler)} examples of {len(dataset)}; pass "
            "torch.utils.data.Subset(dataset, indices) for some of them."
        )
    if drop_last:
        raise ValueError(
            "A risk is a mean over all examples. Got a DataLoader with drop_last=True; "
            "make it with drop_last=False, or pass its data set."
        )
    return Source(dataset, X.collate_fn, X.num_workers, target)


def _one_reader(dataset: Any) -> Lock:
    """Return the lock of who reads a data set, also through subsets of it."""
    while isinstance(dataset, data.Subset):
        dataset = dataset.dataset
    with _FINDING:
        return _READING.setdefault(id(dataset), Lock())
