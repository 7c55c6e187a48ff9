"""The private copy of a module: what comes along, and where it goes."""

from __future__ import annotations

import copy
import math
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.overrides import TorchFunctionMode

from flatmin._utils.messages import message
from flatmin.risk.autodiff.surroundings import modes_put_back
from flatmin.risk.network.module_checks import (
    check_kinds,
    check_shaped,
    overlap,
    trainable,
    wrapped,
)

__all__ = ["copy_module", "graphs_left_out", "registered", "sources"]

# What each copy was made of: what closes over that one still reaches it.
_SOURCES: weakref.WeakKeyDictionary[nn.Module, weakref.ref[nn.Module]] = (
    weakref.WeakKeyDictionary()
)


@modes_put_back
def copy_module(
    module: nn.Module,
    *,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
    forget: bool = False,
) -> nn.Module:
    """Deep-copy a module, and convert the copy without calling its own ``to``.

    What it keeps of an earlier pass comes along without its graph. A wrapper of
    ``torch.compile``, DataParallel or DistributedDataParallel is left behind.

    Parameters
    ----------
    module : torch.nn.Module
    device : torch.device, default=None
        None leaves every tensor where it is.
    dtype : torch.dtype, default=None
        Of real parameters and buffers; complex ones get as many digits. None leaves all
        as they are. Tensors that are not registered follow if they have the dtype, or
        the device, of the first parameter.
    forget : bool, default=False
        Fill what is kept of an earlier pass, or shares memory with a parameter, with
        NaN: a pass that reads it shows.

    Returns
    -------
    torch.nn.Module

    Raises
    ------
    TypeError
        If it is compiled by TorchScript or cannot be copied; the message names what.
    ValueError
        If it has lazy parameters or buffers without a shape.
    """
    check_kinds(module)
    check_shaped(module)
    memo: dict[int, Any] = {}
    try:
        with graphs_left_out(trainable(module) if forget else None):
            # A wrapper's copy, wherever it is held, is that of the module inside.
            for wrapper in reversed(list(module.modules())):
                if (inner := wrapped(wrapper)) is not None:
                    memo[id(wrapper)] = copy.deepcopy(inner, memo)
            copied: nn.Module = copy.deepcopy(module, memo)
    except Exception as error:
        raise TypeError(_why_not(module, error)) from error
    originals = set(map(id, module.parameters()))
    if any(id(parameter) in originals for parameter in copied.parameters()):
        raise TypeError(
            "The module must be copied whole. Got one whose copy holds the same "
            "parameters; let its __deepcopy__ copy them."
        )
    _bring_hooks(module, memo)
    _SOURCES[copied] = weakref.ref(module)
    _convert(copied, memo.values(), device, dtype)
    return copied


def sources(module: nn.Module) -> list[nn.Module]:
    """Return a module, what it was copied from, and so on, as far as they are there.

    Parameters
    ----------
    module : torch.nn.Module

    Returns
    -------
    list of torch.nn.Module
    """
    found = [module]
    while (known := _SOURCES.get(found[-1])) and (source := known()) is not None:
        found.append(source)
    return found


@contextmanager
def graphs_left_out(shared: list[nn.Parameter] | None = None) -> Iterator[None]:
    """Let ``copy.deepcopy`` copy tensors that have a graph: without it.

    PyTorch copies leaves only. Modules hold others: activations that they keep, and
    weights that are computed of parameters before each pass (pruning, weight norm).

    Parameters
    ----------
    shared : list of torch.nn.Parameter, default=None
        If given, the copies of such tensors, and of those that share memory with one of
        these parameters, are filled with NaN.
    """
    with _WithoutGraphs(shared):
        yield


class _WithoutGraphs(TorchFunctionMode):
    def __init__(self, shared: list[nn.Parameter] | None) -> None:
        super().__init__()
        self.forgets = shared is not None
        self.shared: dict[int, list[Tensor]] = {}
        for parameter in shared or ():
            storage = parameter.untyped_storage().data_ptr()
            self.shared.setdefault(storage, []).append(parameter)

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is not Tensor.__deepcopy__:
            return func(*args, **(kwargs or {}))
        tensor, memo = args
        if id(tensor) not in memo and self._is_kept(tensor):
            memo[id(tensor)] = self._copy(tensor)
        if id(tensor) not in memo:
            memo[id(tensor)] = func(*args)  # type: ignore[no-untyped-call]
        return memo[id(tensor)]

    def _is_kept(self, tensor: Tensor) -> bool:
        if _escaped(tensor) or not tensor.is_leaf:
            return True
        if not self.shared or tensor.layout != torch.strided:
            return False
        beside = self.shared.get(tensor.untyped_storage().data_ptr(), [])
        return any(overlap(tensor, parameter) for parameter in beside)

    def _copy(self, tensor: Tensor) -> Tensor:
        if _escaped(tensor):
            return torch.full((), math.nan, device="cpu")
        values = tensor.detach().clone()
        return values.fill_(math.nan) if self.forgets else values


def _escaped(tensor: Tensor) -> bool:
    """Return whether a tensor comes from inside of vmap: its values are lost."""
    return bool(torch._C._functorch.is_functorch_wrapped_tensor(tensor))


def registered(module: nn.Module) -> list[Tensor]:
    """Return the parameters and the buffers, a shared one once."""
    return [*module.parameters(), *module.buffers()]


def _why_not(module: nn.Module, error: Exception) -> str:
    """Return the message for a module that cannot be copied: which attribute."""
    for prefix, part in module.named_modules():
        for name, value in vars(part).items():
            if name in ("_modules", "_parameters", "_buffers"):
                continue
            try:
                with graphs_left_out():
                    copy.deepcopy(value)
            except Exception:
                attribute = f"{prefix}.{name}".removeprefix(".")
                return (
                    f"A risk works on a copy of the module. Got the attribute "
                    f"{attribute!r} of type {type(value).__name__}, which cannot be "
                    f"copied ({message(error)}); hold it outside of the module, or "
                    "leave it out in a __deepcopy__ of the module's class."
                )
    return (
        f"A risk works on a copy of the module. Got a {type(module).__name__} that "
        f"copy.deepcopy cannot copy ({message(error)}); give its class a __deepcopy__."
    )


def _bring_hooks(module: nn.Module, memo: dict[int, Any]) -> None:
    """Give copies of fx.GraphModules their hooks, which PyTorch leaves behind."""
    for part in module.modules():
        copied = memo.get(id(part))
        if not isinstance(part, torch.fx.GraphModule) or copied is None:
            continue
        for name, value in vars(part).items():
            if name.startswith("_forward_") and value:
                setattr(copied, name, copy.deepcopy(value, memo))


def _convert(
    module: nn.Module,
    others: Iterable[Any],
    device: torch.device | None,
    dtype: torch.dtype | None,
) -> None:
    """Convert a copy's tensors in place, so that a second name has the same one."""
    own = {id(tensor): tensor for tensor in registered(module)}
    copied = {id(t): t for t in others if isinstance(t, Tensor)} | own
    first = next(iter(own.values()), None)
    if first is None:
        return
    old_device, old_dtype = first.device, first.dtype.to_real()
    for key, tensor in copied.items():
        to_device, to_dtype = device or tensor.device, dtype or tensor.dtype
        if not (tensor.is_floating_point() or tensor.is_complex()):
            to_dtype = tensor.dtype
        elif tensor.is_complex():
            to_dtype = to_dtype.to_complex()
        if key not in own:
            if isinstance(tensor, nn.Parameter):  # a constant, being no part of θ
                tensor.requires_grad_(False)
            if tensor.device != old_device:
                to_device = tensor.device
            if tensor.dtype not in (old_dtype, old_dtype.to_complex()):
                to_dtype = tensor.dtype
        if isinstance(tensor, UninitializedParameter | UninitializedBuffer):
            continue
        if (tensor.device, tensor.dtype) != (to_device, to_dtype):
            tensor.grad = None
            tensor.data = tensor.data.to(device=to_device, dtype=to_dtype)
