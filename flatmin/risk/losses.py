"""Per-example losses and the square root of their Hessian in the output."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import jacrev
from torch.nn import functional as F

from flatmin._utils.names import check_known
from flatmin.risk.vectorize import vectorize

__all__ = [
    "LOSSES",
    "BinaryCrossEntropy",
    "CallableLoss",
    "CrossEntropy",
    "ExampleLoss",
    "SquaredError",
    "resolve_loss",
]


class ExampleLoss(ABC):
    """ℓᵢ(f, y) of one example each, and Hᵢ = SᵢSᵢᵀ, its Hessian in the output f.

    Outputs have shape ``(n, *output_shape)``; everything below acts on each example
    by itself.
    """

    name: str

    @abstractmethod
    def prepare_targets(self, y: Tensor, outputs: Tensor) -> Tensor:
        """Check the targets against one example's outputs and give them their form.

        Parameters
        ----------
        y : Tensor of shape (N, ...)
            All targets.
        outputs : Tensor of shape (1, \\*output_shape)
            What the module gives for the first example.

        Returns
        -------
        Tensor of shape (N, ...)
        """

    @abstractmethod
    def per_example(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return ℓᵢ, shape (n,)."""

    @abstractmethod
    def root_product(self, outputs: Tensor, targets: Tensor, z: Tensor) -> Tensor:
        """Return Sᵢzᵢ for ``z`` of the outputs' shape."""

    @abstractmethod
    def hessian_product(self, outputs: Tensor, targets: Tensor, u: Tensor) -> Tensor:
        """Return Hᵢuᵢ for ``u`` of the outputs' shape."""

    def model_slope(self, outputs: Tensor, rng: torch.Generator) -> Tensor:
        """Return rᵢ with E[rᵢrᵢᵀ] = Hᵢ: ∂ℓᵢ/∂f for a target that the model draws.

        Parameters
        ----------
        outputs : Tensor of shape (n, \\*output_shape)
            So is what is returned.
        rng : torch.Generator
            On the outputs' device.

        Raises
        ------
        TypeError
            If the loss is no likelihood by name.
        """
        raise TypeError(
            f"The Fisher matrix needs a likelihood: one of {', '.join(LOSSES)}. Got "
            f"the loss {self.name}; use the Gauss-Newton matrix."
        )


class CrossEntropy(ExampleLoss):
    """-log softmax(f)_y of logits; the mean over positions for sequences.

    Outputs ``(n, C)`` or ``(n, C, *positions)``, targets the class indices of shape
    ``(n,)`` or ``(n, *positions)``: PyTorch's convention.
    """

    name = "cross_entropy"

    def prepare_targets(self, y: Tensor, outputs: Tensor) -> Tensor:
        """See :meth:`ExampleLoss.prepare_targets`."""
        if outputs.ndim < 2 or outputs.shape[1] < 2:
            raise ValueError(
                "cross_entropy needs at least two logits an example, outputs of shape "
                f"(n, C) or (n, C, positions). Got {('n', *outputs.shape[1:])}; use "
                "loss='binary_cross_entropy' for one logit."
            )
        if y.shape[1:] != outputs.shape[2:]:
            raise ValueError(
                f"cross_entropy with outputs {('n', *outputs.shape[1:])} needs class "
                f"indices of shape {('n', *outputs.shape[2:])}. "
                f"Got {('n', *y.shape[1:])}."
            )
        if y.is_floating_point() and bool((y != y.round()).any()):
            raise ValueError(
                "cross_entropy needs class indices. Got values with fractions; use "
                "loss='squared_error' for regression."
            )
        n_classes, low, high = outputs.shape[1], int(y.min()), int(y.max())
        if low < 0 or high >= n_classes:
            raise ValueError(
                f"A module with {n_classes} outputs can have labels 0 to "
                f"{n_classes - 1}. Got labels from {low} to {high}; give the module "
                f"{high + 1} outputs or encode the labels."
            )
        return y.long()

    def per_example(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """See :meth:`ExampleLoss.per_example`."""
        losses = F.cross_entropy(outputs, targets, reduction="none")
        return losses if losses.ndim == 1 else losses.flatten(1).mean(1)

    def root_product(self, outputs: Tensor, targets: Tensor, z: Tensor) -> Tensor:
        """S = diag(√p) - p√pᵀ at each of T positions, over √T."""
        p = outputs.softmax(1)
        root = p.sqrt()
        product = root * z - p * (root * z).sum(1, keepdim=True)
        return product / math.sqrt(_n_positions(outputs))

    def hessian_product(self, outputs: Tensor, targets: Tensor, u: Tensor) -> Tensor:
        """H = diag(p) - ppᵀ at each of T positions, over T."""
        p = outputs.softmax(1)
        return (p * u - p * (p * u).sum(1, keepdim=True)) / _n_positions(outputs)

    def model_slope(self, outputs: Tensor, rng: torch.Generator) -> Tensor:
        """See :meth:`ExampleLoss.model_slope`; p - e_y at each position, over √T."""
        p = outputs.softmax(1)
        rows = p.movedim(1, -1).flatten(0, -2)
        drawn = torch.multinomial(rows, 1, generator=rng).view(p[:, 0].shape)
        slope = p - F.one_hot(drawn, p.shape[1]).movedim(-1, 1)
        return slope / math.sqrt(_n_positions(outputs))


class _ElementwiseLoss(ExampleLoss):
    """A loss that is a mean over the C outputs of an example."""

    def prepare_targets(self, y: Tensor, outputs: Tensor) -> Tensor:
        """See :meth:`ExampleLoss.prepare_targets`."""
        shape = outputs.shape[1:]
        if [n for n in y.shape[1:] if n != 1] != [n for n in shape if n != 1]:
            raise ValueError(
                f"{self.name} compares outputs and targets one by one. Got outputs of "
                f"shape {('n', *shape)} and targets of shape {('n', *y.shape[1:])}."
            )
        return y.to(outputs.dtype).reshape(-1, *shape)

    def _mean(self, elements: Tensor) -> Tensor:
        if elements.shape[1:].numel() == 1:  # one output: a mean would take a pass
            return elements.flatten()
        return elements.flatten(1).mean(1)


class SquaredError(_ElementwiseLoss):
    """(f - y)², the mean over the C outputs."""

    name = "squared_error"

    def per_example(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """See :meth:`ExampleLoss.per_example`."""
        return self._mean((outputs - targets).square())

    def root_product(self, outputs: Tensor, targets: Tensor, z: Tensor) -> Tensor:
        """S = √(2/C) I."""
        return z * math.sqrt(2 / outputs.shape[1:].numel())

    def hessian_product(self, outputs: Tensor, targets: Tensor, u: Tensor) -> Tensor:
        """H = (2/C) I."""
        return u * (2 / outputs.shape[1:].numel())

    def model_slope(self, outputs: Tensor, rng: torch.Generator) -> Tensor:
        """See :meth:`ExampleLoss.model_slope`; normal with covariance (2/C) I."""
        z = torch.randn(
            outputs.shape, generator=rng, dtype=outputs.dtype, device=outputs.device
        )
        return self.root_product(outputs, outputs, z)


class BinaryCrossEntropy(_ElementwiseLoss):
    """-y log σ(f) - (1-y) log σ(-f) of logits, the mean over the C outputs."""

    name = "binary_cross_entropy"

    def prepare_targets(self, y: Tensor, outputs: Tensor) -> Tensor:
        """See :meth:`ExampleLoss.prepare_targets`."""
        low, high = float(y.min()), float(y.max())
        if low < 0 or high > 1:
            raise ValueError(
                "binary_cross_entropy needs targets in [0, 1]. Got values from "
                f"{low:g} to {high:g}."
            )
        return super().prepare_targets(y, outputs)

    def per_example(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """See :meth:`ExampleLoss.per_example`."""
        return self._mean(
            F.binary_cross_entropy_with_logits(outputs, targets, reduction="none")
        )

    def root_product(self, outputs: Tensor, targets: Tensor, z: Tensor) -> Tensor:
        """S = diag(√(p(1-p)/C))."""
        p = outputs.sigmoid()
        return z * (p * (1 - p) / outputs.shape[1:].numel()).sqrt()

    def hessian_product(self, outputs: Tensor, targets: Tensor, u: Tensor) -> Tensor:
        """H = diag(p(1-p)/C)."""
        p = outputs.sigmoid()
        return u * (p * (1 - p) / outputs.shape[1:].numel())

    def model_slope(self, outputs: Tensor, rng: torch.Generator) -> Tensor:
        """See :meth:`ExampleLoss.model_slope`; p - y, over √C."""
        p = outputs.sigmoid()
        slope = p - torch.bernoulli(p, generator=rng)
        return slope / math.sqrt(outputs.shape[1:].numel())


class CallableLoss(ExampleLoss):
    """Any differentiable ``function(outputs, targets)`` with one loss an example.

    Losses of shape ``(n, ...)`` are averaged over all but the first axis. The square
    root of the output Hessian comes from an eigendecomposition of the (C, C) matrix
    of each example.

    Parameters
    ----------
    function : callable
        Takes outputs and targets, returns a Tensor of shape (n,) or (n, ...).
    name : str
        For messages.
    """

    def __init__(
        self, function: Callable[[Tensor, Tensor], Tensor], *, name: str
    ) -> None:
        self.function = function
        self.name = name

    def prepare_targets(self, y: Tensor, outputs: Tensor) -> Tensor:
        """Keep integers, give numbers the outputs' dtype, and try one example."""
        targets = y.to(outputs.dtype) if y.is_floating_point() else y
        # Copies of one example tell a list of losses from a mean, and two counts of
        # them from the (n, n) that (n, 1) outputs and (n,) targets broadcast to.
        shapes = [
            tuple(
                self.function(outputs.repeat_interleave(n, 0), targets[[0] * n]).shape
            )
            for n in (2, 3)
        ]
        if shapes[0][:1] != (2,) or shapes[1] != (3, *shapes[0][1:]):
            raise ValueError(
                f"The loss {self.name} must return one number for each of the n "
                f"examples, shape (n,). Got shape {shapes[0]} for n=2 and {shapes[1]} "
                "for n=3; use reduction='none', do not average, and compare outputs "
                "and targets of one shape."
            )
        return targets

    def per_example(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """See :meth:`ExampleLoss.per_example`."""
        losses = self.function(outputs, targets)
        return losses if losses.ndim == 1 else losses.flatten(1).mean(1)

    def root_product(self, outputs: Tensor, targets: Tensor, z: Tensor) -> Tensor:
        """S = V √Λ of Hᵢ = VΛVᵀ."""
        matrices = self._hessians(outputs, targets).double()
        values, vectors = torch.linalg.eigh(matrices)
        lowest = values[:, 0]
        # Of a loss of order one the rounding is a few eps, also where a confident
        # prediction makes the Hessian itself smaller than that.
        rounding = 100 * torch.finfo(outputs.dtype).eps
        tolerance = 1e-5 * values.abs().amax(1) + rounding
        if bool((lowest < -tolerance).any()):
            raise ValueError(
                f"The Gauss-Newton matrix needs a loss that is convex in the output. "
                f"The Hessian of {self.name} in the output has the eigenvalue "
                f"{float(lowest.min()):.3g}; use method='gld_full' or 'gld_hessian'."
            )
        roots = (vectors * values.clamp(min=0).sqrt().unsqueeze(1)).to(z.dtype)
        product: Tensor = roots @ z.reshape(len(z), -1, 1)
        return product.view_as(z)

    def hessian_product(self, outputs: Tensor, targets: Tensor, u: Tensor) -> Tensor:
        """See :meth:`ExampleLoss.hessian_product`."""
        matrices = self._hessians(outputs, targets)
        return (matrices @ u.reshape(len(u), -1, 1)).view_as(u)

    def _hessians(self, outputs: Tensor, targets: Tensor) -> Tensor:
        shape = outputs.shape[1:]

        def single(flat: Tensor, target: Tensor) -> Tensor:
            return self.per_example(flat.view(1, *shape), target.unsqueeze(0))[0]

        flat = outputs.detach().reshape(len(outputs), -1)
        # Twice in reverse mode: forward mode knows fewer operations.
        hessians: Tensor = vectorize(jacrev(jacrev(single)))(flat, targets)
        return hessians


LossLike = (
    str | ExampleLoss | nn.Module | type[nn.Module] | Callable[[Tensor, Tensor], Tensor]
)

LOSSES: dict[str, type[ExampleLoss]] = {
    loss.name: loss for loss in (CrossEntropy, SquaredError, BinaryCrossEntropy)
}


def resolve_loss(loss: LossLike) -> ExampleLoss:
    """Turn a name, a loss module or a callable into an :class:`ExampleLoss`.

    The reduction of a loss module does not matter: a copy with
    ``reduction="none"`` is used. Plain ``CrossEntropyLoss``, ``MSELoss`` and
    ``BCEWithLogitsLoss`` become the named losses, whose output Hessian is known in
    closed form. What PyTorch's own mean does besides averaging is not done: with class
    weights or an ``ignore_index`` it divides by the weights' sum, while a risk divides
    by N, or by the sum of ``sample_weight``.

    Parameters
    ----------
    loss : str, torch.nn.Module, callable or ExampleLoss
        Names: "cross_entropy", "squared_error", "binary_cross_entropy".

    Returns
    -------
    ExampleLoss

    Raises
    ------
    ValueError
        If the name is unknown.
    TypeError
        If it is none of these.

    Examples
    --------
    >>> resolve_loss(nn.MSELoss(reduction="sum")).name
    'squared_error'
    """
    if isinstance(loss, ExampleLoss):
        return loss
    if isinstance(loss, str):
        check_known("loss", loss, LOSSES)
        return LOSSES[loss]()
    if isinstance(loss, type) and issubclass(loss, nn.Module):
        return _resolve_module(loss())
    if isinstance(loss, nn.Module):
        return _resolve_module(loss)
    if callable(loss) and not isinstance(loss, type):
        return CallableLoss(loss, name=getattr(loss, "__name__", repr(loss)))
    raise TypeError(
        f"loss must be a name ({', '.join(LOSSES)}), a loss module or a callable. "
        f"Got {loss!r}."
    )


def _resolve_module(module: nn.Module) -> ExampleLoss:
    plain_cross_entropy = (
        type(module) is nn.CrossEntropyLoss
        and module.weight is None
        and module.label_smoothing == 0
        and module.ignore_index == -100
    )
    if plain_cross_entropy:
        return CrossEntropy()
    if type(module) is nn.MSELoss:
        return SquaredError()
    if (
        type(module) is nn.BCEWithLogitsLoss
        and module.weight is None
        and module.pos_weight is None
    ):
        return BinaryCrossEntropy()
    module = copy.deepcopy(module)
    if hasattr(module, "reduction"):
        setattr(module, "reduction", "none")  # noqa: B010 - for mypy
    return CallableLoss(module, name=type(module).__name__)


def _n_positions(outputs: Tensor) -> int:
    return outputs.shape[2:].numel()
