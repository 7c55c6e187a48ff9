"""What a network does with its parameters, seen function by function."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from flatmin.risk.example_sums.attention import attend
from flatmin.risk.example_sums.example_order import regroups, reorders
from flatmin.risk.example_sums.invocation import Invocation, flat, tensors_in
from flatmin.risk.example_sums.recurrent import CELLS, UNROLLED, unroll, unroll_cell
from flatmin.risk.example_sums.row_rule import RowRule
from flatmin.risk.example_sums.row_rules import (
    ROW_RULES,
    addmm_rules,
    alias,
    copied_rows,
    linear_rules,
)
from flatmin.risk.failures import UnsupportedLayers
from flatmin.risk.network.model import FlatModel

__all__ = ["Call", "ParameterWatch"]

# Functions that broadcast a parameter to the examples.
_ARITHMETIC = ("add", "sub", "mul", "div")
_LONGER = ("subtract", "multiply", "divide", "true_divide", "rsub", "__rsub__")
_POINTWISE = {*_ARITHMETIC, *_LONGER, *(f"{name}_" for name in _ARITHMETIC)}
# Functions that write into their first argument, besides those whose name ends in "_":
# ``x[i] = y``, ``x.data = y``, and ``x |= y``, which some dtypes call by this name.
_OPERATORS = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul")
_BITWISE = ("and", "or", "xor", "lshift", "rshift")
_WRITES = {"__setitem__", "__set__", *(f"__i{op}__" for op in (*_OPERATORS, *_BITWISE))}


@dataclass(frozen=True)
class Call:
    """One call of a function that takes parameters."""

    input: Tensor  # (n, ...)
    rules: list[tuple[Tensor, RowRule]]  # of parameters, or what is made of them
    edge: GradientEdge  # of the output: an activation may overwrite the tensor
    shape: torch.Size  # of the output


class ParameterWatch(TorchFunctionMode):
    """Records where parameters meet examples, while the network runs inside of it.

    What is computed from parameters alone (a normalised weight, a slice, the embedding
    of the positions) counts as a parameter itself; its gradient is pulled back later.
    Where a parameter is broadcast to the examples, every example gets its own copy.

    Parameters
    ----------
    model : FlatModel
    n_examples : int

    Attributes
    ----------
    calls : list of Call
    signature : list of str
        The functions that took parameters, each with the shape of an example's output.
        Other examples must give the same: a network may branch on them, and whether
        the first dimension is that of the examples is known by its size only.
    """

    def __init__(self, model: FlatModel, n_examples: int) -> None:
        super().__init__()
        self.n_examples = n_examples
        self.calls: list[Call] = []
        self.signature: list[str] = []
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
        tensors = {id(tensor) for tensor in tensors_in((*args, *kwargs.values()))}
        used = tensors & self._parameters.keys()
        is_constant = all(t in used or t in self._constants for t in tensors)
        invocation = Invocation(name, func, args, kwargs, used, is_constant)
        if used:
            for handle in (self._broadcast, self._by_rule, self._decompose):
                output = handle(invocation)
                if output is not None:
                    return output
        if reorders(invocation, self.n_examples):
            raise UnsupportedLayers(f"{name} changes the order of the examples")
        if regroups(invocation, self.n_examples, self._constants):
            raise UnsupportedLayers(f"{name} picks examples by their values")
        result = func(*args, **kwargs)
        self._classify(invocation, result)
        return result

    def _classify(self, invocation: Invocation, result: Any) -> None:
        """Count a result among parameters or constants, or neither, or raise."""
        # Neither: it depends on examples. If it depends on parameters too, no rule has
        # taken the function, and the rows are not known.
        name, args = invocation.name, invocation.args
        results = {id(tensor): tensor for tensor in tensors_in([result])}
        is_parameter = invocation.used and any(
            t.requires_grad for t in results.values()
        )
        in_place = name in _WRITES or (name[-1] == "_" and name[-2:] != "__")
        target = invocation.kwargs.get("out", args[0] if in_place else None)
        if invocation.used and target is not None:
            raise UnsupportedLayers(f"a parameter in {name}")
        if is_parameter and not invocation.is_constant:
            raise UnsupportedLayers(f"a parameter in {name}")
        if invocation.is_constant:
            (self._parameters if is_parameter else self._constants).update(results)
        elif target is not None:
            for tensor in tensors_in([target]):
                self._forget(tensor)

    def _forget(self, tensor: Tensor) -> None:
        """No longer count a tensor as a constant: examples were written into it."""
        # Nor any tensor that shares its memory: a view of a buffer is another tensor,
        # and the examples are now in both.
        changed = tensor.untyped_storage().data_ptr()
        for key, constant in list(self._constants.items()):
            if constant.untyped_storage().data_ptr() == changed:
                del self._constants[key]

    def _broadcast(self, invocation: Invocation) -> Any:
        """Return the output where a parameter is broadcast to examples, else None."""
        name, args = invocation.name, invocation.args
        if invocation.kwargs.keys() - {"alpha", "rounding_mode"}:
            return None
        tensors = list(tensors_in(args))
        used = [tensor for tensor in tensors if id(tensor) in self._parameters]
        if len(used) != 1:
            return None
        if name in ("expand", "repeat", "expand_as") and used[0] is args[0]:
            shape = args[1].shape if isinstance(args[1], Tensor) else [*flat(args[1:])]
            if shape[0] != self.n_examples:
                return None
            copies = self._copies(name, used[0], shape)
            if name == "repeat":
                return copies.repeat(1, *shape[1:])
            return copies.expand(*shape)
        if name in _POINTWISE and len(tensors) == 2 and not invocation.is_constant:
            (other,) = (tensor for tensor in tensors if tensor is not used[0])
            copies = self._copies(name, used[0], other.shape)
            replaced = [copies if value is used[0] else value for value in args]
            return invocation.func(*replaced, **invocation.kwargs)
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
        self._record(name, copies, [(parameter, RowRule(copied_rows))], copies)
        return copies

    def _by_rule(self, invocation: Invocation) -> Any:
        """Return the output of a function whose rows are known, else None."""
        name, func = invocation.name, invocation.func
        is_constant = invocation.is_constant
        if func not in ROW_RULES:
            return None
        input, rules = ROW_RULES[func](*invocation.args, **invocation.kwargs)
        if id(input) in self._parameters:
            return None
        # Constants may have the examples first, too: states of zero, copied positions.
        if is_constant and (input.ndim < 2 or len(input) != self.n_examples):
            return None
        output = func(
            *self._aliases(invocation.args), **self._aliases(invocation.kwargs)
        )
        # The name tells a constant of n rows from n examples. Else a chunk of as many
        # examples as some constant has rows could pass for what was tried.
        self._record(
            f"{name} of a constant" if is_constant else name, input, rules, output
        )
        return output

    def _aliases(self, values: Any) -> Any:
        """Return arguments with aliases, leaves of the same values, for parameters."""
        # The backward pass ends at an alias. So a parameter itself gets a gradient only
        # from a use that this watch has not seen, and that is an error.
        if isinstance(values, dict):
            return {key: self._aliases(value) for key, value in values.items()}
        if type(values) in (list, tuple):
            return type(values)(self._aliases(value) for value in values)
        if id(values) in self._parameters and values.requires_grad:
            return alias(values)
        return values

    def _decompose(self, invocation: Invocation) -> Any:
        """Return the output of a function that is made of linear maps, else None."""
        if invocation.is_constant:
            return None
        name, func, args = invocation.name, invocation.func, invocation.args
        ruled: set[int] = set()

        def record(
            weight: Tensor, bias: Tensor | None, input: Tensor, output: Tensor
        ) -> None:
            ruled.update((id(weight), id(bias)))
            self._record(name, *linear_rules(input, weight, bias), output)

        output: Any
        if func in UNROLLED:
            output = unroll(func, args, record)
        elif func in CELLS:
            output = unroll_cell(func, args, record)
        elif func is F.multi_head_attention_forward:
            output = attend(args, invocation.kwargs, record)
        elif func is torch.addmm and not invocation.kwargs:
            return self._addmm(*args)
        else:
            return None
        if not invocation.used <= ruled:
            raise UnsupportedLayers(f"a parameter in {name} that is no weight")
        return output

    def _addmm(self, bias: Tensor, input: Tensor, weight: Tensor) -> Tensor | None:
        """Return bias + input @ weight, where the positions of examples are rows."""
        # GPT-2 of Hugging Face calls it with (n, t, i) seen as (n t, i). The trial
        # tells whether the rows of an example lie beside each other.
        own = isinstance(bias, nn.Parameter) and isinstance(weight, nn.Parameter)
        n = self.n_examples
        if not own or id(input) in self._parameters or len(input) % n:
            return None
        if bias.ndim != 1:
            return None
        rows = input.reshape(n, -1, input.shape[1])
        output = rows @ alias(weight) + alias(bias)
        self._record("addmm", *addmm_rules(rows, bias, weight), output)
        flat_output: Tensor = output.flatten(0, 1)
        return flat_output

    def _record(
        self,
        name: str,
        input: Tensor,
        rules: Sequence[tuple[Tensor | None, RowRule]],
        output: Tensor,
    ) -> None:
        """Keep a call: its input, its rules, and the edge of its output."""
        if not input.shape[:1] == output.shape[:1] == (self.n_examples,):
            raise UnsupportedLayers(f"{name} does not have the examples first")
        self.signature.append(f"{name} {list(output.shape[1:])}")
        if not output.requires_grad:  # the module switches gradients off
            return
        trainable = [
            (parameter, rule)
            for parameter, rule in rules
            if parameter is not None and id(parameter) in self._parameters
        ]
        # An activation that works in place replaces the node of the output. Where the
        # output is a view, the node of what it is a view of stays.
        source, base = output, output._base
        if base is not None and base.requires_grad and base.numel() == output.numel():
            if not (base.is_contiguous() and output.is_contiguous()):
                raise UnsupportedLayers(f"{name} puts out a view in another layout")
            source = base
        edge = get_gradient_edge(source)
        self.calls.append(Call(input.detach(), trainable, edge, output.shape))
