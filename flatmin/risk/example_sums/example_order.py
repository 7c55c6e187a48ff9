"""Functions that could put the examples into another order, or choose among them.

An example is its place in the first dimension. Behind such a function the slope at a
place is that of another example, and rows would belong to the wrong one.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from flatmin.risk.example_sums.invocation import Invocation, flat

__all__ = ["regroups", "reorders"]

# Functions that can permute the examples: the position of their argument for that.
_REORDERS = {"sort": 1, "argsort": 1, "msort": 1, "flip": 1, "topk": 2, "roll": 2}
# Functions that choose by a tensor: the positions of the dimension and of the tensor.
_SCATTERS = ("scatter", "scatter_add", "scatter_reduce")
_INDEXES = ("index_add", "index_copy", "index_fill", "index_reduce", "index_select")
_CHOOSES = {
    **dict.fromkeys(("gather", *_SCATTERS, *_INDEXES), (1, 2)),
    "take_along_dim": (2, 1),
}
# Functions that choose by values, whatever they are given.
_PICKS = {
    *("argwhere", "masked_scatter", "masked_select", "nonzero", "nonzero_numpy"),
    *("take", "unique", "unique_consecutive"),
}


def reorders(invocation: Invocation, n_examples: int) -> bool:
    """Return whether a function can put the examples into another order.

    Parameters
    ----------
    invocation : Invocation
    n_examples : int

    Returns
    -------
    bool
    """
    name, args, kwargs = invocation.name, invocation.args, invocation.kwargs
    if name not in _REORDERS or invocation.is_constant or not args:
        return False
    tensor = args[0]
    if not isinstance(tensor, Tensor) or tensor.shape[:1] != (n_examples,):
        return False
    default = 0 if name in ("msort", "roll") else -1
    dims = kwargs.get("dim", kwargs.get("dims", args[_REORDERS[name] :] or default))
    return any(
        dim % tensor.ndim == 0
        for dim in flat([dims])
        if isinstance(dim, int) and not isinstance(dim, bool)
    )


def regroups(
    invocation: Invocation, n_examples: int, constants: Mapping[int, Tensor]
) -> bool:
    """Return whether a function chooses examples by their values.

    A trial cannot tell: the few examples of a trial may keep their places.

    Parameters
    ----------
    invocation : Invocation
    n_examples : int
    constants : mapping of int to Tensor
        By id: tensors that do not depend on the examples.

    Returns
    -------
    bool
    """
    name, args = invocation.name.rstrip("_"), invocation.args
    kwargs = invocation.kwargs
    if invocation.is_constant or not args or not isinstance(args[0], Tensor):
        return False
    tensor = args[0]
    if name in _PICKS or (name == "where" and len(args) + len(kwargs) == 1):
        return True
    if tensor.shape[:1] != (n_examples,):
        return False
    if invocation.name == "__setitem__" and not isinstance(args[2], Tensor):
        return False  # one number wherever it goes
    if invocation.name in ("__getitem__", "__setitem__", "index_put", "index_put_"):
        index = args[1] if isinstance(args[1], tuple | list) else (args[1],)
        index_tensor = next((part for part in index if part is not None), None)
    elif name in _CHOOSES:
        at_dim, at_index = _CHOOSES[name]
        dim = kwargs.get("dim", args[at_dim] if len(args) > at_dim else None)
        if dim is not None and dim % tensor.ndim != 0:
            return False
        names = ("index", "indices")
        index_tensor = next((kwargs[key] for key in names if key in kwargs), None)
        index_tensor = args[at_index] if index_tensor is None else index_tensor
    else:
        return False
    return isinstance(index_tensor, Tensor) and id(index_tensor) not in constants
