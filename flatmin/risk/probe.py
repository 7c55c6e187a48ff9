"""What a few examples tell about a module: does all fit, and what does it need."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor, nn

from flatmin._utils.messages import message
from flatmin._utils.trees import Inputs, Tree, describe_inputs, leaves_of, map_inputs
from flatmin.risk.autodiff.plain_mode import PlainMode
from flatmin.risk.data.chunks import Chunk
from flatmin.risk.data.example_data import ArrayData, ExampleData
from flatmin.risk.data.extremes import unlike_others
from flatmin.risk.data.inputs import channels_last
from flatmin.risk.data.opened_data import N_TRIED, trial_indices
from flatmin.risk.example_sums.scalars import example_losses
from flatmin.risk.independence import check_shapes
from flatmin.risk.losses.example_loss import ExampleLoss
from flatmin.risk.network.model import FlatModel
from flatmin.risk.trials import difference, tolerance

__all__ = [
    "ProbeResult",
    "check_dependence",
    "choose_strides",
    "enough_examples",
    "probe_example",
    "share_of_activations",
    "trial_chunk",
    "trial_examples",
]

_ENOUGH_NUMBERS = 1 << 20
_INTEGERS = (
    ". In a mapping or a tuple integers stay integers: convert to float those that are "
    "no indices."
)


@dataclass(frozen=True)
class ProbeResult:
    """What the first example told, or the first few."""

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
    by_rows = map_inputs(Tensor.contiguous, X[:2])
    norms = _NormsOfImages()
    try:
        right = model.evaluate(by_rows)
        with torch.enable_grad(), norms:
            found = model(fast[:2]).detach()
    except RuntimeError:  # many a module calls view() behind a convolution
        return map_inputs(Tensor.contiguous, X), True
    except (TypeError, ValueError):  # comes again when one example is looked at
        return X, False
    # Half of the digits, since convolutions round otherwise there.
    limit = torch.finfo(model.dtype).eps ** 0.5
    if norms.any_crashes or difference(found, right) > limit:
        return map_inputs(Tensor.contiguous, X), True
    return fast, False


class _NormsOfImages(PlainMode):
    """Sees a GroupNorm whose derivative ends Python.

    Of an input that lies channels-last and needs no gradient itself (torch 2.13).
    """

    any_crashes = False

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is torch.ops.aten.native_group_norm.default:
            images = args[0]
            if not images.requires_grad and not images.is_contiguous():
                self.any_crashes = True
        return func(*args, **(kwargs or {}))


def probe_example(model: FlatModel, X: Inputs) -> ProbeResult:
    """Run one example through the module, and check that the two fit.

    Where BatchNorm takes the statistics of its input, it runs the first few.

    Parameters
    ----------
    model : FlatModel
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

    Warns
    -----
    UserWarning
        If it takes a name of X among any others, and does nothing with it.
    """
    first = X[: N_TRIED if model.normalises_batch else 1]
    n = len(first)
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
    if outputs.ndim == 0 or outputs.shape[0] != n:
        remedy = "; use squeeze(-1) in place of squeeze()" if outputs.ndim == 0 else ""
        some = "one example" if n == 1 else f"{n} examples"
        raise ValueError(
            "The module must return one output for each example along the first axis. "
            f"Got shape {tuple(outputs.shape)} for {some}{remedy}."
        )
    # Several examples, because a random mask of one may come out the same twice.
    try:
        once, again = (model.evaluate(X[:N_TRIED]) for _ in range(2))
    except IndexError as error:
        raise ValueError(
            "The module cannot take all examples of X, though it takes the first. "
            f"Indices must be within its tables. Got: {message(error)}"
        ) from error
    if once.shape[0] != len(X[:N_TRIED]):
        raise ValueError(
            "The module must return one output for each example along the first axis. "
            f"Got shape {tuple(once.shape)} for {len(X[:N_TRIED])} examples."
        )
    check_shapes(once, outputs[:1])
    if difference(again, once) > tolerance(once.dtype, 0):
        raise ValueError(
            "The module must give the same output for the same input. Two passes in "
            "eval mode differ; switch off what it keeps from pass to pass, and what it "
            "draws at random, for example F.dropout(x, training=self.training) in "
            "place of F.dropout(x)."
        )
    if isinstance(X, Tree):
        _warn_ignored_names(model, X[:N_TRIED], once)
    n_numbers = -(-n_activations // n) + sum(x[0].numel() for x in leaves_of(X))
    return ProbeResult(outputs[:1], n_numbers)


def _not_alone(model: FlatModel, X: Inputs, error: ValueError) -> str:
    """Return what is said of a module that refuses one example, or the first few."""
    cannot = f"The module cannot take {describe_inputs(X)}: {message(error)}"
    if model.normalises_batch:
        if "more than 1 value per channel" not in str(error):
            return cannot
        return (
            "With batch_norm='batch' a BatchNorm needs more than one number of each "
            f"channel. Got {describe_inputs(X)}: {message(error)}; give more examples, "
            "or use batch_norm='frozen'."
        )
    try:
        model.evaluate(X[:2])
    except ValueError:
        return cannot
    return (  # F.batch_norm in train mode
        "The module must take one example by itself, for the output for one must not "
        f"depend on the others. Got: {message(error)}. Statistics of a batch may be "
        "those of an nn.BatchNorm layer, with batch_norm='batch'."
    )


def _wrong_arguments(module: nn.Module, X: Inputs) -> str | None:
    """Return what is said where X are not the arguments of ``forward``, else None."""
    signature = _signature(module)
    args, kwargs = X.arguments() if isinstance(X, Tree) else ((X,), {})
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        given = f"the names {', '.join(kwargs)}" if kwargs else f"{len(args)} array"
        given += "s" if len(args) > 1 else ""
        return (
            f"The module takes the arguments {', '.join(signature.parameters)}. Got "
            f"{given}: {message(error)}; pass X as a mapping with those names, as a "
            "tuple in their order, or as one array for a module of one argument. One "
            "that takes a mapping, or a tuple, itself gets X=(mapping,)."
        )
    return None


def _signature(module: nn.Module) -> inspect.Signature:
    try:
        return inspect.signature(module.forward)
    except ValueError:  # a function in C does not tell: let any arguments pass
        return inspect.signature(lambda *_args, **_kwargs: None)


def _warn_ignored_names(model: FlatModel, X: Tree, outputs: Tensor) -> None:
    """Say which names ``forward`` takes by ``**kwargs`` and does nothing with."""
    known, given = _signature(model.module).parameters, X.arguments()[1]
    names = [name for name in given if name not in known]
    for name in names if len(names) < len(given) else ():
        if torch.equal(model.evaluate(X.without(name)), outputs):
            warnings.warn(
                f"X[{name!r}] has no effect on the outputs, and {name} is none of the "
                f"arguments of the module: {', '.join(known)}. Leave it out, or give "
                "it the name that it has there.",
                UserWarning,
                stacklevel=7,
            )


def trial_examples(examples: ExampleData, model: FlatModel) -> Tensor:
    """Return the indices of up to 16 examples, of those that count if there are any.

    Parameters
    ----------
    examples : ExampleData
    model : FlatModel
        Where it takes the statistics of a batch all examples count.

    Returns
    -------
    Tensor of shape (n,)
    """
    weights = None if model.normalises_batch else examples.weights
    if weights is None or not bool(weights.any()):
        return trial_indices(len(examples))
    counting = weights.cpu().nonzero().flatten()
    return counting[trial_indices(len(counting))]


def trial_chunk(examples: ExampleData, size: int) -> Chunk:
    """Return as many examples as are ever worked on at a time.

    Parameters
    ----------
    examples : ExampleData
    size : int

    Returns
    -------
    Chunk
        Of what is held in memory those unlike the others, and spread ones; of a data
        set that is read the first.
    """
    n = len(examples)
    if size >= n or not isinstance(examples, ArrayData):
        return next(examples.iterate(size))
    odd = torch.tensor(unlike_others(examples.X), dtype=torch.long, device="cpu")
    spread = torch.linspace(0, n - 1, size, device="cpu").long()
    some = torch.cat([odd, spread])[:size]
    return replace(examples.select(some.to(examples.y.device)), weights=None)


def enough_examples(few: Chunk, model: FlatModel, n_numbers: int) -> Chunk:
    """Return as many examples as tell whether second derivatives are right.

    They are tried in float64, by several passes. The more numbers an example has in its
    layers, the more it shows of each function there: two examples at least, and a
    million numbers.

    Parameters
    ----------
    few : Chunk
    model : FlatModel
        Where it takes the statistics of a batch all examples count.
    n_numbers : int
        Input and activations of one example.

    Returns
    -------
    Chunk
    """
    if model.normalises_batch:
        return few
    return few.first(max(2, -(-_ENOUGH_NUMBERS // n_numbers)))


def check_dependence(
    model: FlatModel, loss: ExampleLoss, examples: ExampleData, size: int
) -> None:
    """Warn about parameters that no example's loss depends on.

    Parameters
    ----------
    model : FlatModel
    loss : ExampleLoss
    examples : ExampleData
        Read until every parameter has been seen at work.
    size : int
        How many at a time.

    Raises
    ------
    ValueError
        If the loss depends on none.
    """
    unused = dict(zip(model.layout.names, model.params, strict=True))
    # The first example may do, if it has a loss of its own.
    alone = size if model.normalises_batch else 1
    first = islice(examples.iterate(alone), 1)
    for chunk in chain(first, examples.iterate(size)):
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


@torch.enable_grad()
def share_of_activations(model: FlatModel, X: Inputs) -> float:
    """Return the part of the numbers in all layers that depends on θ.

    Parameters
    ----------
    model : FlatModel
        Such as a block of another: of a layer near the outputs it is a small part.
    X : Tensor of shape (n, ...) or Tree

    Returns
    -------
    float
        1 where no layer tells.
    """
    with _activations(model) as found:
        model(X)
    total = sum(tensor.numel() for tensor in found)
    depends = sum(tensor.numel() for tensor in found if tensor.requires_grad)
    return depends / total if total else 1.0


def _count_activations(model: FlatModel, X: Inputs) -> tuple[Tensor, int]:
    """Return the outputs for X, and how many numbers the layers in between hold."""
    with _activations(model) as found, torch.no_grad():
        outputs = model(X)
    return outputs, sum(tensor.numel() for tensor in found)


@contextmanager
def _activations(model: FlatModel) -> Iterator[list[Tensor]]:
    """Collect what the layers return."""
    found: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, outputs: Any) -> None:
        tensors = outputs if isinstance(outputs, tuple) else (outputs,)
        found.extend(t for t in tensors if isinstance(t, Tensor))

    leaves = [part for part in model.module.modules() if not any(part.children())]
    handles = [leaf.register_forward_hook(keep) for leaf in leaves]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _warn_unused_parameters(names: list[str]) -> None:
    """Say which parameters the loss does not depend on.

    Parameters
    ----------
    names : list of str

    Warns
    -----
    UserWarning
        With the names.
    """
    warnings.warn(
        f"The loss does not depend on the parameters {names}: their gᵢ are zero. "
        "Freeze them (requires_grad=False) to leave them out of θ; or, where the "
        "module returns several tensors, say by output_transform which it is.",
        UserWarning,
        stacklevel=7,
    )
