"""What a few examples tell about a module: does all fit, and what does it need."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flatmin._utils.messages import first_line, message
from flatmin._utils.trees import Inputs, Tree, describe_inputs, leaves_of, map_inputs
from flatmin.risk.data.chunks import Chunk, iterate_chunks
from flatmin.risk.data.inputs import channels_last
from flatmin.risk.example_sums.scalars import example_losses
from flatmin.risk.losses.example_loss import ExampleLoss
from flatmin.risk.network.model import FlatModel
from flatmin.risk.trials import difference, tolerance

__all__ = [
    "ProbeResult",
    "check_dependence",
    "check_independence",
    "choose_strides",
    "probe_example",
    "trial_indices",
]

_N_TRIED = 16
_INTEGERS = (
    ". In a mapping or a tuple integers stay integers: convert to float those that are "
    "no indices."
)


@dataclass(frozen=True)
class ProbeResult:
    """What the first example told."""

    output: Tensor  # (1, *output_shape)
    n_numbers: int  # input and activations of one example


def choose_strides(model: FlatModel, X: Inputs) -> tuple[Inputs, bool]:
    """Return X channels-last, or by rows for a module that needs them.

    Parameters
    ----------
    model : FlatModel
    X : Tensor of shape (N, ...) or Tree

    Returns
    -------
    X : Tensor of shape (N, ...) or Tree
    by_rows : bool
        Whether the module needs them by rows.
    """
    fast = channels_last(X, model.module)
    if fast is X and all(leaf.is_contiguous() for leaf in leaves_of(X)):
        return X, False
    try:
        model.evaluate(map_inputs(Tensor.clone, fast[:2]))
    except RuntimeError:  # many a module calls view() behind a convolution
        return map_inputs(Tensor.contiguous, X), True
    except TypeError:  # comes again when one example is looked at
        return X, False
    return fast, False


def probe_example(model: FlatModel, X: Inputs) -> ProbeResult:
    """Run one example through the module, and check that the two fit.

    Parameters
    ----------
    model : FlatModel
        Learns whether its module writes into its input.
    X : Tensor of shape (N, ...) or Tree

    Returns
    -------
    ProbeResult

    Raises
    ------
    ValueError
        If the module cannot take X, gives no output per example, or draws at random.
    TypeError
        If it returns no tensor.
    """
    first = map_inputs(Tensor.clone, X[:1])
    versions = [leaf._version for leaf in leaves_of(first)]
    try:
        outputs, n_activations = _count_activations(model, first)
    except TypeError as error:
        if (reason := _wrong_arguments(model.module, X)) is not None:
            raise ValueError(reason) from error
        raise
    except ValueError as error:
        raise ValueError(_not_alone(model, X, error)) from error
    except (RuntimeError, IndexError) as error:
        raise ValueError(
            f"The module cannot take {describe_inputs(X)}: {message(error)}"
            f"{_INTEGERS if isinstance(X, Tree) and 'dtype' in str(error) else ''}"
        ) from error
    model.copies_input = versions != [leaf._version for leaf in leaves_of(first)]
    if outputs.ndim == 0 or outputs.shape[0] != 1:
        remedy = "; use squeeze(-1) in place of squeeze()" if outputs.ndim == 0 else ""
        raise ValueError(
            "The module must return one output for each example along the first axis. "
            f"Got shape {tuple(outputs.shape)} for one example{remedy}."
        )
    # Of several examples: a mask drawn for one may come out the same twice.
    try:
        once, again = (model.evaluate(X[:_N_TRIED]) for _ in range(2))
    except IndexError as error:
        raise ValueError(
            "The module cannot take all examples of X, though it takes the first. "
            f"Indices must be within its tables. Got: {message(error)}"
        ) from error
    if once.shape[0] != len(X[:_N_TRIED]):
        raise ValueError(
            "The module must return one output for each example along the first axis. "
            f"Got shape {tuple(once.shape)} for {len(X[:_N_TRIED])} examples."
        )
    if difference(again, once) > tolerance(once.dtype, 0):
        raise ValueError(
            "The module must give the same output for the same input. Two passes in "
            "eval mode differ; switch off what it keeps from pass to pass, and what it "
            "draws at random, for example F.dropout(x, training=self.training) in "
            "place of F.dropout(x)."
        )
    return ProbeResult(outputs, n_activations + sum(x[0].numel() for x in leaves_of(X)))


def _not_alone(model: FlatModel, X: Inputs, error: ValueError) -> str:
    """Return what is said of a module that refuses one example."""
    try:
        model.evaluate(X[:2])
    except ValueError:
        return f"The module cannot take {describe_inputs(X)}: {message(error)}"
    return (  # F.batch_norm in train mode
        "The module must take one example by itself, for the output for one must not "
        f"depend on the others. Got: {message(error)}"
    )


def _wrong_arguments(module: nn.Module, X: Inputs) -> str | None:
    """Return what is said where X are not the arguments of ``forward``, else None."""
    signature = inspect.signature(module.forward)
    args, kwargs = X.arguments() if isinstance(X, Tree) else ((X,), {})
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        given = f"the names {', '.join(kwargs)}" if kwargs else f"{len(args)} array"
        given += "s" if len(args) > 1 else ""
        return (
            f"The module takes the arguments {', '.join(signature.parameters)}. Got "
            f"{given}: {message(error)}; pass X as a mapping with those names, as a "
            "tuple in their order, or as one array for a module of one argument."
        )
    return None


def trial_indices(n_examples: int) -> Tensor:
    """Return up to 16 examples to try things on: spread, with the last, shuffled.

    Parameters
    ----------
    n_examples : int
        N.

    Returns
    -------
    Tensor of shape (n,)
    """
    spread = torch.linspace(
        0, n_examples - 1, min(_N_TRIED, n_examples), device="cpu"
    ).long()
    rng = torch.Generator().manual_seed(0)
    return spread[torch.randperm(len(spread), generator=rng, device="cpu")]


def check_independence(model: FlatModel, loss: ExampleLoss, chunk: Chunk) -> None:
    """Check that examples are computed by themselves, and one function throughout.

    Outputs of the examples together, of two of them, and of each alone are compared;
    so are the losses, and the gradient of all with the sum of those alone. Outputs
    with a graph are compared with those without one.

    Parameters
    ----------
    model : FlatModel
        Learns whether it computes something else where gradients are switched off.
    loss : ExampleLoss
    chunk : Chunk
        The examples of :func:`trial_indices`.

    Raises
    ------
    ValueError
        If the output, the loss or the gradient of an example depends on the others.
    """
    limit = tolerance(model.params[0].dtype, 0)
    outputs = model.evaluate(chunk.X)
    with torch.enable_grad():
        with_graph = model(chunk.X).detach()
    if difference(outputs, with_graph) > limit:
        model.keeps_graph, outputs = True, with_graph
    if len(chunk.X) == 1:
        return
    alone = [model.evaluate(chunk.X[i : i + 1]) for i in range(len(chunk.X))]
    for output in alone:
        if output.shape != (1, *outputs.shape[1:]):
            raise ValueError(
                "The module must return as much for one example as for each of "
                f"several. Got shape {tuple(outputs.shape)} for {len(outputs)} and "
                f"{tuple(output.shape)} for one; use squeeze(-1) in place of squeeze()."
            )
    single = torch.cat(alone)
    off = max(
        difference(outputs, single), difference(model.evaluate(chunk.X[:2]), single[:2])
    )
    # A deep network in float32 can lose more digits than that.
    if off > limit and _in_float64(model, loss, chunk, _outputs_off) > limit / 10:
        raise ValueError(_seeing_each_other(outputs, single, off))
    with torch.no_grad():
        losses = loss.per_example(outputs, chunk.y)
        apart = [
            loss.per_example(outputs[i : i + 1], chunk.y[i : i + 1])
            for i in range(len(outputs))
        ]
    off = difference(losses, torch.cat(apart))
    if off > limit:
        raise ValueError(
            "The loss of one example must not depend on the others: a risk is a sum "
            f"over examples. Got losses by {loss.name} that change by {off:.1e}, "
            "relative to their size, when each example comes alone. Contrastive "
            "losses and losses that normalise over the batch are none of a risk's."
        )
    _check_gradient(model, loss, chunk, 10 * limit)


def _check_gradient(
    model: FlatModel, loss: ExampleLoss, chunk: Chunk, limit: float
) -> None:
    """Check that there is a gradient, a sum over examples and linear in slopes."""
    try:
        off = _gradient_off(model, loss, chunk)
    except RuntimeError as error:
        raise ValueError(
            "The module must be one that torch.autograd.grad can differentiate, its "
            "checkpoints with use_reentrant=False. Got: "
            f"{first_line(error)}."
        ) from error
    if off > limit:
        off = _in_float64(model, loss, chunk, _gradient_off)
        if off > limit / 10:
            raise ValueError(
                "The gradient over several examples must be the sum of theirs, at any "
                f"weights. Got a difference of {off:.1e}, relative to its size: a "
                "function in the module has another derivative for one example than "
                "for several, or a hook changes or clips the gradient."
            )


def _gradient_off(model: FlatModel, loss: ExampleLoss, chunk: Chunk) -> float:
    """Return how far the gradient of several is from the sum of theirs, at worst."""

    @torch.enable_grad()
    def gradient(part: Chunk, weight: float = 1.0) -> Tensor:
        losses = example_losses(model, loss, part)
        if not losses.requires_grad:
            return torch.zeros_like(model.theta())
        return model.gradient(losses, torch.full_like(losses, weight)) / weight

    alone = torch.zeros_like(model.theta())
    for one in iterate_chunks(chunk.X, chunk.y, None, 1):
        alone += gradient(one)
    sizes = model.layout.sizes
    # A hook that clips is not linear.
    return max(
        difference(gradient(chunk), alone, sizes),
        difference(gradient(chunk, 1024.0), alone, sizes),
    )


def _outputs_off(model: FlatModel, loss: ExampleLoss, chunk: Chunk) -> float:
    """Return how far outputs together are from those alone."""
    X = chunk.X
    alone = [model.evaluate(X[i : i + 1]) for i in range(len(X))]
    return difference(model.evaluate(X), torch.cat(alone))


def _in_float64(
    model: FlatModel,
    loss: ExampleLoss,
    chunk: Chunk,
    off: Callable[[FlatModel, ExampleLoss, Chunk], float],
) -> float:
    """Return a difference in float64; infinite where the module does not allow it."""
    try:
        twin = model.to(torch.float64)
        return off(twin, loss.to(dtype=torch.float64), chunk.double())
    except RuntimeError:
        return float("inf")


def _seeing_each_other(outputs: Tensor, single: Tensor, off: float) -> str:
    """Return what is said of outputs that differ when the examples come alone."""
    rows, others = outputs.flatten(1).double(), single.flatten(1).double()
    nearest = torch.cdist(rows, others).argmin(1)
    ordered = nearest.sort().values
    moved = len(nearest.unique()) == len(rows) and not nearest.equal(ordered)
    if moved and difference(rows, others[nearest]) < off / 100:
        return (
            "The module must return its outputs in the order of X. Got those of "
            f"{len(rows)} examples in another order."
        )
    return (
        "The output for one example must not depend on the others: per-example "
        "gradients and their covariance would not be defined, and the loss would "
        "depend on how the data are cut. Got outputs that change by "
        f"{off:.1e}, relative to their size, when each example comes alone. Look for "
        "statistics of the batch (F.batch_norm with training=True, x.mean(0)), for "
        "recurrent and transformer layers that need batch_first=True, for a capacity "
        "that examples share, and for the nodes of a graph as examples: there an "
        "example is a whole graph, in dense batches of features (N, nodes, f) and "
        "adjacency matrices (N, nodes, nodes)."
    )


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
    _warn_unused_parameters(list(unused))


def _count_activations(model: FlatModel, X: Inputs) -> tuple[Tensor, int]:
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


def _warn_unused_parameters(names: list[str]) -> None:
    """Say which parameters the loss does not depend on.

    Parameters
    ----------
    names : list of str

    Warns
    -----
    UserWarning
        If there are any.
    """
    if names:
        warnings.warn(
            f"The loss does not depend on the parameters {names}: their gᵢ are "
            "zero. Freeze them (requires_grad=False) to leave them out of θ.",
            UserWarning,
            stacklevel=6,
        )
