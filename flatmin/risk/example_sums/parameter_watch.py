"""What a network does with its parameters, seen function by function."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from flatmin.risk.example_sums.attention import attend
from flatmin.risk.example_sums.layer_rows import (
    READERS,
    Rows,
    alias,
    read_linear,
    spread_rows,
)
from flatmin.risk.example_sums.recurrent import CELLS, UNROLLED, unroll, unroll_cell
from flatmin.risk.network.model import FlatModel
from flatmin.risk.trials import UnsupportedLayers

__all__ = ["Call", "ParameterWatch"]

# Functions that broadcast a parameter to the examples.
_ARITHMETIC = ("add", "sub", "mul", "div")
_LONGER = ("subtract", "multiply", "divide", "true_divide", "rsub", "__rsub__")
_POINTWISE = {*_ARITHMETIC, *_LONGER, *(f"{name}_" for name in _ARITHMETIC)}
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


@dataclass(frozen=True)
class _Invocation:
    """A function as the network calls it."""

    name: str
    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    held: set[int]  # the id of each parameter among its tensors
    alone: bool  # no tensor of it depends on the examples


@dataclass(frozen=True)
class Call:
    """One call of a function that takes parameters."""

    input: Tensor  # (n, ...)
    parameters: list[tuple[Tensor, Rows]]  # or what is made of parameters alone
    edge: GradientEdge  # of the output: an activation may overwrite the tensor
    shape: torch.Size  # of the output


class ParameterWatch(TorchFunctionMode):
    """Notes where parameters meet examples, while the network runs inside of it.

    What is computed from parameters alone (a normalised weight, a slice, the embedding
    of the positions) counts as a parameter. Where one is broadcast to the examples,
    every example gets a copy of its own.

    Parameters
    ----------
    model : FlatModel
    n_examples : int

    Attributes
    ----------
    calls : list of Call
    trail : list of str
        The functions that took parameters and the shapes of an example's output, to be
        compared with those of other examples: whether the first dimension is that of
        the examples is read off its size.
    """

    def __init__(self, model: FlatModel, n_examples: int) -> None:
        super().__init__()
        self.n_examples = n_examples
        self.calls: list[Call] = []
        self.trail: list[str] = []
        # By id; kept, so that no other tensor gets it.
        self._parameters: dict[int, Tensor] = {id(p): p for p in model.params}
        constants = (*model.module.buffers(), *model.module.parameters())
        self._constants: dict[int, Tensor] = {id(c): c for c in constants}

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", str(func))
        tensors = {id(tensor) for tensor in _tensors((*args, *kwargs.values()))}
        held = tensors & self._parameters.keys()
        alone = all(t in held or t in self._constants for t in tensors)
        invocation = _Invocation(name, func, args, kwargs, held, alone)
        if held:
            for meet in (self._spread, self._read, self._take_apart):
                output = meet(invocation)
                if output is not None:
                    return output
        if self._reorders(invocation):
            raise UnsupportedLayers(f"{name} changes the order of the examples")
        if self._regroups(invocation):
            raise UnsupportedLayers(f"{name} picks examples by their values")
        result = func(*args, **kwargs)
        self._sort(invocation, result)
        return result

    def _sort(self, invocation: _Invocation, result: Any) -> None:
        """Count a result among parameters or constants, or raise if it is neither."""
        name, held, alone = invocation.name, invocation.held, invocation.alone
        results = {id(tensor): tensor for tensor in _tensors([result])}
        learned = bool(held) and any(r.requires_grad for r in results.values())
        in_place = name == "__setitem__" or (name[-1] == "_" and name[-2:] != "__")
        written = invocation.kwargs.get("out", invocation.args[0] if in_place else None)
        writes = written is not None
        if (held and writes) or (learned and not alone):
            raise UnsupportedLayers(f"a parameter in {name}")
        if writes and not alone:
            for tensor in _tensors([written]):
                self._forget(tensor)
        elif alone:
            (self._parameters if learned else self._constants).update(results)

    def _forget(self, tensor: Tensor) -> None:
        """No longer count a tensor, and all that share its memory, as constants."""
        changed = tensor.untyped_storage().data_ptr()
        for key, constant in list(self._constants.items()):
            if constant.untyped_storage().data_ptr() == changed:
                del self._constants[key]

    def _spread(self, invocation: _Invocation) -> Any:
        """Return the output where a parameter is broadcast to examples, else None."""
        name, args = invocation.name, invocation.args
        if invocation.kwargs.keys() - {"alpha", "rounding_mode"}:
            return None
        tensors = list(_tensors(args))
        held = [tensor for tensor in tensors if id(tensor) in self._parameters]
        if len(held) != 1:
            return None
        if name in ("expand", "repeat", "expand_as") and held[0] is args[0]:
            shape = args[1].shape if isinstance(args[1], Tensor) else [*_flat(args[1:])]
            if shape[0] != self.n_examples:
                return None
            copies = self._copies(name, held[0], shape)
            if name == "repeat":
                return copies.repeat(1, *shape[1:])
            return copies.expand(*shape)
        if name in _POINTWISE and len(tensors) == 2 and not invocation.alone:
            (other,) = (tensor for tensor in tensors if tensor is not held[0])
            copies = self._copies(name, held[0], other.shape)
            spread = [copies if value is held[0] else value for value in args]
            return invocation.func(*spread, **invocation.kwargs)
        return None

    def _copies(self, name: str, parameter: Tensor, shape: Sequence[int]) -> Tensor:
        """Return a parameter as each example has it, to be broadcast to a shape."""
        n = self.n_examples
        sizes = [1] * (len(shape) - parameter.ndim) + list(parameter.shape)
        if len(sizes) > len(shape) or sizes[0] != 1 or shape[0] != n:
            raise UnsupportedLayers(f"a parameter in {name}")
        # Nothing is copied in memory, only the gradient has all of them.
        copies = parameter.detach().reshape(sizes).expand(n, *sizes[1:])
        copies.requires_grad_()
        self._note(name, copies, [(parameter, Rows(spread_rows))], copies)
        return copies

    def _read(self, invocation: _Invocation) -> Any:
        """Return the output of a function whose rows are known, else None."""
        name, func, alone = invocation.name, invocation.func, invocation.alone
        if func not in READERS:
            return None
        given, parameters = READERS[func](*invocation.args, **invocation.kwargs)
        if id(given) in self._parameters:
            return None
        # Constants may have the examples first, too: states of zero, copied positions.
        if alone and (given.ndim < 2 or len(given) != self.n_examples):
            return None
        output = func(
            *self._aliases(invocation.args), **self._aliases(invocation.kwargs)
        )
        # Else what is one thing in the trial could be another in a chunk of its size.
        self._note(
            f"{name} of a constant" if alone else name, given, parameters, output
        )
        return output

    def _aliases(self, values: Any) -> Any:
        """Return arguments with leaves in place of parameters."""
        # The parameters then get a gradient only from uses out of sight.
        if isinstance(values, dict):
            return {key: self._aliases(value) for key, value in values.items()}
        if type(values) in (list, tuple):
            return type(values)(self._aliases(value) for value in values)
        if id(values) in self._parameters and values.requires_grad:
            return alias(values)
        return values

    def _take_apart(self, invocation: _Invocation) -> Any:
        """Return the output of a function that is made of linear maps, else None."""
        if invocation.alone:
            return None
        name, func, args = invocation.name, invocation.func, invocation.args
        noted: set[int] = set()

        def note(
            weight: Tensor, bias: Tensor | None, given: Tensor, output: Tensor
        ) -> None:
            noted.update((id(weight), id(bias)))
            self._note(name, *read_linear(given, weight, bias), output)

        output: Any
        if func in UNROLLED:
            output = unroll(func, args, note)
        elif func in CELLS:
            output = unroll_cell(func, args, note)
        elif func is F.multi_head_attention_forward:
            output = attend(args, invocation.kwargs, note)
        else:
            return None
        if not invocation.held <= noted:
            raise UnsupportedLayers(f"a parameter in {name} that is no weight")
        return output

    def _note(
        self,
        name: str,
        given: Tensor,
        parameters: Sequence[tuple[Tensor | None, Rows]],
        output: Tensor,
    ) -> None:
        if not given.shape[:1] == output.shape[:1] == (self.n_examples,):
            raise UnsupportedLayers(f"{name} does not have the examples first")
        self.trail.append(f"{name} {list(output.shape[1:])}")
        if not output.requires_grad:  # the module switches gradients off
            return
        known = [
            (parameter, rows)
            for parameter, rows in parameters
            if parameter is not None and id(parameter) in self._parameters
        ]
        # Who writes to a view replaces its node, not that of what it is a view of.
        source, base = output, output._base
        if base is not None and base.requires_grad and base.numel() == output.numel():
            if not (base.is_contiguous() and output.is_contiguous()):
                raise UnsupportedLayers(f"{name} puts out a view in another layout")
            source = base
        edge = get_gradient_edge(source)
        self.calls.append(Call(given.detach(), known, edge, output.shape))

    def _reorders(self, invocation: _Invocation) -> bool:
        """Whether a function can put the examples into another order."""
        name, args, kwargs = invocation.name, invocation.args, invocation.kwargs
        if name not in _REORDERS or invocation.alone or not args:
            return False
        given = args[0]
        if not isinstance(given, Tensor) or given.shape[:1] != (self.n_examples,):
            return False
        default = 0 if name in ("msort", "roll") else -1
        dims = kwargs.get("dim", kwargs.get("dims", args[_REORDERS[name] :] or default))
        return any(
            dim % given.ndim == 0
            for dim in _flat([dims])
            if isinstance(dim, int) and not isinstance(dim, bool)
        )

    def _regroups(self, invocation: _Invocation) -> bool:
        """Whether a function chooses examples by what they are: no trial can tell."""
        name, args = invocation.name.rstrip("_"), invocation.args
        kwargs = invocation.kwargs
        if invocation.alone or not args or not isinstance(args[0], Tensor):
            return False
        given = args[0]
        if name in _PICKS or (name == "where" and len(args) + len(kwargs) == 1):
            return True
        if given.shape[:1] != (self.n_examples,):
            return False
        if invocation.name == "__setitem__" and not isinstance(args[2], Tensor):
            return False  # one number wherever it goes
        if invocation.name in ("__getitem__", "__setitem__", "index_put", "index_put_"):
            index = args[1] if isinstance(args[1], tuple | list) else (args[1],)
            first = next((part for part in index if part is not None), None)
        elif name in _CHOOSES:
            at_dim, at_index = _CHOOSES[name]
            dim = kwargs.get("dim", args[at_dim] if len(args) > at_dim else None)
            if dim is not None and dim % given.ndim != 0:
                return False
            names = ("index", "indices")
            first = next((kwargs[key] for key in names if key in kwargs), None)
            first = args[at_index] if first is None else first
        else:
            return False
        return isinstance(first, Tensor) and id(first) not in self._constants


def _flat(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, list | tuple):
            yield from _flat(value)
        else:
            yield value


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    return (value for value in _flat(values) if isinstance(value, Tensor))
