"""Several arrays with the examples on their first axis, as one X.

A mapping becomes the keywords of the module, a tuple its arguments in order; both may
be nested. A list is one array, as for scikit-learn.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

__all__ = [
    "Inputs",
    "Tree",
    "as_tree",
    "call_with",
    "check_one_length",
    "describe_inputs",
    "is_nested",
    "leaves_of",
    "lists_as_tuples",
    "map_inputs",
    "with_leaves",
]


class Tree:
    """Arrays or tensors, and how they lie in mappings and tuples.

    It has the words of one array that a loop over examples needs: a length, and rows.

    Parameters
    ----------
    leaves : tuple of array or Tensor of shape (N, ...)
        The arrays.
    names : tuple of str
        Where each lies, such as ``['mask']`` or ``[0]['mask']``.
    skeleton : dict or tuple
        The containers, with the index of a leaf in the place of each.
    """

    __slots__ = ("leaves", "names", "skeleton")

    def __init__(
        self,
        leaves: tuple[Any, ...],
        names: tuple[str, ...],
        skeleton: dict[str, Any] | tuple[Any, ...],
    ) -> None:
        self.leaves = leaves
        self.names = names
        self.skeleton = skeleton

    def __len__(self) -> int:
        return len(self.leaves[0])

    def __getitem__(self, rows: Any) -> Tree:
        return self.map(lambda leaf: leaf[rows])

    def map(self, function: Callable[[Any], Any]) -> Tree:
        """Return the same tree of other leaves."""
        return self.with_leaves(function(leaf) for leaf in self.leaves)

    def with_leaves(self, leaves: Any) -> Tree:
        """Return the same containers around other leaves, an iterable of them."""
        return Tree(tuple(leaves), self.names, self.skeleton)

    def named(self, name: str = "X") -> Iterator[tuple[str, Any]]:
        """Yield each leaf after what a message calls it."""
        for place, leaf in zip(self.names, self.leaves, strict=True):
            yield name + place, leaf

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the positional and the keyword arguments for the module."""
        filled = _fill(self.skeleton, self.leaves)
        return ((), filled) if isinstance(filled, dict) else (filled, {})

    def unpacked(self) -> Any:
        """Return the leaves in plain containers: a dict, or a tuple."""
        args, kwargs = self.arguments()
        return kwargs or args

    def in_order_of(self, other: Tree) -> Tree:
        """Return the leaves in another tree's order and containers.

        Parameters
        ----------
        other : Tree

        Returns
        -------
        Tree

        Raises
        ------
        ValueError
            If that has leaves of other names.
        """
        if self.names == other.names:
            return self
        if sorted(self.names) != sorted(other.names):
            raise ValueError(
                "X must have the same parts everywhere. Got "
                f"{', '.join(self.names)} in one place and "
                f"{', '.join(other.names)} in another."
            )
        leaves = dict(zip(self.names, self.leaves, strict=True))
        return other.with_leaves(leaves[name] for name in other.names)

    def without(self, name: str) -> Tree:
        """Return the tree without an entry of its outermost mapping."""
        rest = {k: v for k, v in self.arguments()[1].items() if k != name}
        return as_tree(rest)


Inputs: TypeAlias = Tensor | Tree


def is_nested(data: Any) -> bool:
    """Tell a mapping or a tuple of arrays from what should be one array.

    Returns
    -------
    bool

    Examples
    --------
    >>> is_nested({"mask": [[1, 0]]}), is_nested(([1.0], [2.0])), is_nested([[1.0]])
    (True, True, False)
    """
    sparse = sys.modules.get("scipy.sparse")  # where it is not loaded, nothing is
    if sparse is not None and sparse.issparse(data):  # one kind is a dict
        return False
    return isinstance(data, Mapping | tuple | Tree)


def as_tree(data: Any, name: str = "X") -> Tree:
    """Return what lies in nested mappings and tuples, whatever it is.

    Parameters
    ----------
    data : mapping, tuple or Tree
    name : str, default="X"
        For messages.

    Returns
    -------
    Tree

    Raises
    ------
    TypeError
        If a name of the outermost mapping is no string, or it is a packed sequence.
    ValueError
        If a container is empty.

    Examples
    --------
    >>> tree = as_tree({"ids": [[1, 2]], "more": ([0], [1])})
    >>> tree.names
    ("['ids']", "['more'][0]", "['more'][1]")
    """
    if isinstance(data, Tree):
        return data
    leaves: list[Any] = []
    names: list[str] = []
    skeleton = _skeleton(data, name, "", leaves, names)
    if isinstance(data, Mapping):
        skeleton = dict(skeleton)
        wrong = [key for key in skeleton if not isinstance(key, str)]
        if wrong:
            raise TypeError(
                f"The names in the mapping {name} are keywords of the module and must "
                f"be strings. Got {wrong[0]!r}; pass a tuple for positional arguments."
            )
    else:
        skeleton = tuple(skeleton)
    return Tree(tuple(leaves), tuple(names), skeleton)


def check_one_length(tree: Tree, name: str = "X") -> None:
    """Raise unless all leaves, which have an axis, have as many examples.

    Raises
    ------
    ValueError
        With the names and the numbers.
    """
    first, n = next(tree.named(name))[0], len(tree)
    for other, leaf in tree.named(name):
        if len(leaf) != n:
            raise ValueError(
                f"Each array in {name} must hold all examples on its first axis. Got "
                f"{n} in {first} and {len(leaf)} in {other}; what belongs to all "
                "examples alike is a buffer of the module."
            )


def _skeleton(
    data: Any, name: str, place: str, leaves: list[Any], names: list[str]
) -> Any:
    """Return a container with the index of a leaf in the place of each."""
    if isinstance(data, PackedSequence):
        raise TypeError(
            f"{name}{place} must hold every example on its first axis. Got a "
            "PackedSequence; pad it, torch.nn.utils.rnn.pad_packed_sequence(..., "
            "batch_first=True), and pass the lengths, or a mask, beside it."
        )
    if not is_nested(data):
        leaves.append(data)
        names.append(place)
        return len(leaves) - 1
    content: Any
    if isinstance(data, Mapping):
        content = {
            key: _skeleton(data[key], name, f"{place}[{key!r}]", leaves, names)
            for key in data.keys()  # noqa: SIM118 - a SliceDict's length is another
        }
    else:
        content = [
            _skeleton(part, name, f"{place}[{i}]", leaves, names)
            for i, part in enumerate(data)
        ]
    if not content:
        raise ValueError(
            f"{name}{place} must hold at least one array. Got an empty "
            f"{type(data).__name__}."
        )
    return _like(data, content)


def _like(container: Any, content: Any) -> Any:
    """Return a container of the same kind, as far as it can be made of its content."""
    kind = type(container)
    if isinstance(container, Mapping):
        try:
            made = kind(content)
            return made if list(made.items()) == list(content.items()) else content
        except Exception:  # a SliceDict, or a defaultdict, is made of something else
            return content
    if hasattr(kind, "_fields"):
        return kind(*content)
    return tuple(content)


def _fill(skeleton: Any, leaves: tuple[Any, ...]) -> Any:
    if isinstance(skeleton, int):
        return leaves[skeleton]
    if isinstance(skeleton, Mapping):
        filled = {key: _fill(part, leaves) for key, part in skeleton.items()}
        return filled if type(skeleton) is dict else type(skeleton)(filled)  # type: ignore[call-arg]
    return _like(skeleton, [_fill(part, leaves) for part in skeleton])


def lists_as_tuples(X: Any) -> Any:
    """Return what a loader has collated, whose lists of tensors were tuples."""
    if isinstance(X, list):
        return tuple(lists_as_tuples(part) for part in X)
    if type(X) is dict:
        return {name: lists_as_tuples(part) for name, part in X.items()}
    return X


def leaves_of(X: Any) -> tuple[Any, ...]:
    """Return the leaves of a tree, or an array as the only one."""
    return X.leaves if isinstance(X, Tree) else (X,)


def with_leaves(X: Any, leaves: Any) -> Any:
    """Return other leaves in the containers of a tree; for an array the only leaf."""
    if isinstance(X, Tree):
        return X.with_leaves(leaves)
    (leaf,) = leaves
    return leaf


def map_inputs(function: Callable[[Any], Any], X: Any) -> Any:
    """Apply a function to an array, or to each leaf of a tree."""
    return X.map(function) if isinstance(X, Tree) else function(X)


def call_with(function: Callable[..., Any], X: Any) -> Any:
    """Call a module: a mapping gives keywords, a tuple arguments, an array is one."""
    if isinstance(X, Tree):
        args, kwargs = X.arguments()
        return function(*args, **kwargs)
    return function(X)


def describe_inputs(X: Any) -> str:
    """Say which shapes and dtypes X has, for a message.

    Returns
    -------
    str

    Examples
    --------
    >>> import torch
    >>> describe_inputs(torch.zeros(3, 2))
    'X of shape (3, 2) and dtype torch.float32'
    """
    named = X.named() if isinstance(X, Tree) else [("X", X)]
    return ", ".join(
        f"{name} of shape {tuple(leaf.shape)} and dtype {leaf.dtype}"
        for name, leaf in named
    )
