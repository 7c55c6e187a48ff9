"""The loss, the outputs and the gradients of an empirical risk at many θ.

Every word is described where the risk has it; shapes have (\\*chains) in front.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from flatmin._utils.columns import as_column
from flatmin._utils.random import check_rng
from flatmin.risk.arguments import within
from flatmin.risk.autodiff.precision import full_float32, in_full_float32
from flatmin.risk.autodiff.surroundings import alone
from flatmin.risk.chains.kernels import (
    ChainChunk,
    chain_losses,
    chain_losses_and_gradient,
    chain_outputs,
    share,
)
from flatmin.risk.chains.ways import BATCHES, GRADIENTS
from flatmin.risk.data.chunks import Chunk
from flatmin.risk.label_noise import (
    LabelDraw,
    check_draw,
    label_slopes,
    label_uniforms,
)
from flatmin.risk.products.gauss_newton import weighted_root
from flatmin.risk.quantities.chain_sums import ChainSums
from flatmin.risk.quantities.penalty import value_with_penalty

__all__ = ["ChainGradients"]


class ChainGradients(ChainSums):
    """L and its gradients: of all examples, weighted, noisy, and of minibatches."""

    @in_full_float32
    def value(self, theta: Tensor) -> Tensor:
        """See :meth:`flatmin.EmpiricalRisk.value`."""
        thetas, chains = self._flat(theta)
        risk, n = self.risk, self._n()

        def together() -> Tensor:
            sums = thetas.new_zeros(len(thetas), dtype=torch.float64)
            with torch.set_grad_enabled(risk.keeps_graph):
                for chunk in risk._chunks():
                    sums += self._cat(partial(self._losses, chunk), n, thetas)
            value: Tensor = (sums / risk.n_examples).to(risk.dtype)
            l2 = risk._ranks.once(risk.l2)
            return value_with_penalty(value, thetas, l2) if l2 else value

        value: Tensor = self._ways.compute(
            *(GRADIENTS, n, thetas),
            together=together,
            apart=lambda: self._apart("value", thetas),
        )
        return value.view(chains)

    @in_full_float32
    def outputs(self, theta: Tensor) -> Tensor:
        """See :meth:`flatmin.EmpiricalRisk.outputs`."""
        thetas, chains = self._flat(theta)
        risk, n = self.risk, self._n()

        def of(chunk: Chunk, some: Tensor) -> Tensor:
            shared = share(chunk, len(some))
            return shared.by_chain(chain_outputs(risk._model, some, shared).detach())

        def together() -> Tensor:
            with torch.set_grad_enabled(risk.keeps_graph):
                parts = [
                    self._cat(partial(of, chunk), n, thetas) for chunk in risk._chunks()
                ]
            return torch.cat(parts, 1)

        outputs: Tensor = self._ways.compute(
            *(GRADIENTS, n, thetas),
            together=together,
            apart=lambda: self._apart("outputs", thetas),
        )
        return outputs.view(*chains, *outputs.shape[1:])

    def gradient(self, theta: Tensor) -> Tensor:
        """See :meth:`flatmin.EmpiricalRisk.gradient`."""
        with full_float32(self.device):
            return self.value_and_gradient(theta)[1]

    @alone
    def value_and_gradient(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`flatmin.EmpiricalRisk.value_and_gradient`."""
        thetas, chains = self._flat(theta)
        weights = self.risk._uniform.expand(len(thetas), -1)
        return self._pulled(thetas, chains, weights)

    @in_full_float32
    def weighted_gradient(self, theta: Tensor, v: Tensor) -> Tensor:
        """See :meth:`flatmin.EmpiricalRisk.weighted_gradient`."""
        thetas, chains = self._flat(theta)
        weights = self._weights(v, chains) / self.risk.n_examples
        return self._pulled(thetas, chains, weights, penalised=False)[1]

    @alone
    def value_and_noisy_gradient(
        self, theta: Tensor, v: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`flatmin.EmpiricalRisk.value_and_noisy_gradient`."""
        thetas, chains = self._flat(theta)
        weights = (self._weights(v, chains) + 1) / self.risk.n_examples
        return self._pulled(thetas, chains, weights)

    @alone
    def value_and_gauss_newton_draw(
        self, theta: Tensor, scale: Tensor, rng: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`flatmin.EmpiricalRisk.value_and_gauss_newton_draw`."""
        thetas, chains = self._flat(theta)
        risk = self.risk
        scales = self._scales(scale, chains)
        check_rng(rng, risk.device)
        like = {"dtype": risk.dtype, "device": risk.device, "generator": rng}
        z = torch.randn((len(thetas), risk.n_examples, *risk.output_shape), **like)
        beside = torch.randn(thetas.shape, **like) if risk.l2 else None

        def cotangents(
            shared: ChainChunk, some: tuple[Tensor, ...]
        ) -> Callable[[Tensor, Tensor], Tensor]:
            z, scales = some

            def of(outputs: Tensor, slopes: Tensor) -> Tensor:
                chunk = shared.examples
                noise = weighted_root(
                    risk._loss.root_product,
                    outputs,
                    z[:, chunk.rows].flatten(0, 1),
                    *chunk.targets_and_weights,
                )
                factors = _over_examples(scales, noise) / risk.n_examples**0.5
                cotangents: Tensor = slopes / risk.n_examples + factors * noise
                return cotangents

            return of

        value, gradient = self._pulled_through_outputs(
            thetas,
            (z, scales),
            cotangents,
            lambda theta, z, scale: risk._gauss_newton_pull(theta, z, scale),
        )
        if beside is not None:  # G holds λI
            size = risk._ranks.once(risk.l2) ** 0.5
            gradient = gradient + scales.unsqueeze(-1) * size * beside
        return self._result(*self._penalised(value, gradient, thetas), chains)

    @alone
    def value_and_label_draw(
        self, theta: Tensor, draw: LabelDraw, scale: Tensor, rng: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`flatmin.EmpiricalRisk.value_and_label_draw`."""
        check_draw(draw)
        thetas, chains = self._flat(theta)
        risk, shape = self.risk, self.risk.output_shape
        scales = self._scales(scale, chains)
        check_rng(rng, risk.device)
        n = len(thetas) * risk.n_examples
        random = label_uniforms(risk._loss, n, shape, rng, thetas)
        random = random.unflatten(0, (len(thetas), -1))

        def cotangents(
            shared: ChainChunk, some: tuple[Tensor, ...]
        ) -> Callable[[Tensor, Tensor], Tensor]:
            random, scales = some

            def of(_outputs: Tensor, own: Tensor) -> Tensor:
                chunk = shared.examples
                part = random[:, chunk.rows].flatten(0, 1)
                slopes = label_slopes(risk._loss, chunk.y, part, shape, draw)
                slopes = _over_examples(scales, slopes) * slopes
                cotangents: Tensor = (own + chunk.weigh(slopes)) / risk.n_examples
                return cotangents

            return of

        value, gradient = self._pulled_through_outputs(
            thetas,
            (random, scales),
            cotangents,
            lambda theta, random, scale: risk._label_pull(theta, random, draw, scale),
        )
        return self._result(*self._penalised(value, gradient, thetas), chains)

    def batch_gradient(self, theta: Tensor, indices: Tensor) -> Tensor:
        """See :meth:`flatmin.EmpiricalRisk.batch_gradient`."""
        return self.value_and_batch_gradient(theta, indices)[1]

    @alone
    def value_and_batch_gradient(
        self, theta: Tensor, indices: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`flatmin.EmpiricalRisk.value_and_batch_gradient`."""
        thetas, chains = self._flat(theta)
        indices = self._indices("indices", indices, chains, 1)
        return self._result(*self._batches(thetas, indices), chains)

    @in_full_float32
    def batch_gradients(self, theta: Tensor, batches: Tensor) -> Tensor:
        """See :meth:`flatmin.EmpiricalRisk.batch_gradients`."""
        thetas, chains = self._flat(theta)
        batches = self._indices("batches", batches, chains, 2)
        b = batches.shape[1]
        # A batch is a chain of its own.
        repeated = thetas.repeat_interleave(b, 0)
        gradients = self._batches(repeated, batches.flatten(0, 1))[1]
        return gradients.view(*chains, b, -1)

    def _batches(self, thetas: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        risk, m = self.risk, indices.shape[1]

        def of(some: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
            with within("indices", risk.n_examples):
                chosen = risk._data.select(own.flatten())
            chunk = ChainChunk(chosen, len(some), is_shared=False)
            mean = some.new_full(own.shape, 1 / m)
            losses, gradient = chain_losses_and_gradient(
                risk._model, risk._loss, some, chunk, cotangents=mean
            )
            return losses.mean(1, dtype=torch.float64), gradient

        def together() -> tuple[Tensor, Tensor]:
            parts = [
                of(*some) for some in self._ways.blocks(BATCHES, m, thetas, indices)
            ]
            value, gradient = (torch.cat(part) for part in zip(*parts, strict=True))
            return self._penalised(value.to(risk.dtype), gradient, thetas)

        def apart() -> tuple[Tensor, Tensor]:
            return self._pairs_apart(risk.value_and_batch_gradient, thetas, indices)

        if risk._ranks.size > 1:  # of each batch, other numbers of examples are here
            return apart()
        return self._ways.compute(BATCHES, m, thetas, together=together, apart=apart)

    def _losses(self, chunk: Chunk, thetas: Tensor) -> Tensor:
        """Return Σ ℓ̃ᵢ of a chunk in each chain, in float64."""
        shared = share(chunk, len(thetas))
        losses = chain_losses(self.risk._model, self.risk._loss, thetas, shared)
        return shared.by_chain(losses.detach()).sum(1, dtype=torch.float64)


def _over_examples(scales: Tensor, like: Tensor) -> Tensor:
    """Return a number of each chain, (C,), for each of its examples in a row."""
    n = len(like) // len(scales)
    return as_column(scales.repeat_interleave(n), like)
