"""What a network does with its parameters, seen function by function."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from flatmin.risk.attention import attend
from flatmin.risk.layer_rows import READERS, Reading, Rows, read_linear, spread_rows
from flatmin.risk.model import FlatModel
from flatmin.risk.recurrent import CELLS, UNROLLED, unroll, unroll_cell
from flatmin.risk.unsupported import UnsupportedLayers

__all__ = ["ParameterWatch"]

_POINTWISE = frozenset({"add", "sub", "mul", "div", "add_", "sub_", "mul_", "div_"})


class ParameterWatch(TorchFunctionMode):
    """Notes where parameters meet examples, while the network runs inside of it.

    What is computed from parameters alone (a normalised weight, a slice, the embedding
    of the positions) counts as a parameter. Where one is added to examples or
    multiplied with them, every example gets a copy of its own.

    Parameters
    ----------
    model : FlatModel
    n_examples : int

    Attributes
    ----------
    calls : list of (Reading, GradientEdge)
    trail : list of str
        What was done, to be compared with what was done for other examples: whether
        the first dimension is that of the examples is read off its size.
    """

    def __init__(self, model: FlatModel, n_examples: int) -> None:
        super().__init__()
        self.n_examples = n_examples
        self.calls: list[tuple[Reading, GradientEdge]] = []
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
        if not held or alone:
            if name == "expand" and self._is_spread(*args):
                return func(*self._spread(name, args, _sizes(args)), **kwargs)
            return self._keep(name, args, func(*args, **kwargs), held, alone)

        if func in UNROLLED:
            return unroll(func, args, partial(self._note_linear, name))
        if func in CELLS:
            return unroll_cell(func, args, partial(self._note_linear, name))
        if func is F.multi_head_attention_forward:
            return attend(args, kwargs, partial(self._note_linear, name))
        if func in READERS:
            reading = READERS[func](*args, **kwargs)
            if held <= {id(parameter) for parameter, _ in reading[1]}:
                output = func(*args, **kwargs)
                self._note(name, reading, output)
                return output
        if name in _POINTWISE and len(tensors) == 2 and len(held) == 1:
            (other,) = (a for a in _tensors(args) if id(a) not in held)
            return func(*self._spread(name, args, other.shape), **kwargs)
        result = func(*args, **kwargs)
        if any(tensor.requires_grad for tensor in _tensors([result])):
            raise UnsupportedLayers(f"a parameter in {name}")
        return result

    def _keep(
        self,
        name: str,
        args: tuple[Any, ...],
        result: Any,
        held: set[int],
        alone: bool,
    ) -> Any:
        """Return a result, remembered if it depends on no example."""
        results = {id(tensor): tensor for tensor in _tensors([result])}
        writes = name == "__setitem__" or (name[-1] == "_" and name[-2:] != "__")
        if writes and held:
            raise UnsupportedLayers(f"a parameter is written to by {name}")
        if writes and not alone:
            self._constants.pop(id(args[0]), None)
        elif alone:
            learned = held and any(r.requires_grad for r in results.values())
            (self._parameters if learned else self._constants).update(results)
        return result

    def _is_spread(self, tensor: Tensor, size: Any = None, *_: Any) -> bool:
        """Whether ``expand`` gives every example the same parameter."""
        first = size[0] if isinstance(size, list | tuple) and size else size
        return id(tensor) in self._parameters and first == self.n_examples

    def _spread(
        self, name: str, args: tuple[Any, ...], shape: Sequence[int]
    ) -> list[Any]:
        """Return arguments where every example has a copy of the parameter."""
        # The function broadcasts to the shape: it gives the same with copies.
        return [
            self._copies(name, value, shape) if id(value) in self._parameters else value
            for value in args
        ]

    def _copies(self, name: str, parameter: Tensor, shape: Sequence[int]) -> Tensor:
        n = self.n_examples
        sizes = [1] * (len(shape) - parameter.ndim) + list(parameter.shape)
        if len(sizes) > len(shape) or sizes[0] != 1 or shape[0] != n:
            raise UnsupportedLayers(f"a parameter in {name}")
        # Nothing is copied in memory, only the gradient has all of them.
        copies = parameter.detach().reshape(sizes).expand(n, *sizes[1:])
        self._note(
            name, (copies, [(parameter, Rows(spread_rows))]), copies.requires_grad_()
        )
        return copies

    def _note_linear(
        self,
        name: str,
        weight: Tensor,
        bias: Tensor | None,
        given: Tensor,
        output: Tensor,
    ) -> None:
        self._note(name, read_linear(given, weight, bias), output)

    def _note(self, name: str, reading: Reading, output: Tensor) -> None:
        given, parameters = reading
        if not given.shape[:1] == output.shape[:1] == (self.n_examples,):
            raise UnsupportedLayers(f"{name} does not have the examples first")
        self.trail.append(name)
        if output.requires_grad:  # not where the module switches gradients off
            # The edge, not the tensor: an activation may overwrite it.
            noted = given.detach(), parameters
            self.calls.append((noted, get_gradient_edge(output)))


def _sizes(args: tuple[Any, ...]) -> Sequence[int]:
    """Return the sizes that a tensor is expanded to."""
    sizes: Sequence[int] = args[1:] if isinstance(args[1], int) else args[1]
    return sizes


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, list | tuple):
            yield from _tensors(value)
        elif isinstance(value, Tensor):
            yield value
