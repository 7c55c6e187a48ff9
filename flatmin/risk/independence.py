"""Whether each example is computed by itself, and one function throughout."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from flatmin._utils.columns import as_column
from flatmin._utils.messages import first_line
from flatmin._utils.trees import Inputs, map_inputs
from flatmin.risk.data.chunks import Chunk
from flatmin.risk.data.extremes import unlike_others
from flatmin.risk.example_sums.trial_points import bound, trial_points, trial_scalars
from flatmin.risk.hidden import outputs_off
from flatmin.risk.losses.example_loss import ExampleLoss
from flatmin.risk.network.model import FlatModel
from flatmin.risk.trials import difference, random_like, tells, tolerance

__all__ = ["check_independence", "check_shapes", "off_in_float64"]

# Examples of a whole chunk that are compared with themselves alone.
_N_SPOTS = 64
# Of their size, how far numbers differ that are about alike.
_APART = 1e-3

_Off = Callable[[FlatModel, ExampleLoss, Chunk], float]


def check_shapes(several: Tensor, single: Tensor) -> None:
    """Check that one example's output has the shape that each of several has.

    Parameters
    ----------
    several : Tensor of shape (n, ...)
        Outputs of n examples together.
    single : Tensor of shape (1, ...)
        Of one.

    Raises
    ------
    ValueError
        If it has another.
    """
    if single.shape == (1, *several.shape[1:]):
        return
    n = len(several)
    remedy = "use squeeze(-1) in place of squeeze()"
    if single.shape[1:2] == (1,) and several.shape[1:2] == (n,):
        remedy = (
            "an output that compares each example with every other, as of a "
            "contrastive model, is none of one example's. Measure a model that "
            "returns one example's own numbers, such as its embedding"
        )
    raise ValueError(
        "The module must return as much for one example as for each of several. Got "
        f"shape {tuple(several.shape)} for {n} and {tuple(single.shape)} for one; "
        f"{remedy}."
    )


def check_independence(
    model: FlatModel, loss: ExampleLoss, chunk: Chunk, whole: Chunk
) -> None:
    """Check that examples are computed by themselves, and one function throughout.

    It is tried at the bound θ, and beside it where that hides a part of the network.

    Outputs of the examples together, of two of them, and of each alone are compared;
    so are the losses, and the gradient of all with the sum of those alone. Outputs
    with a graph are compared with those without one. A BatchNorm that takes the
    statistics of its input is given those of the chunk, once for all. Outputs and
    losses among as many examples as are ever worked on at a time are compared, too.

    Parameters
    ----------
    model : FlatModel
        Learns whether it computes something else where gradients are switched off.
    loss : ExampleLoss
    chunk : Chunk
        The examples of :func:`trial_examples`.
    whole : Chunk
        As many as are ever worked on at a time.

    Raises
    ------
    ValueError
        If the output, the loss or the gradient of an example depends on the others.
    """
    for theta in trial_points(model, trial_scalars(model, loss, chunk)):
        with bound(model, theta):
            _check_bound(model, loss, chunk, whole)


def _check_bound(
    model: FlatModel, loss: ExampleLoss, chunk: Chunk, whole: Chunk
) -> None:
    """Check independence at the bound θ."""
    limit = tolerance(model.precision, 0)
    outputs = model.evaluate(chunk.X)
    with torch.enable_grad():
        with_graph = model(chunk.X).detach()
    if outputs_off(outputs, with_graph, loss, chunk.y) > limit:
        model.keeps_graph, outputs = True, with_graph
    if model.normalises_batch:  # and nothing else may let examples see each other
        model = model.frozen_at(chunk.X)
        outputs = model.evaluate(chunk.X)
    if len(chunk.X) == 1:
        return
    alone = [model.evaluate(chunk.X[i : i + 1]) for i in range(len(chunk.X))]
    for output in alone:
        check_shapes(outputs, output)
    single = torch.cat(alone)
    two = outputs_off(model.evaluate(chunk.X[:2]), single[:2], loss, chunk.y[:2])
    off = max(outputs_off(outputs, single, loss, chunk.y), two)
    # A deep network in float32 can lose more digits than that.
    if off > limit and off_in_float64(model, loss, chunk, _outputs_off) > limit / 10:
        raise ValueError(_seeing_each_other(outputs, single, off))
    _check_losses(loss, outputs, chunk.y)
    _check_crowds(model, loss, chunk, whole)
    _check_gradient(model, loss, chunk, 10 * limit)


@torch.no_grad()
def _check_losses(loss: ExampleLoss, outputs: Tensor, y: Tensor) -> None:
    """Check that the loss of an example does not depend on those that it comes with."""
    spots, limit = _spots(outputs, y), tolerance(outputs.dtype, 0)

    def off_by(loss: ExampleLoss, outputs: Tensor, y: Tensor) -> float:
        together = loss.per_example(outputs, y)[spots]
        alone = [loss.per_example(outputs[i : i + 1], y[i : i + 1]) for i in spots]
        return difference(together, torch.cat(alone))

    off = off_by(loss, outputs, y)
    if off > limit:  # a difference of large numbers may be rounding
        exact = loss.to(dtype=torch.float64)
        targets = y.double() if y.is_floating_point() else y
        with suppress(RuntimeError):  # it may take one dtype only
            off = min(off, 10 * off_by(exact, outputs.double(), targets))
    if off > limit:
        raise ValueError(
            "The loss of one example must not depend on the others: a risk is a sum "
            f"over examples. Got losses by {loss.name} that change by {off:.1e}, "
            "relative to their size, when each example comes alone and not among "
            f"{len(outputs)}. Contrastive losses, losses that normalise over the batch "
            "(as by the number of its positives), and those that choose in it (the "
            "hardest examples) are none of a risk's."
        )


def _check_crowds(
    model: FlatModel, loss: ExampleLoss, few: Chunk, whole: Chunk
) -> None:
    """Check outputs among as many examples as are ever worked on at a time.

    What examples share may run out among many alone, such as the places of an expert.
    A crowd of copies of one example asks for more of it than the data do, and at any θ.

    Raises
    ------
    ValueError
        If they are not those of the example alone.
    """
    n, limit = len(whole.X), tolerance(model.precision, 0)
    one = _example_of_a_crowd(model, few)
    trials: dict[str, tuple[Chunk, _Off]] = {}
    trials[f"{n} copies of one"] = one, partial(_crowd_off, n)
    if n > len(few.X):  # the few were together before
        trials[f"{n} others"] = whole, _spots_off
    for among, (chunk, off_by) in trials.items():
        off = off_by(model, loss, chunk)
        if off > limit and off_in_float64(model, loss, chunk, off_by) > limit / 10:
            raise ValueError(_DEPENDS + _AMONG.format(among=among, off=off) + _CAUSES)


def _example_of_a_crowd(model: FlatModel, few: Chunk) -> Chunk:
    """Return one example, with positions that are all alike where it has positions."""
    one = Chunk(few.X[:1], few.y[:1], None, slice(0, 1))
    alike = replace(one, X=map_inputs(_alike_positions, one.X))
    try:
        told = tells(model.evaluate(alike.X))
    except torch.OutOfMemoryError:
        raise
    except Exception:  # no such example may exist
        told = False
    return alike if told else one


def _alike_positions(leaf: Tensor) -> Tensor:
    """Return an example with one number throughout, unless it has no positions."""
    # Where numbers may differ, they do by a thousandth: experts are asked as by equal
    # ones, and no position is chosen among equal ones by rounding, as by argmax.
    if leaf.ndim < 2 or leaf.dtype == torch.bool or leaf.is_complex():
        return leaf
    if leaf.is_floating_point():
        if leaf.ndim == 2:  # features
            return leaf
        value = leaf.flatten(1).amax(1)
        if not leaf.equal(leaf.round()):  # a mask has whole numbers
            shifts = random_like(leaf, 0)
            apart = leaf.abs().max() * _APART / shifts.abs().max() * shifts
            return as_column(value, leaf) + apart
    else:  # the smallest index is within every table
        # PyTorch stores uint16, uint32 and uint64, and finds no minimum of them.
        value = leaf.flatten(1).long().amin(1).to(leaf.dtype)
    return as_column(value, leaf).expand_as(leaf).clone()


def _crowd_off(n: int, model: FlatModel, loss: ExampleLoss, one: Chunk) -> float:
    """Return how far outputs of n copies of an example are from those of it alone."""
    alone = model.evaluate(one.X)
    copies = torch.zeros(n, dtype=torch.long, device=alone.device)
    crowd = model.evaluate(one.X[copies])
    check_shapes(crowd, alone)
    y = one.y[copies.to(one.y.device)]
    return outputs_off(crowd, alone.expand_as(crowd), loss, y)


def _spots_off(model: FlatModel, loss: ExampleLoss, chunk: Chunk) -> float:
    """Return how far outputs of some examples among all are from those alone."""
    spots = _spots(chunk.X, chunk.y)
    outputs = model.evaluate(chunk.X)
    _check_losses(loss, outputs, chunk.y)
    alone = [model.evaluate(chunk.X[i : i + 1]) for i in spots]
    return outputs_off(outputs[spots], torch.cat(alone), loss, chunk.y[spots])


def _spots(X: Inputs, y: Tensor) -> list[int]:
    """Return examples to look at alone: some spread ones, and those unlike the rest."""
    n = len(y)
    if n <= _N_SPOTS:
        return list(range(n))
    spread = torch.linspace(0, n - 1, _N_SPOTS, device="cpu").long().tolist()
    return sorted({*spread, *unlike_others(X), *unlike_others(y)})


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
        off = off_in_float64(model, loss, chunk, _gradient_off)
        if off > limit / 10:
            raise ValueError(
                "The gradient over several examples must be the sum of theirs, at any "
                f"weights. Got a difference of {off:.1e}, relative to its size: a "
                "function in the module has another derivative for one example than "
                "for several, or a hook changes or clips the gradient."
            )


def _gradient_off(model: FlatModel, loss: ExampleLoss, chunk: Chunk) -> float:
    """Return how far the gradient of several is from the sum of theirs, at worst."""
    # The examples get random weights, because at a minimum their plain sum is rounding.
    n = len(chunk.X)
    weights = 1 + random_like(model.theta().new_empty(n), 0)
    scalars = trial_scalars(model, loss, chunk)  # of a fitted loss slopes are rounding

    @torch.enable_grad()
    def gradient(spots: Tensor, factor: float = 1.0) -> Tensor:
        part = scalars[spots]
        values = part.of(model(part.X))
        if not values.requires_grad:
            return torch.zeros_like(model.theta())
        slopes = (factor * weights[spots]).to(values)
        return model.gradient(values, slopes) / factor

    spots, sizes = torch.arange(n, device=weights.device), model.layout.sizes
    half = spots[: n // 2]
    alone = torch.zeros_like(model.theta())
    for i in half:
        alone += gradient(i[None])
    # With slopes 1024 times as large a hook that clips the gradient is seen; where
    # examples come twice, so is what goes by how often it meets an index.
    twice = difference(gradient(half.repeat(2), 1024.0), 2 * alone, sizes)
    for i in spots[len(half) :]:
        alone += gradient(i[None])
    return max(difference(gradient(spots), alone, sizes), twice)


def _outputs_off(model: FlatModel, loss: ExampleLoss, chunk: Chunk) -> float:
    """Return how far outputs together are from those alone."""
    X = chunk.X
    alone = [model.evaluate(X[i : i + 1]) for i in range(len(X))]
    return outputs_off(model.evaluate(X), torch.cat(alone), loss, chunk.y)


def off_in_float64(
    model: FlatModel, loss: ExampleLoss, chunk: Chunk, off: _Off
) -> float:
    """Return a difference in float64; infinite where the module does not allow it.

    Parameters
    ----------
    model : FlatModel
    loss : ExampleLoss
    chunk : Chunk
    off : callable
        Model, loss and chunk to the difference.

    Returns
    -------
    float
    """
    try:
        twin = model.to(torch.float64)
        return off(twin, loss.to(dtype=torch.float64), chunk.double())
    except RuntimeError:
        return float("inf")


def _seeing_each_other(outputs: Tensor, single: Tensor, off: float) -> str:
    """Return what is said of outputs that differ when the examples come alone."""
    n = len(outputs)
    rows, others = (part.reshape(n, -1).double() for part in (outputs, single))
    nearest = torch.cdist(rows, others).argmin(1)
    ordered = nearest.sort().values
    moved = len(nearest.unique()) == len(rows) and not nearest.equal(ordered)
    if moved and difference(rows, others[nearest]) < off / 100:
        return (
            "The module must return its outputs in the order of X. Got those of "
            f"{len(rows)} examples in another order."
        )
    return _DEPENDS + _ALONE.format(off=off) + _CAUSES


_DEPENDS = (
    "The output for one example must not depend on the others: per-example gradients "
    "and their covariance would not be defined, and the loss would depend on how the "
    "data are cut. "
)
_ALONE = (
    "Got outputs that change by {off:.1e}, relative to their size, when each example "
    "comes alone. "
)
_AMONG = (
    "Got outputs that change by {off:.1e}, relative to their size, when an example "
    "comes among {among} and not alone. "
)
_CAUSES = (
    "Look for statistics of the batch (F.batch_norm with training=True, x.mean(0)), "
    "which only an nn.BatchNorm layer may take, with batch_norm='batch'; for recurrent "
    "and transformer layers that need batch_first=True, for a capacity that examples "
    "share, as experts have (switch it off, or make it as large as all tokens of a "
    "chunk), and for the nodes of a graph as examples: there an example is a whole "
    "graph, in dense batches of features (N, nodes, f) and adjacency matrices "
    "(N, nodes, nodes)."
)
