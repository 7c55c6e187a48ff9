"""Whether a module is a function of θ and its input, whatever it has done before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from flatmin._utils.trees import map_inputs
from flatmin.risk.autodiff.casts import LowestDtype, storage_address
from flatmin.risk.autodiff.plain_mode import PlainMode
from flatmin.risk.data.chunks import Chunk
from flatmin.risk.example_sums.scalars import example_losses
from flatmin.risk.hidden import hidden_difference
from flatmin.risk.losses.example_loss import ExampleLoss
from flatmin.risk.network.holders import holders
from flatmin.risk.network.loss_module import LossModule
from flatmin.risk.network.model import FlatModel
from flatmin.risk.network.module_checks import trainable
from flatmin.risk.network.module_copy import sources
from flatmin.risk.network.prepared_module import beside, fresh_copy

__all__ = ["check_state"]

# Passes that no measurement comes to.
_FAR = 1e7


def check_state(
    model: FlatModel, loss: ExampleLoss, chunk: Chunk, original: nn.Module
) -> None:
    """Compare a model that has been used with one that never was, at a second θ.

    Weights that are merged or cached stay those of the first θ; what a pass leaves
    behind, and a later one reads, is not there in a fresh copy.

    Parameters
    ----------
    model : FlatModel
        At its first θ, where it has been used already; learns in which precision it
        computes.
    loss : ExampleLoss
    chunk : Chunk
        A few examples.
    original : torch.nn.Module
        Whose copy the model holds.

    Raises
    ------
    ValueError
        If the two differ, if a pass writes or replaces parameters, if it reads those
        of the original, or if module or loss go by how often they were called.
    """
    theta = model.theta()
    _check_reach(model, loss, chunk, original)
    _check_kept(model, theta)
    values = beside(model.params)
    other = torch.cat([part.reshape(-1) for part in values])
    module = fresh_copy(
        original,
        values,
        theta.device,
        theta.dtype,
        batch_statistics=model.normalises_batch,
    )
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    fresh = FlatModel(module, model.output_transform)
    called = [model.module, model.output_transform]
    if isinstance(model.module, LossModule):
        called.append(model.module.f)
    parts = [part for function in called for part in holders(function)]
    _check_counters(parts, partial(model, chunk.X), _MODULE)
    two = chunk.first(2)
    outputs = model.evaluate(two.X)
    _check_counters(loss.parts(), partial(loss.per_example, outputs, two.y), _LOSS)
    try:
        model.bind(other)
        for enabled in (False, True):
            with torch.set_grad_enabled(enabled):
                used, unused = model(chunk.X).detach(), fresh(chunk.X).detach()
            _check_kept(model, other)
            hidden = hidden_difference(used, unused, loss, chunk.y)
            if not _agree(used, unused) or hidden > _half_of_the_digits(used):
                raise ValueError(_memory(model.module, buffers))
    finally:
        model.bind(theta)
    _check_far(fresh, two)


def _check_reach(
    model: FlatModel, loss: ExampleLoss, chunk: Chunk, original: nn.Module
) -> None:
    foreign = {
        storage_address(p): name
        for source in sources(original)
        for name, p in source.named_parameters()
        if p.requires_grad and p.numel()
    }
    lowest = LowestDtype(model.params)
    with torch.enable_grad(), _Reads(foreign) as reads, lowest:
        example_losses(model, loss, chunk)
    model.lowest_dtype = lowest.found
    if reads.found:
        raise ValueError(
            "A risk works on a copy of the module. Got a pass that reads the parameter "
            f"{reads.found!r} of the original, which stays as it is: through a "
            "function that holds the module (a lambda, a closure, a hook), "
            "output_transform or the loss. Reach it through self."
        )


class _Reads(PlainMode):
    """Notes the tensors of others that a pass uses."""

    def __init__(self, foreign: dict[int, str]) -> None:
        super().__init__()
        self.foreign = foreign
        self.found: str | None = None

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor) and leaf.numel():
                self.found = self.found or self.foreign.get(storage_address(leaf))
        return func(*args, **(kwargs or {}))


def _check_kept(model: FlatModel, theta: Tensor) -> None:
    """Raise if a pass has changed the parameters."""
    params = trainable(model.module)
    if len(params) == len(model.params) and all(map(is_, params, model.params)):
        views = model.layout.views(theta)
        if all(map(torch.equal, (p.detach() for p in params), views)):
            return
    raise ValueError(
        "A pass must leave the parameters as they are, for L is a function of θ. Got a "
        "module that writes, replaces or freezes them in forward; compute what "
        "it needs in a variable, or by torch.nn.utils.parametrize."
    )


def _check_far(model: FlatModel, chunk: Chunk) -> None:
    """Raise if a pass changes parameters that are large, small or of the other sign."""
    # A bound on them (of a norm, or by clamp_) may not be reached at the first θ.
    theta, here = model.theta(), _Count(None)
    with here:
        model.evaluate(map_inputs(Tensor.clone, chunk.X))
    for factor in (-100.0, 0.01):
        model.bind(factor * theta)
        try:
            with _Count(100 + 20 * here.n_calls):
                model.evaluate(map_inputs(Tensor.clone, chunk.X))
        except torch.OutOfMemoryError:
            raise
        except Exception:  # there may be no outputs so far away
            continue
        _check_kept(model, factor * theta)


class _Count(PlainMode):
    """Counts calls of kernels, and ends a pass that takes too many.

    A module that iterates until something has converged may never end far away.
    """

    def __init__(self, most: int | None) -> None:
        super().__init__()
        self.most, self.n_calls = most, 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        self.n_calls += 1
        if self.most is not None and self.n_calls > self.most:
            raise RuntimeError("The pass takes much longer than elsewhere.")
        return func(*args, **(kwargs or {}))


def _check_counters(
    parts: Sequence[object], run: Callable[[], Tensor], subject: str
) -> None:
    """Raise if results will change when something has been counted far enough."""
    before = _numbers(parts)
    with torch.no_grad():
        once = run()
    after = _numbers(parts)
    changed = [key for key in after if key in before and after[key] != before[key]]
    if not changed:
        return
    try:
        _assign(parts, changed, {key: after[key] + _FAR for key in changed})
        with torch.no_grad():
            agree = _agree(once, run())
    except Exception:
        agree = False
    finally:
        _assign(parts, changed, before)
    if not agree:
        names = sorted({name for _, name in changed})
        raise ValueError(
            f"{subject} alone. Got one that counts its passes and goes by the count "
            f"({', '.join(names)}); switch that off in eval mode, or pass one that "
            "stays as it is."
        )


_MODULE = "The module must be a function of θ and its input"
_LOSS = "The loss must be a function of outputs and targets"


def _numbers(parts: Sequence[object]) -> dict[tuple[int, str], float]:
    """Return what may be a counter: attributes and buffers that are one number."""
    return {
        (i, name): float(value)
        for i, part in enumerate(parts)
        for name, value in (vars(part) | getattr(part, "_buffers", {})).items()
        if (isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex())
        or (isinstance(value, int | float) and not isinstance(value, bool))
    }


def _assign(
    parts: Sequence[object],
    keys: list[tuple[int, str]],
    values: dict[tuple[int, str], float],
) -> None:
    for i, name in keys:
        current = getattr(parts[i], name)
        if isinstance(current, Tensor):
            value = values[i, name]
            if not (current.is_floating_point() or current.dtype == torch.bool):
                value = min(value, torch.iinfo(current.dtype).max)
            current.detach().fill_(value)
        else:
            setattr(parts[i], name, type(current)(values[i, name]))


def _agree(used: Tensor, unused: Tensor) -> bool:
    if used.shape != unused.shape:
        return False
    # Half of the digits must agree. All of them need not, because one of the two may
    # have its layers merged, which rounds differently.
    close = _half_of_the_digits(used) * float(
        used.abs().nan_to_num(0.0, 0.0, 0.0).max()
    )
    return torch.allclose(used, unused, rtol=0.0, atol=close, equal_nan=True)


def _half_of_the_digits(tensor: Tensor) -> float:
    return float(torch.finfo(tensor.dtype).eps ** 0.5)


def _memory(module: nn.Module, before: dict[str, Tensor]) -> str:
    written = [
        name
        for name, buffer in module.named_buffers()
        if name not in before or not torch.equal(buffer, before[name])
    ]
    where = f" It writes the buffers {written}." if written else ""
    return (
        "The module must be a function of θ and its input alone. Got outputs that "
        "differ from those of a fresh copy with the same θ: it keeps something of an "
        f"earlier pass, or of an earlier θ, and reads it.{where} Look for weights "
        "that are merged or cached (in eval mode, by cached_property, in an "
        "attribute) and for a state that goes on from pass to pass; compute them in "
        "each pass."
    )
