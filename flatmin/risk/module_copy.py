"""The private copy of a module: what comes along, and what is refused."""

from __future__ import annotations

import copy
import math
import warnings
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.overrides import TorchFunctionMode

from flatmin._utils.placement import resolve_device, resolve_dtype

__all__ = [
    "beside",
    "copy_module",
    "evaluation_mode",
    "fresh_copy",
    "graphs_left_out",
    "keep_own_statistics",
    "prepare_module",
    "sources",
    "trainable",
]

# Names of the module inside a wrapper that computes the same.
_WRAPPERS = {
    "OptimizedModule": "_orig_mod",  # of torch.compile
    "DataParallel": "module",
    "DistributedDataParallel": "module",
}


# What each copy was made of: what closes over that one still reaches it.
_SOURCES: weakref.WeakKeyDictionary[nn.Module, weakref.ref[nn.Module]] = (
    weakref.WeakKeyDictionary()
)


def prepare_module(
    module: nn.Module,
    batch_norm: Literal["error", "frozen"],
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
) -> nn.Module:
    """Return a deep copy in eval mode; the caller's module is not touched.

    Parameters
    ----------
    module : torch.nn.Module
        In any mode. An InstanceNorm in train mode takes each example's own statistics,
        in the copy too.
    batch_norm : {"error", "frozen"}
        What to do with BatchNorm in train mode, where the loss of one example
        depends on the others and a per-example gradient is not defined.
    device : torch.device or str, default=None
        None is that of the first trainable parameter.
    dtype : torch.dtype or str, default=None
        Of real tensors; complex ones get as many digits. None is that of the first
        trainable parameter.

    Returns
    -------
    torch.nn.Module

    Raises
    ------
    TypeError
        If it is no module, is compiled by TorchScript, or cannot be copied.
    ValueError
        If there is nothing to train, a lazy parameter, a complex one, two in one place,
        BatchNorm as above, or an Embedding with ``max_norm``.

    Warns
    -----
    UserWarning
        If dropout was active: it is off in a deterministic risk.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module. Got {module!r}.")
    if batch_norm not in ("error", "frozen"):
        raise ValueError(f"batch_norm must be 'error' or 'frozen'. Got {batch_norm!r}.")
    _check_parameters(module)
    _check_batch_norm(module, batch_norm)
    if any(_drops(part) for part in module.modules()):
        warnings.warn(
            "The module has active dropout. The risk is a deterministic function of "
            "the parameters, so dropout is switched off (eval mode).",
            UserWarning,
            stacklevel=3,
        )
    first = trainable(module)[0]
    copied = copy_module(
        module,
        device=resolve_device(first.device if device is None else device),
        dtype=resolve_dtype(first.dtype if dtype is None else dtype),
    )
    evaluation_mode(copied)
    _settle(copied)
    return copied


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
    """
    _check_kinds(module)
    memo: dict[int, Any] = {}
    try:
        with graphs_left_out(trainable(module) if forget else None):
            # A wrapper's copy, wherever it is held, is that of the module inside.
            for wrapper in reversed(list(module.modules())):
                if (inner := _wrapped(wrapper)) is not None:
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


def evaluation_mode(module: nn.Module, *, own_statistics: bool = True) -> nn.Module:
    """Switch a module to eval mode without a change of what it computes of θ.

    A module whose ``eval`` writes its tensors, such as one that merges its weights, is
    left unmerged.

    Parameters
    ----------
    module : torch.nn.Module
        Changed.
    own_statistics : bool, default=True
        See :func:`keep_own_statistics`.

    Returns
    -------
    torch.nn.Module
        The same.

    Raises
    ------
    ValueError
        If its ``train`` writes its parameters: it is merged already.
    """
    if own_statistics:
        keep_own_statistics(module)
    if _switches_itself(module) and _eval_writes(module):
        for part in module.modules():
            part.training = False
    else:
        module.eval()
    return module


def keep_own_statistics(module: nn.Module) -> nn.Module:
    """Make every InstanceNorm in train mode one without running statistics.

    It then takes each example's own, as in train mode, in eval mode too, and no pass
    writes its buffers.

    Parameters
    ----------
    module : torch.nn.Module
        Changed.

    Returns
    -------
    torch.nn.Module
        The same.
    """
    for part in module.modules():
        if isinstance(part, _InstanceNorm) and part.training:
            part.track_running_stats = False
            part.running_mean = part.running_var = part.num_batches_tracked = None
    return module


def fresh_copy(
    module: nn.Module, theta: list[Tensor], device: torch.device, dtype: torch.dtype
) -> nn.Module:
    """Return a copy that was never used, with other values of its parameters.

    They are set before the module is switched to eval mode, and what the original
    keeps of its passes is NaN.

    Parameters
    ----------
    module : torch.nn.Module
        The original.
    theta : list of Tensor
        Of the shapes of its trainable parameters.
    device : torch.device
    dtype : torch.dtype

    Returns
    -------
    torch.nn.Module
    """
    copied = copy_module(module, device=device, dtype=dtype, forget=True)
    keep_own_statistics(copied)
    if _switches_itself(copied):
        copied.train()
    for parameter, values in zip(trainable(copied), theta, strict=True):
        parameter.data.copy_(values)
    copied.eval()
    _settle(copied)
    return copied


def trainable(module: nn.Module) -> list[nn.Parameter]:
    """Return the parameters with requires_grad=True, a shared one once."""
    return [p for p in module.parameters() if p.requires_grad]


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


def beside(parameters: Iterable[Tensor]) -> list[Tensor]:
    """Return other values of parameters, near by: the same at every call.

    Parameters
    ----------
    parameters : iterable of Tensor

    Returns
    -------
    list of Tensor
        Of the same signs, and 0 nowhere; integers as they are.
    """
    rng = torch.Generator().manual_seed(0)
    moved = []
    for parameter in parameters:
        values = parameter.detach()
        if values.is_floating_point() or values.is_complex():
            steps = torch.rand(values.shape, generator=rng, device="cpu")
            steps = 0.1 * (1 - 2 * steps)
            steps = steps.to(values.device, values.dtype)
            size = values.abs().square().mean().sqrt() or 1.0
            values = torch.where(values == 0, size * steps, values * (1 + steps))
        moved.append(values)
    return moved


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
        return any(_overlap(tensor, parameter) for parameter in beside)

    def _copy(self, tensor: Tensor) -> Tensor:
        if _escaped(tensor):
            return torch.full((), math.nan, device="cpu")
        values = tensor.detach().clone()
        return values.fill_(math.nan) if self.forgets else values


def _escaped(tensor: Tensor) -> bool:
    """Return whether a tensor comes from inside of vmap: its values are lost."""
    return bool(torch._C._functorch.is_functorch_wrapped_tensor(tensor))


def _check_parameters(module: nn.Module) -> None:
    named = dict(module.named_parameters())
    if any(isinstance(p, UninitializedParameter) for p in named.values()):
        raise ValueError(
            "The module has lazy parameters without a shape. Run one forward pass "
            "through it before it is used here."
        )
    free = {name: p for name, p in named.items() if p.requires_grad}
    if not free:
        raise ValueError(
            "The module has no parameter with requires_grad=True, so there is nothing "
            "to differentiate by. Unfreeze at least one."
        )
    for name, parameter in free.items():
        if parameter.is_complex():
            raise ValueError(
                f"θ is a real vector. Got the complex parameter {name!r}; hold it as "
                "real numbers, w = nn.Parameter(torch.view_as_real(weight)), and read "
                "it by torch.view_as_complex(w). Or freeze it (requires_grad=False)."
            )
    ordered = sorted(free, key=lambda name: free[name].data_ptr())
    before: list[str] = []  # those that may reach into the next one
    for name in ordered:
        parameter = free[name]
        before = [n for n in before if _stop(free[n]) > parameter.data_ptr()]
        for other in before:
            if _overlap(parameter, free[other]):
                raise ValueError(
                    "Each trainable parameter must have memory of its own. Got "
                    f"{other!r} and {name!r}, which share some, so that neither "
                    "changes alone; make them one nn.Parameter, or clone one."
                )
        before.append(name)


def _stop(tensor: Tensor) -> int:
    """Return the address behind the last entry of a tensor."""
    if tensor.numel() == 0:
        return tensor.data_ptr()
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    last = sum((n - 1) * step for n, step in steps)
    return tensor.data_ptr() + (last + 1) * tensor.element_size()


def _overlap(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors share an entry."""
    start = max(one.data_ptr(), other.data_ptr())
    if start >= min(_stop(one), _stop(other)):
        return False
    if one.untyped_storage().data_ptr() != other.untyped_storage().data_ptr():
        return False
    places = [
        torch.arange(t.untyped_storage().nbytes() // t.element_size())
        .as_strided(t.shape, t.stride(), t.storage_offset())
        .mul(t.element_size())
        for t in (one, other)
    ]
    return bool(torch.isin(*places).any())


def _check_kinds(module: nn.Module) -> None:
    for name, part in module.named_modules():
        title = f"{name!r}, " if name else ""
        if isinstance(part, nn.CrossMapLRN2d):
            raise ValueError(
                "The module must have right derivatives, and those of a CrossMapLRN2d "
                f"are wrong in PyTorch 2.13. Got {title}one; use LocalResponseNorm."
            )
        if isinstance(part, torch.jit.ScriptModule):
            raise TypeError(
                f"The module must be written in Python. Got {title}a "
                f"{type(part).__name__}, compiled by TorchScript, whose parameters "
                "cannot be replaced; pass the nn.Module that it was made from."
            )
        if _wrapped(part) is not None and (
            part._forward_hooks or part._forward_pre_hooks
        ):
            raise TypeError(
                f"A wrapper is left out of the copy. Got {title}a "
                f"{type(part).__name__} with forward hooks of its own, which would be "
                "lost; register them on the module inside."
            )


def _wrapped(part: nn.Module) -> nn.Module | None:
    """Return the module inside a wrapper that computes the same, or None."""
    kind = type(part)
    if not kind.__module__.startswith(("torch._dynamo.", "torch.nn.parallel.")):
        return None
    name = _WRAPPERS.get(kind.__name__)
    inner: nn.Module | None = None if name is None else getattr(part, name)
    return inner


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
                    f"copied ({error}); hold it outside of the module, or leave it "
                    "out in a __deepcopy__ of the module's class."
                )
    return (
        f"A risk works on a copy of the module. Got a {type(module).__name__} that "
        f"copy.deepcopy cannot copy ({error}); give its class a __deepcopy__."
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
    registered = {id(tensor): tensor for tensor in _registered(module)}
    copied = {id(t): t for t in others if isinstance(t, Tensor)} | registered
    first = next(iter(registered.values()), None)
    if first is None:
        return
    old_device, old_dtype = first.device, first.dtype.to_real()
    for key, tensor in copied.items():
        to_device, to_dtype = device or tensor.device, dtype or tensor.dtype
        if not (tensor.is_floating_point() or tensor.is_complex()):
            to_dtype = tensor.dtype
        elif tensor.is_complex():
            to_dtype = to_dtype.to_complex()
        if key not in registered:
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


def _settle(module: nn.Module) -> None:
    """Make a copy fit to be differentiated: embeddings and recurrent layers."""
    for name, part in module.named_modules():
        if isinstance(part, nn.Embedding | nn.EmbeddingBag):
            if part.max_norm is not None:
                raise ValueError(
                    f"{name!r} is an Embedding with max_norm, which rescales its "
                    "weight when it is read: the loss is no function of θ. "
                    "Rescale the weight once and set max_norm=None."
                )
            part.sparse = False  # a layout of the gradient, which is flat here
        if type(part) in (nn.RNN, nn.GRU, nn.LSTM):
            # cuDNN differentiates recurrent layers in train mode only, which without
            # dropout is the same. A subclass may have more that depends on the mode.
            part.dropout = 0.0
            part.train()


def _switches_itself(module: nn.Module) -> bool:
    """Return whether a part has a ``train`` or an ``eval`` of its own."""
    return any(
        getattr(getattr(part, name), "__func__", None) is not getattr(nn.Module, name)
        for part in module.modules()
        for name in ("train", "eval")
    )


def _eval_writes(module: nn.Module) -> bool:
    """Return whether ``eval`` writes parameters or buffers, as where LoRA merges."""
    tried = copy_module(module)
    before = [tensor.clone() for tensor in _registered(tried)]
    tried.train()
    if not _are_equal(before, _registered(tried)):
        raise ValueError(
            "The module must hold the parameters that it trains. Got a "
            f"{type(module).__name__} whose train() writes them, such as one whose "
            "weights are merged in eval mode; call its train() first."
        )
    # Elsewhere than here: an update that is to be merged often begins at zero.
    parameters = list(tried.parameters())
    for parameter, values in zip(parameters, beside(parameters), strict=True):
        parameter.data.copy_(values)
    before = [tensor.clone() for tensor in _registered(tried)]
    tried.eval()
    return not _are_equal(before, _registered(tried))


def _registered(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _are_equal(some: Iterable[Tensor], others: Iterable[Tensor]) -> bool:
    some, others = list(some), list(others)
    return len(some) == len(others) and all(map(torch.equal, some, others))


def _check_batch_norm(module: nn.Module, batch_norm: str) -> None:
    for name, part in module.named_modules():
        if not isinstance(part, _BatchNorm):
            continue
        if not part.track_running_stats:
            raise ValueError(
                f"{name!r} is a BatchNorm without running statistics: the loss of an "
                "example always depends on the others and per-example gradients are "
                "not defined. Use GroupNorm."
            )
        if part.training and batch_norm == "error":
            raise ValueError(
                f"{name!r} is a BatchNorm in train mode: the loss of an example "
                "depends on the others and per-example gradients are not defined. "
                "Pass batch_norm='frozen' to use the running statistics, or replace "
                "it by GroupNorm."
            )


def _drops(part: nn.Module) -> bool:
    if not part.training:
        return False
    if isinstance(part, _DropoutNd):
        return part.p > 0
    if isinstance(part, nn.RNNBase | nn.MultiheadAttention):
        return part.dropout > 0
    return False
