"""BatchNorm with the statistics of the whole batch: its form in a copy, its numbers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from flatmin._utils.messages import shown
from flatmin.risk.network.loss_module import LossModule

__all__ = [
    "Statistics",
    "check_statistics",
    "keep_batch_statistics",
    "needs_examples",
    "normalises_batch",
    "recorded_statistics",
    "refuse_examples",
    "trains_batch_norm",
    "write_statistics",
]

# Name of a BatchNorm -> mean and variance of each channel, the variance with divisor n.
Statistics = dict[str, tuple[Tensor, Tensor]]

Method = TypeVar("Method", bound=Callable[..., Any])


def normalises_batch(module: nn.Module) -> bool:
    """Return whether a BatchNorm in eval mode takes the statistics of its input."""
    return any(
        part.running_mean is None and part.running_var is None
        for part in _batch_norms(module).values()
    )


def trains_batch_norm(module: nn.Module) -> bool:
    """Return whether a BatchNorm is in train mode."""
    return any(part.training for part in _batch_norms(module).values())


def keep_batch_statistics(module: nn.Module) -> None:
    """Make every BatchNorm one without running statistics.

    It then takes those of its input in eval mode too, and no pass writes its buffers.
    In eval mode a SyncBatchNorm does not look at other processes.

    Parameters
    ----------
    module : torch.nn.Module
        Changed.
    """
    for part in _batch_norms(module).values():
        part.track_running_stats = False
        part.running_mean = part.running_var = part.num_batches_tracked = None


@contextmanager
def recorded_statistics(module: nn.Module) -> Iterator[Statistics]:
    """Record the statistics of what each BatchNorm takes in, at its last call.

    Parameters
    ----------
    module : torch.nn.Module

    Yields
    ------
    dict of str to (mean, variance), each of shape (channels,)
        Filled by a pass; without the layers that it does not reach.
    """
    found: Statistics = {}

    def look(
        name: str, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        x = (args[0] if args else kwargs["input"]).detach()
        axes = [axis for axis in range(x.ndim) if axis != 1]
        variance, mean = torch.var_mean(x, axes, correction=0)
        found[name] = mean, variance

    handles = [
        part.register_forward_pre_hook(functools.partial(look, name), with_kwargs=True)
        for name, part in _batch_norms(module).items()
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def check_statistics(module: nn.Module, statistics: Any) -> None:
    """Raise unless statistics are of the BatchNorm layers of a module.

    Parameters
    ----------
    module : torch.nn.Module
    statistics : object

    Raises
    ------
    TypeError
        If they are no dict of pairs of tensors.
    ValueError
        If they are of other layers.
    """
    parts = _batch_norms(module)
    pairs = statistics.values() if isinstance(statistics, dict) else [None]
    if not all(
        isinstance(pair, tuple)
        and len(pair) == 2
        and all(isinstance(tensor, Tensor) for tensor in pair)
        for pair in pairs
    ):
        raise TypeError(
            "statistics must be what batch_statistics returns, a dict of (mean, "
            f"variance) by the names of layers. Got {shown(statistics)}."
        )
    for name, pair in statistics.items():
        n = parts[name].num_features if name in parts else None
        if not all(tensor.shape == (n,) for tensor in pair):
            raise ValueError(
                "statistics must be of this network's BatchNorm layers, "
                f"{', '.join(map(repr, parts))}, one number a channel. Got some of "
                f"{name!r}, of shapes {[tuple(t.shape) for t in pair]}."
            )


@torch.no_grad()
def write_statistics(module: nn.Module, statistics: Statistics) -> None:
    """Make statistics the running ones, as of one batch.

    Parameters
    ----------
    module : torch.nn.Module
        Of the form of the one they are of. A BatchNorm in it that has no running
        statistics gets them.
    statistics : dict of str to (mean, variance)
    """
    parts = _batch_norms(module)
    for name, (mean, variance) in statistics.items():
        part = parts[name]
        if part.running_mean is None or part.running_var is None:
            part.running_mean, part.running_var = mean.clone(), variance.clone()
            part.num_batches_tracked = torch.ones_like(mean[0], dtype=torch.long)
            part.track_running_stats = True
            continue
        part.running_mean.copy_(mean)
        part.running_var.copy_(variance)
        if part.num_batches_tracked is not None:
            part.num_batches_tracked.fill_(1)


def refuse_examples(model: Any, who: str, way_out: str = "") -> None:
    """Raise if examples have no losses of their own.

    Parameters
    ----------
    model : FlatModel
    who : str
        Needs them; begins the message.
    way_out : str, default=""
        One more than those that always are.

    Raises
    ------
    ValueError
        If BatchNorm takes the statistics of the batch.
    """
    if model.normalises_batch:
        raise ValueError(
            f"{who} needs the loss of each example by itself. Got "
            "batch_norm='batch': by the statistics of the batch each loss depends on "
            "all examples, so that there is no gᵢ. Use "
            f"{way_out + ', or ' if way_out else ''}batch_norm='frozen', or "
            "GroupNorm or LayerNorm in the place of BatchNorm."
        )


def needs_examples(method: Method) -> Method:
    """Let a method refuse where examples have no losses of their own.

    Parameters
    ----------
    method : callable
        Of an object whose ``_model`` is a FlatModel.

    Returns
    -------
    callable
    """

    @functools.wraps(method)
    def guarded(self: Any, *args: Any, **kwargs: Any) -> Any:
        refuse_examples(self._model, method.__name__)
        return method(self, *args, **kwargs)

    return cast(Method, guarded)


def _batch_norms(module: nn.Module) -> dict[str, _BatchNorm]:
    # By the names of the module itself, whatever is around it.
    inner = module.module if isinstance(module, LossModule) else module
    return {
        name: part
        for name, part in inner.named_modules()
        if isinstance(part, _BatchNorm)
    }
