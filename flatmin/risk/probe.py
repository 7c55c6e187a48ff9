"""What one example tells about a module: does all fit, and what does it need."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flatmin.risk import checks
from flatmin.risk.chunks import Chunk
from flatmin.risk.gradients import example_losses
from flatmin.risk.losses import ExampleLoss
from flatmin.risk.model import FlatModel

__all__ = ["ProbeResult", "check_dependence", "choose_strides", "probe_example"]


_N_REPEATED = 16


@dataclass(frozen=True)
class ProbeResult:
    """What the first example told."""

    output: Tensor  # (1, *output_shape)
    n_numbers: int  # input and activations of one example


def choose_strides(model: FlatModel, X: Tensor) -> tuple[Tensor, bool]:
    """Return X channels-last, or by rows for a module that needs them.

    Parameters
    ----------
    model : FlatModel
    X : Tensor of shape (N, ...)

    Returns
    -------
    X : Tensor of shape (N, ...)
    by_rows : bool
        Whether the module needs them by rows.
    """
    fast = checks.channels_last(X, model.module)
    if fast is X:
        return X, False
    try:
        with torch.no_grad():
            model(fast[:2].clone())
    except RuntimeError:  # many a module calls view() behind a convolution
        return X.contiguous(), True
    return fast, False


def probe_example(model: FlatModel, X: Tensor) -> ProbeResult:
    """Run one example through the module, and check that the two fit.

    Parameters
    ----------
    model : FlatModel
        Learns whether its module writes into its input.
    X : Tensor of shape (N, ...)

    Returns
    -------
    ProbeResult

    Raises
    ------
    ValueError
        If the module cannot take X, gives no output per example, or draws at random.
    """
    first = X[:1].clone()
    version = first._version
    try:
        outputs, n_activations = _count_activations(model, first)
    except (RuntimeError, IndexError) as error:
        raise ValueError(
            f"The module cannot take X of shape {tuple(X.shape)} and dtype {X.dtype}: "
            f"{error}"
        ) from error
    model.copies_input = first._version != version
    if outputs.ndim == 0 or outputs.shape[0] != 1:
        raise ValueError(
            "The module must return one output for each example along the first axis. "
            f"Got shape {tuple(outputs.shape)} for one example."
        )
    # Of several examples: a mask drawn for one may come out the same twice.
    with torch.no_grad():
        once, again = model(X[:_N_REPEATED]), model(X[:_N_REPEATED])
    if bool((again - once).abs().max() > 1e-3 * once.abs().max()):
        raise ValueError(
            "The module must give the same output for the same input. Two passes in "
            "eval mode differ; switch off what it draws at random, for example "
            "F.dropout(x, training=self.training) in place of F.dropout(x)."
        )
    return ProbeResult(outputs, n_activations + X[0].numel())


def check_dependence(
    model: FlatModel, loss: ExampleLoss, chunks: Iterator[Chunk]
) -> None:
    """Warn about parameters that no example's loss depends on.

    Parameters
    ----------
    model : FlatModel
    loss : ExampleLoss
    chunks : iterator of Chunk
        Read until every parameter has been seen at work; the first may be small.

    Raises
    ------
    ValueError
        If the loss depends on none.
    """
    unused = dict(zip(model.layout.names, model.params, strict=True))
    for chunk in chunks:
        with torch.enable_grad():
            total = example_losses(model, loss, chunk).sum()
        if total.requires_grad:
            gradients = torch.autograd.grad(
                total, list(unused.values()), allow_unused=True
            )
            named = zip(unused.items(), gradients, strict=True)
            unused = {name: p for (name, p), g in named if g is None}
        if not unused:
            return
    if len(unused) == len(model.layout.names):
        raise ValueError(
            "The loss must depend on a parameter. Got one that depends on none; look "
            "for detach(), no_grad() or argmax() in the module, in output_transform "
            "and in the loss."
        )
    checks.warn_unused_parameters(list(unused))


def _count_activations(model: FlatModel, X: Tensor) -> tuple[Tensor, int]:
    """Return the outputs for X, and how many numbers the layers in between hold."""
    counts: list[int] = []

    def count(_module: nn.Module, _inputs: Any, outputs: Any) -> None:
        tensors = outputs if isinstance(outputs, tuple) else (outputs,)
        counts.extend(t.numel() for t in tensors if isinstance(t, Tensor))

    leaves = [part for part in model.module.modules() if not any(part.children())]
    handles = [leaf.register_forward_hook(count) for leaf in leaves]
    try:
        with torch.no_grad():
            outputs = model(X)
    finally:
        for handle in handles:
            handle.remove()
    return outputs, sum(counts)
