"""Which of two implementations of a product a risk uses.

The *traced* one runs a kernel of :mod:`flatmin.risk.linear_kernels` as a graph in two
stages, of which only the second is paid for each product. The *plain* one is double
backward. A trial on the first chunk decides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from flatmin.risk.chunks import Chunk, pad_chunk
from flatmin.risk.double_backward import DoubleBackward
from flatmin.risk.kernels import twice_differentiable
from flatmin.risk.linear_kernels import LINEAR_KERNELS
from flatmin.risk.losses import ExampleLoss
from flatmin.risk.model import FlatModel
from flatmin.risk.two_stage import TwoStage, trace_in_two

__all__ = ["Traces", "pad_direction", "unpad"]

# Numbers that N examples' activations and parameters come to, from which a trace pays.
# Tracing takes some 0.5 s for a small network whatever the data, and saves half of
# each product's time.
_WORTH_TRACING = 1 << 24


class Traces:
    """The traced kernels of one risk: made, and tried, when first asked for.

    Parameters
    ----------
    model : FlatModel
    loss : ExampleLoss
    chunk_size : int
        Examples in every chunk that a trace will see.
    work : int
        Numbers that one pass over all data computes, about.

    Attributes
    ----------
    paths : dict of str to str
        For each quantity that was asked for, "traced", or why it is "plain".
    graphs : dict of str to TwoStage
        Of the traced ones.
    """

    def __init__(
        self, model: FlatModel, loss: ExampleLoss, chunk_size: int, work: int
    ) -> None:
        self.model = model
        self.loss = loss
        self.chunk_size = chunk_size
        self.work = work
        self.paths: dict[str, str] = {}
        self.graphs: dict[str, TwoStage] = {}

    def find(self, quantity: str, theta: Tensor, chunk: Chunk) -> TwoStage | None:
        """Return the traced kernel, or None where the plain path is to be taken.

        Parameters
        ----------
        quantity : str
            A key of :data:`flatmin.risk.linear_kernels.LINEAR_KERNELS`.
        theta : Tensor of shape (D,)
            Where a trial is made.
        chunk : Chunk
            Of the data, for a trial.

        Returns
        -------
        TwoStage or None
        """
        if quantity not in self.paths:
            self.paths[quantity] = self._try(quantity, theta, chunk)
        return self.graphs.get(quantity)

    def _try(self, quantity: str, theta: Tensor, chunk: Chunk) -> str:
        if self.work < _WORTH_TRACING:
            return "plain: too little work for a trace to pay"
        # A weight of zero would hide an example, and with it a difference.
        chunk = replace(chunk, weights=None)
        padded = pad_chunk(chunk, self.chunk_size)
        plain = getattr(DoubleBackward(self.model, self.loss, theta, chunk), quantity)
        probes = self._probes(quantity, chunk)
        try:
            with twice_differentiable(self.model.module):
                graph = trace_in_two(
                    partial(LINEAR_KERNELS[quantity], self.model, self.loss),
                    theta,
                    pad_direction(quantity, probes[0], self.chunk_size),
                    *padded,
                )
        except torch.OutOfMemoryError:
            raise
        # Whatever a module does that cannot be traced, such as a branch on its data,
        # the plain path may be able to.
        except Exception as error:
            return f"plain: {type(error).__name__} while tracing: {error}"
        if any(self.model.holds(constant) for constant in graph.constants):
            return "plain: the module reads its parameters past θ, as a checkpoint does"
        kept = graph.prepare(theta, *padded)

        def traced(direction: Tensor) -> Tensor:
            direction = pad_direction(quantity, direction, self.chunk_size)
            return unpad(quantity, graph.use(*kept, direction), len(chunk.X))

        first = plain(probes[0])
        difference = _relative(traced(probes[0]) - first, first)
        tolerance = 1e-3 if theta.dtype == torch.float32 else 1e-8
        if not difference <= tolerance:
            right = (
                quantity in ("hvp", "ggn")
                and _asymmetry(plain, probes) > tolerance
                and _asymmetry(traced, probes) <= tolerance
            )
            if not right:
                return f"plain: the traced product differs by {difference:.1e} from it"
        self.graphs[quantity] = graph
        return "traced"

    def _probes(self, quantity: str, chunk: Chunk) -> list[Tensor]:
        """Return two fixed random directions."""
        theta = self.model.values()
        like = self.model(chunk.X).detach() if quantity == "vjp" else theta
        rng = torch.Generator(device=theta.device).manual_seed(0)
        return [
            torch.randn(like.shape, generator=rng, dtype=like.dtype, device=like.device)
            for _ in range(2)
        ]

    def give_up(self, quantity: str, error: Exception) -> None:
        """Take the plain path from now on.

        Parameters
        ----------
        quantity : str
        error : Exception
            What the traced kernel raised on other data than those of the trial.
        """
        del self.graphs[quantity]
        self.paths[quantity] = f"plain: {type(error).__name__} in the trace: {error}"

    # A copy of the risk has a model of its own, and a graph does not pickle.
    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "paths": {}, "graphs": {}}


def pad_direction(quantity: str, direction: Tensor, size: int) -> Tensor:
    """Fill up what has one row an example, as the chunk is filled up.

    Parameters
    ----------
    quantity : str
    direction : Tensor
        For "vjp" of shape (n, \\*output_shape), else (D,).
    size : int
        Examples in a chunk.

    Returns
    -------
    Tensor
    """
    missing = size - len(direction)
    if quantity != "vjp" or missing == 0:
        return direction
    return torch.cat([direction, direction.new_zeros(missing, *direction.shape[1:])])


def unpad(quantity: str, product: Tensor, size: int) -> Tensor:
    """Leave out the rows of what the chunk was filled up with.

    Parameters
    ----------
    quantity : str
    product : Tensor
    size : int
        Examples that the chunk really has.

    Returns
    -------
    Tensor
    """
    if quantity in ("jvp", "directional_derivatives"):
        return product[:size]
    return product


def _relative(difference: Tensor, reference: Tensor) -> float:
    norm = reference.norm()
    return float(difference.norm() / norm) if norm else float(difference.norm())


def _asymmetry(product: Callable[[Tensor], Tensor], probes: list[Tensor]) -> float:
    """Return |aᵀHb - bᵀHa| relative to the products."""
    a, b = probes
    Ha, Hb = product(a), product(b)
    scale = float(b.norm() * Ha.norm() + a.norm() * Hb.norm())
    return abs(float(b @ Ha - a @ Hb)) / scale if scale else 0.0
