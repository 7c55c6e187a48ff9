"""Kernels: sums over examples of squared gradients, without the (N, D) matrix.

One backward pass to the outputs of the layers, then products layer by layer. Where a
row is an outer product or sparse its squares are known without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from flatmin.risk.layer_calls import UnsupportedLayers, record_calls
from flatmin.risk.layer_rows import LAYER_ROWS, ParameterUse, looked_up, uses_of
from flatmin.risk.model import FlatModel
from flatmin.risk.moments import Moments

__all__ = ["LayerSums", "find_layers"]

# Numbers in rows and patches that are held at a time: they stay within the caches of
# a CPU. A GPU wants few large ones (VGG11 on an H100: 37 b with the CPU's blocks).
_AT_A_TIME_CPU = 1 << 19
_AT_A_TIME_GPU = 1 << 26


def find_layers(model: FlatModel) -> list[nn.Module]:
    """Return the layers that hold the trainable parameters, if they are all known.

    Parameters
    ----------
    model : FlatModel

    Returns
    -------
    list of torch.nn.Module

    Raises
    ------
    UnsupportedLayers
        If a parameter belongs to another kind of module, or a layer has a setting
        that its rows do not know.
    """
    trainable = {id(parameter) for parameter in model.params}
    layers: list[nn.Module] = []
    covered: set[int] = set()
    for module in model.module.modules():
        own = {id(p) for p in module.parameters(recurse=False)} & trainable
        if not own:
            continue
        if type(module) not in LAYER_ROWS or _is_special(module):
            raise UnsupportedLayers(f"the rows of {type(module).__name__}")
        covered |= own
        layers.append(module)
    if covered != trainable:
        raise UnsupportedLayers("a parameter that no module holds")
    return layers


class LayerSums:
    """The sums over the examples of one chunk.

    Parameters
    ----------
    model : FlatModel
        Bound to θ.
    X : Tensor of shape (n, ...)
    scalar : callable
        Maps the outputs to one number an example, whose gradients are the rows.
    layers : list of torch.nn.Module
        From :func:`find_layers`.

    Raises
    ------
    UnsupportedLayers
        If a layer is called in a way that its rows do not know.
    """

    def __init__(
        self,
        model: FlatModel,
        X: Tensor,
        scalar: Callable[[Tensor], Tensor],
        layers: list[nn.Module],
    ) -> None:
        self.model = model
        self.n = len(X)
        self._uses: dict[int, list[ParameterUse]] = {}
        self.values, calls = record_calls(model, X, scalar, layers)
        for call in calls:
            for name, use in uses_of(call).items():
                parameter = getattr(call.module, name)
                self._uses.setdefault(id(parameter), []).append(use)

    def squared_norms(self) -> Tensor:
        """Return ‖gᵢ‖².

        Returns
        -------
        Tensor of shape (n,)
            In float64.
        """
        theta = self.model.values()
        total = torch.zeros(self.n, dtype=torch.float64, device=theta.device)
        for parameter in self.model.params:
            uses = self._uses.get(id(parameter), [])
            if uses:
                total += _squared_norms(uses, self.n)
        return total

    def moments(self) -> Moments:
        """Return mean and spread of the gᵢ.

        Returns
        -------
        Moments
        """
        parts = [self._moments_of(parameter) for parameter in self.model.params]
        means, squares = zip(*parts, strict=True)
        value = self.values.mean(dtype=torch.float64)
        return Moments(self.n, value, torch.cat(means), torch.cat(squares))

    def batch_sums(self, m: int) -> Tensor:
        """Return the sums of m gᵢ each, in order; m divides n.

        Parameters
        ----------
        m : int

        Returns
        -------
        Tensor of shape (n / m, D)
        """
        parts = []
        for parameter in self.model.params:
            uses = self._uses.get(id(parameter), [])
            if uses:
                blocks = torch.cat(list(_batch_blocks(uses, self.n, m)))
                parts.append(uses[0].restore(blocks))
            else:
                parts.append(
                    parameter.detach().new_zeros(self.n // m, parameter.numel())
                )
        return torch.cat(parts, 1)

    def _moments_of(self, parameter: Tensor) -> tuple[Tensor, Tensor]:
        uses = self._uses.get(id(parameter), [])
        if not uses:
            zero = parameter.detach().new_zeros(parameter.numel(), dtype=torch.float64)
            return zero, zero
        mean, squares = _moments(uses, self.n, parameter.numel())
        return uses[0].restore(mean), uses[0].restore(squares)


def _squared_norms(uses: list[ParameterUse], n: int) -> Tensor:
    use = uses[0]
    if len(uses) == 1 and use.is_outer:
        slopes, inputs = use.call.slope.double(), use.call.input.double()
        return slopes.square().sum(1) * inputs.square().sum(1)
    if len(uses) == 1 and use.is_sparse:
        _, combined = _combined(use)
        return combined.square().sum((1, 2))
    norms = [
        torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64).square()
        for rows in _blocks(uses, n)
    ]
    return torch.cat(norms)


def _moments(uses: list[ParameterUse], n: int, size: int) -> tuple[Tensor, Tensor]:
    # In float64 what is left of the squares after the mean is taken out has its digits
    # even where the mean is a hundred thousand times the spread.
    use = uses[0]
    if len(uses) == 1 and use.is_outer:
        slopes, inputs = use.call.slope, use.call.input
        shape = slopes.shape[1], inputs.shape[1]
        sums = torch.zeros(shape, dtype=torch.float64, device=slopes.device)
        squares = torch.zeros_like(sums)
        # A wide input is three times as fast in blocks that stay within the caches.
        step = max(64, _at_a_time(slopes) // 4 // sum(shape))
        for s, x in zip(slopes.split(step), inputs.split(step), strict=True):
            s, x = s.double(), x.double()
            sums.addmm_(s.mT, x)
            squares.addmm_(s.square().mT, x.square())
        return _centre(sums.flatten(), squares.flatten(), n)
    if len(uses) == 1 and use.is_sparse:
        tokens, combined = _combined(use)
        layer: Any = use.call.module
        rows = combined.new_zeros(2, *layer.weight.shape)
        flat = combined.flatten(0, 1)
        rows[0].index_add_(0, tokens.flatten(), flat)
        rows[1].index_add_(0, tokens.flatten(), flat.square())
        return _centre(rows[0].flatten(), rows[1].flatten(), n)
    sums = torch.zeros(size, dtype=torch.float64, device=use.call.slope.device)
    squares = torch.zeros_like(sums)
    for rows in _blocks(uses, n):
        exact = rows.double()
        sums += exact.sum(0)
        squares += exact.square().sum(0)
    return _centre(sums, squares, n)


def _centre(sums: Tensor, squares: Tensor, n: int) -> tuple[Tensor, Tensor]:
    mean = sums / n
    return mean, (squares - n * mean.square()).clamp(min=0)


def _at_a_time(tensor: Tensor) -> int:
    return _AT_A_TIME_CPU if tensor.device.type == "cpu" else _AT_A_TIME_GPU


def _blocks(uses: list[ParameterUse], n: int) -> Iterator[Tensor]:
    """Yield the rows of some examples at a time; uses add up before any square."""
    largest = max(use.n_numbers for use in uses)
    step = max(1, _at_a_time(uses[0].call.slope) // largest)
    for start in range(0, n, step):
        rows = uses[0].part(start, start + step)
        for use in uses[1:]:
            rows = rows + use.part(start, start + step)
        yield rows


def _batch_blocks(uses: list[ParameterUse], n: int, m: int) -> Iterator[Tensor]:
    largest = m * max(use.n_numbers for use in uses)
    step = m * max(1, _at_a_time(uses[0].call.slope) // largest)
    for start in range(0, n, step):
        rows = uses[0].part_of_batches(start, start + step, m)
        for use in uses[1:]:
            rows = rows + use.part_of_batches(start, start + step, m)
        yield rows


def _combined(use: ParameterUse) -> tuple[Tensor, Tensor]:
    """Return tokens and, at the first place of each, its gradient from all places.

    Returns
    -------
    tokens : Tensor of shape (n, t)
    combined : Tensor of shape (n, t, o)
        In float64; zero where the token has come before.
    """
    tokens, slopes = looked_up(use.call)
    same = tokens.unsqueeze(2) == tokens.unsqueeze(1)  # n t s
    is_first = ~same.tril(-1).any(2)
    combined = same.double() @ slopes.double()
    return tokens, combined * is_first.unsqueeze(-1)


def _is_special(module: Any) -> bool:
    # A hook may change what goes in or comes out.
    if module._forward_hooks or module._forward_pre_hooks:
        return True
    names = {name for name, _ in module.named_parameters(recurse=False)}
    if not names <= {"weight", "bias"}:
        return True
    if isinstance(module, nn.Embedding):
        return bool(module.scale_grad_by_freq)
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training
