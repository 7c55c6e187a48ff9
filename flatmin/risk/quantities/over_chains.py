"""The words of an empirical risk at many θ at once, each under its own name.

Where a chain is small enough and ``vmap`` is right for the module, blocks of chains go
through the network together; else one chain after the other goes through the words of
a single θ. What is random is drawn before, so that both give the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from flatmin.risk.arguments import as_direction, check_products
from flatmin.risk.autodiff.precision import in_full_float32
from flatmin.risk.autodiff.surroundings import alone
from flatmin.risk.chains.kernels import ChainChunk, chain_outputs, chain_rows, share
from flatmin.risk.chains.ways import SUMS
from flatmin.risk.data.chunks import Chunk
from flatmin.risk.example_sums.moments import (
    Moments,
    mean_and_squares,
    merge_moments,
    squared_row_norms,
)
from flatmin.risk.example_sums.scalars import inner_products
from flatmin.risk.label_noise import (
    LabelDraw,
    check_draw,
    label_roots,
)
from flatmin.risk.products.gauss_newton import weighted_root
from flatmin.risk.quantities.chain_gradients import ChainGradients
from flatmin.risk.quantities.chain_linearization import ChainLinearization

__all__ = ["OverChains"]


class OverChains(ChainGradients):
    """All words: those of gradients, per-example sums, and second derivatives."""

    def _own_rows(self, theta: Tensor) -> Iterator[Tensor]:
        """See :meth:`flatmin.EmpiricalRisk.per_example_gradients`."""
        with self._lock:
            thetas, chains = self._flat(theta)
            theta = thetas.view(*chains, -1)
        most = self._ways.examples_at_a_time(SUMS, len(thetas))
        chunks = self.risk._chunks(min(most, self.risk._row_chunk_size))
        while True:
            # Not held between, as in the word of a single θ.
            with self._lock:
                chunk = next(chunks, None)
                if chunk is None:
                    return
                rows = self._rows(theta, chunk)
            yield rows

    @in_full_float32
    def squared_norms(self, theta: Tensor) -> Tensor:
        """See :meth:`flatmin.EmpiricalRisk.squared_norms`."""
        thetas, chains = self._flat(theta)

        def of(some: Tensor, chunk: Chunk) -> Tensor:
            return squared_row_norms(self._loss_rows(some, chunk)[1])

        norms = self._examples(thetas, of, lambda: self._apart("squared_norms", thetas))
        return norms.view(*chains, -1)

    @alone
    def value_gradient_and_variances(
        self, theta: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See :meth:`flatmin.EmpiricalRisk.value_gradient_and_variances`."""
        thetas, chains = self._flat(theta)
        moments = self.risk._moments(thetas)
        variances = moments.centred_squares / self.risk.n_examples
        value, mean = self._penalised(moments.value, moments.mean, thetas)
        dtype = self.risk.dtype
        return (
            *self._result(value.to(dtype), mean.to(dtype), chains),
            variances.view(*chains, -1),
        )

    @in_full_float32
    def _gauss_newton_sweeps(self, theta: Tensor, z: Tensor) -> Tensor:
        thetas, chains = self._flat(theta)
        risk = self.risk
        z = z.flatten(1, len(chains)).transpose(0, 1)  # (C, k, N, ...)

        def of(some: Tensor, chunk: Chunk, z: Tensor) -> Tensor:
            shared = share(chunk, len(some))
            with torch.set_grad_enabled(risk.keeps_graph):
                outputs = chain_outputs(risk._model, some, shared).detach()
            others = shared.examples.targets_and_weights
            squares = []
            for own in z[:, :, chunk.rows].unbind(1):
                u = weighted_root(
                    risk._loss.sign_product, outputs, own.flatten(0, 1), *others
                )
                squares.append(self._squares(some, shared, u))
            return torch.stack(squares, -1)

        def apart() -> Tensor:
            pairs = zip(thetas, z, strict=True)
            return torch.stack([risk._gauss_newton_sweeps(*pair).mT for pair in pairs])

        squares = self._examples(thetas, of, apart, z)
        return squares.movedim(-1, 0).reshape(z.shape[1], *chains, -1)

    @in_full_float32
    def label_traces(self, theta: Tensor, draw: LabelDraw) -> Tensor:
        """See :meth:`flatmin.EmpiricalRisk.label_traces`."""
        check_draw(draw)
        thetas, chains = self._flat(theta)
        risk = self.risk

        def of(some: Tensor, chunk: Chunk) -> Tensor:
            shared = share(chunk, len(some))
            y, shape = shared.examples.y, risk.output_shape
            squares = [
                self._squares(some, shared, shared.examples.weigh(root))
                for root in label_roots(risk._loss, y, shape, draw, risk.dtype)
            ]
            return torch.stack(squares).sum(0)

        def apart() -> Tensor:
            return torch.stack([risk.label_traces(theta, draw) for theta in thetas])

        return self._examples(thetas, of, apart).view(*chains, -1)

    def linearize(
        self, theta: Tensor, *, select: Any = None, n_products: int | None = None
    ) -> ChainLinearization:
        """See :meth:`flatmin.EmpiricalRisk.linearize`."""
        check_products(n_products)
        if select is not None:
            raise ValueError(
                f"select={select!r} takes one θ of shape (D,). Got θ of shape "
                f"{tuple(theta.shape)}. Take one chain after the other."
            )
        thetas, chains = self._flat(theta)
        return ChainLinearization(self.risk, thetas.clone(), chains)

    @in_full_float32
    def squared_hessian_product(self, theta: Tensor, v: Tensor) -> Tensor:
        """See :meth:`flatmin.EmpiricalRisk.squared_hessian_product`."""
        thetas, chains = self._flat(theta)
        v = as_direction(v, "v", tuple(theta.shape), self.risk._uniform)
        pairs = zip(thetas, v.reshape(thetas.shape), strict=True)
        products = [self.risk.squared_hessian_product(*pair) for pair in pairs]
        return torch.stack(products).view(*chains, -1)

    @in_full_float32
    def covariance_trace_gradient(self, theta: Tensor) -> Tensor:
        """See :meth:`flatmin.EmpiricalRisk.covariance_trace_gradient`."""
        thetas, chains = self._flat(theta)
        gradients = [self.risk.covariance_trace_gradient(t) for t in thetas]
        return torch.stack(gradients).view(*chains, -1)

    @in_full_float32
    def value_gradient_and_product(
        self, theta: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See :meth:`flatmin.EmpiricalRisk.value_gradient_and_product`."""
        # The risk's, which is of the examples of all ranks.
        value, gradient = self.risk.value_and_gradient(theta)
        return value, gradient, self.linearize(theta).unchecked_hvp(gradient)

    def _examples(
        self,
        thetas: Tensor,
        of: Callable[..., Tensor],
        apart: Callable[[], Tensor],
        *tensors: Tensor,
    ) -> Tensor:
        """Return numbers of each example in each chain, (C, N, ...), from rows."""
        size = min(self.risk._row_chunk_size, self._n())

        def together() -> Tensor:
            parts = []
            for chunk in self.risk._chunks(size):
                blocks = self._ways.blocks(SUMS, size, thetas, *tensors)
                parts.append(torch.cat([of(b[0], chunk, *b[1:]) for b in blocks]))
            return torch.cat(parts, 1)

        return self._ways.compute(SUMS, size, thetas, together=together, apart=apart)

    @in_full_float32
    def _moments(self, theta: Tensor) -> Moments:
        thetas, chains = self._flat(theta)
        risk = self.risk
        size = min(risk._row_chunk_size, self._n())

        def of(some: Tensor, chunk: Chunk) -> tuple[Tensor, ...]:
            values, rows = self._loss_rows(some, chunk)
            return values.mean(1, dtype=torch.float64), *mean_and_squares(rows)

        def of_chunk(chunk: Chunk) -> Moments:
            blocks = self._ways.blocks(SUMS, size, thetas)
            parts = zip(*(of(some, chunk) for (some,) in blocks), strict=True)
            return Moments(len(chunk.X), *map(torch.cat, parts))

        def apart() -> Moments:
            parts = zip(*(risk._moments(theta)[1:] for theta in thetas), strict=True)
            return Moments(len(risk._data), *map(torch.stack, parts))

        moments = self._ways.compute(
            SUMS,
            size,
            thetas,
            together=lambda: merge_moments(map(of_chunk, risk._chunks(size))),
            apart=apart,
        )
        n, value, *spread = moments
        return Moments(
            n, value.view(chains), *(part.view(*chains, -1) for part in spread)
        )

    @in_full_float32
    def _rows(self, theta: Tensor, chunk: Chunk) -> Tensor:
        risk, n = self.risk, len(chunk.X)
        thetas, chains = self._flat(theta)

        def together() -> Tensor:
            blocks = self._ways.blocks(SUMS, n, thetas)
            return torch.cat([self._loss_rows(some, chunk)[1] for (some,) in blocks])

        def apart() -> Tensor:
            return torch.stack([risk._rows(theta, chunk) for theta in thetas])

        rows = self._ways.compute(SUMS, n, thetas, together=together, apart=apart)
        return rows.view(*chains, *rows.shape[1:])

    def _loss_rows(self, thetas: Tensor, chunk: Chunk) -> tuple[Tensor, Tensor]:
        """Return ℓ̃ᵢ and gᵢ of each chain."""
        shared = share(chunk, len(thetas))
        scalars = self.risk._scalars(shared.examples)
        return chain_rows(
            self.risk._model,
            thetas,
            shared,
            scalar=scalars.scalar,
            args=scalars.args,
        )

    def _squares(self, thetas: Tensor, shared: ChainChunk, u: Tensor) -> Tensor:
        """Return ‖Jᵢᵀuᵢ‖² of each chain, (C, n)."""
        _, rows = chain_rows(
            self.risk._model, thetas, shared, scalar=inner_products, args=(u,)
        )
        return squared_row_norms(rows)
