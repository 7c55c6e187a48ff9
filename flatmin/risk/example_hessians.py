"""Sums over examples of squared Hessians times a vector, by the faster of two kernels.

Vectorised over examples where a trial on a few of them agrees with plain double
backward, one example at a time: a second derivative under ``vmap`` can be wrong without
an error (layer norm, torch 2.13).
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor
from torch.func import grad, jvp

from flatmin.risk.chunks import Chunk, iterate_chunks
from flatmin.risk.double_backward import DoubleBackward
from flatmin.risk.kernels import twice_differentiable
from flatmin.risk.losses import ExampleLoss
from flatmin.risk.model import FlatModel
from flatmin.risk.vectorize import vectorize

__all__ = ["ExampleHessians"]

_N_TRIED = 3


class ExampleHessians:
    """Σ Hᵢ² v over the examples of a chunk, Hᵢ = ∇²ℓ̃ᵢ.

    Parameters
    ----------
    model : FlatModel
    loss : ExampleLoss

    Attributes
    ----------
    path : str or None
        "vmap", or why it is "plain"; None before the first product.
    """

    def __init__(self, model: FlatModel, loss: ExampleLoss) -> None:
        self.model = model
        self.loss = loss
        self.path: str | None = None

    def squared_product(self, theta: Tensor, chunk: Chunk, v: Tensor) -> Tensor:
        """Return Σ Hᵢ(Hᵢv) over a chunk.

        Parameters
        ----------
        theta : Tensor of shape (D,)
        chunk : Chunk
        v : Tensor of shape (D,)

        Returns
        -------
        Tensor of shape (D,)

        Raises
        ------
        OutOfMemoryError
            As it comes: a loop over examples would only hide it.
        """
        if self.path is None:
            self.path = self._try(theta, chunk, v)
        if self.path == "vmap":
            try:
                return self._vectorised(theta, chunk, v)
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, NotImplementedError) as error:
                self.path = f"plain: {type(error).__name__} under vmap: {error}"
        return self._plain(theta, chunk, v)

    def _try(self, theta: Tensor, chunk: Chunk, v: Tensor) -> str:
        n = min(_N_TRIED, len(chunk.X))
        # A weight of zero would hide an example.
        few = Chunk(chunk.X[:n], chunk.y[:n], None, slice(0, n))
        if not self.model.vectorises:
            return "plain: the module does not vectorise"
        try:
            found = self._vectorised(theta, few, v)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, NotImplementedError) as error:
            return f"plain: {type(error).__name__} under vmap: {error}"
        expected = self._plain(theta, few, v)
        difference = float((found - expected).norm())
        tolerance = 1e-3 if theta.dtype == torch.float32 else 1e-8
        if not difference <= tolerance * float(expected.norm()):
            return f"plain: the vectorised product is off by {difference:.1e}"
        return "vmap"

    def _vectorised(self, theta: Tensor, chunk: Chunk, v: Tensor) -> Tensor:
        weights = chunk.X.new_ones(len(chunk.X), dtype=theta.dtype)
        if chunk.weights is not None:
            weights = chunk.weights

        def single(x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
            def value(theta: Tensor) -> Tensor:
                outputs = self.model.functional(theta, x.unsqueeze(0))
                return self.loss.per_example(outputs, y.unsqueeze(0))[0] * weight

            def product(v: Tensor) -> Tensor:
                tangent: Tensor = jvp(grad(value), (theta,), (v,))[1]
                return tangent

            return product(product(v))

        with twice_differentiable(self.model.module), warnings.catch_warnings():
            # Of PyTorch's own use of its old parts, when forward mode first loads.
            warnings.simplefilter("ignore", DeprecationWarning)
            rows = vectorize(single)(chunk.X, chunk.y, weights)
        return rows.sum(0)

    def _plain(self, theta: Tensor, chunk: Chunk, v: Tensor) -> Tensor:
        total = torch.zeros_like(theta)
        for one in iterate_chunks(chunk.X, chunk.y, chunk.weights, 1):
            example = DoubleBackward(self.model, self.loss, theta, one)
            total += example.hvp(example.hvp(v))
        return total

    # A copy of the risk has a model of its own.
    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "path": None}
