"""Label noise in an empirical risk: its draws, and its covariance."""

from __future__ import annotations

import torch
from torch import Tensor

from flatmin._utils.arrays import check_scalar_tensor
from flatmin._utils.columns import as_column
from flatmin._utils.random import check_rng
from flatmin.risk.autodiff.precision import in_full_float32
from flatmin.risk.autodiff.surroundings import alone
from flatmin.risk.chains.dispatch import over_chains
from flatmin.risk.data.chunks import Chunk
from flatmin.risk.label_noise import (
    LabelDraw,
    check_draw,
    check_label_noise,
    gradient_with_slopes,
    label_kernel_product,
    label_roots,
    label_slopes,
    label_uniforms,
    pulled_back_squares,
)
from flatmin.risk.network.batch_statistics import needs_examples
from flatmin.risk.products.linearize import Linearization
from flatmin.risk.quantities.chain_linearization import ChainLinearization
from flatmin.risk.quantities.second_order import SecondOrderRisk
from flatmin.risk.ranks.words import announced, gathered, summed

__all__ = ["LabelNoiseRisk"]


class LabelNoiseRisk(SecondOrderRisk):
    """Labels drawn anew, in the gradient and in closed form."""

    @needs_examples
    @announced
    @alone
    def check_label_noise(self) -> None:
        """Raise ValueError if the labels cannot be drawn anew."""
        check_label_noise(self._loss, self._targets())

    @needs_examples
    @summed
    @over_chains
    @alone
    def value_and_label_draw(
        self, theta: Tensor, draw: LabelDraw, scale: Tensor, rng: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return L(θ) and g₀ + (c/N) Σ Jᵢᵀuᵢ, u the slopes that new labels add.

        Parameters
        ----------
        theta : Tensor of shape (\\*chains, D)
        draw : LabelDraw
        scale : Tensor of shape (\\*chains)
            c.
        rng : torch.Generator
            On the risk's device.

        Returns
        -------
        value : Tensor of shape (\\*chains)
        gradient : Tensor of shape (\\*chains, D)
        """
        check_draw(draw)
        check_scalar_tensor("scale", scale)
        check_rng(rng, self.device)
        self._model.bind(theta)  # or raise, before anything is drawn
        shape = self.output_shape
        random = label_uniforms(self._loss, self.n_examples, shape, rng, theta)
        return self._penalised(*self._label_pull(theta, random, draw, scale))

    def _label_pull(
        self, theta: Tensor, random: Tensor, draw: LabelDraw, scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return L(θ) and g₀ + (c/N) Σ Jᵢᵀuᵢ, u made of ``random``; no penalty."""
        self._model.bind(theta)
        shape = self.output_shape

        def slopes(chunk: Chunk) -> Tensor:
            part = random[chunk.rows]
            return scale * label_slopes(self._loss, chunk.y, part, shape, draw)

        return self._add(
            gradient_with_slopes(
                self._model, self._loss, chunk, slopes(chunk), self.n_examples
            )
            for chunk in self._chunks()
        )

    @needs_examples
    @announced
    @alone
    def label_covariance_product(
        self, point: Linearization | ChainLinearization, v: Tensor, draw: LabelDraw
    ) -> Tensor:
        """Return (1/N²) Σ Jᵢᵀ Kᵢ Jᵢ v, Kᵢ the covariance of uᵢ.

        Parameters
        ----------
        point : Linearization or ChainLinearization
            Of this risk.
        v : Tensor of shape (\\*chains, D)
        draw : LabelDraw

        Returns
        -------
        Tensor of shape (\\*chains, D)

        Raises
        ------
        TypeError
            If ``point`` or ``draw`` is something else.
        """
        check_draw(draw)
        if not isinstance(point, Linearization | ChainLinearization):
            raise TypeError(
                "point must be what linearize(theta) returns. Got "
                f"{type(point).__name__}."
            )
        u = point.jvp(v)
        flat = u.reshape(-1, *self.output_shape)
        y = self._targets(len(flat) // self.n_examples)
        product = label_kernel_product(self._loss, y, flat, draw).view(u.shape)
        if self._data.weights is not None:
            weights = self._every_weight().square()
            product = product * as_column(weights, flat)
        return point.vjp(product) / self.n_examples**2

    @needs_examples
    @gathered()
    @over_chains
    @in_full_float32
    def label_traces(self, theta: Tensor, draw: LabelDraw) -> Tensor:
        """Return Tr(Jᵢᵀ Kᵢ Jᵢ) of each example, exactly, by ``n_outputs`` sweeps.

        Parameters
        ----------
        theta : Tensor of shape (\\*chains, D)
        draw : LabelDraw

        Returns
        -------
        Tensor of shape (\\*chains, N)
            In float64.
        """
        check_draw(draw)
        self._model.bind(theta)
        parts = []
        for chunk in self._chunks():
            roots = label_roots(
                self._loss, chunk.y, self.output_shape, draw, self.dtype
            )
            squares = [pulled_back_squares(self._sums, chunk, root) for root in roots]
            parts.append(torch.stack(squares).sum(0))
        return torch.cat(parts)
