"""Per-example losses and the square root of their Hessian in the output."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from flatmin.risk.losses.class_targets import ClassTargets

__all__ = ["ExampleLoss", "mean_over_positions"]


class ExampleLoss(ABC):
    """ℓᵢ(f, y) of one example each, and Hᵢ = SᵢSᵢᵀ, its Hessian in the output f.

    Outputs have shape ``(n, *output_shape)``; everything below acts on each example
    by itself.

    Examples
    --------
    >>> import torch
    >>> from flatmin.risk import resolve_loss
    >>> loss = resolve_loss("squared_error")
    >>> loss.per_example(torch.tensor([[3.0]]), torch.tensor([[1.0]]))
    tensor([4.])
    """

    name: str
    classes: ClassTargets | None = None  # which class indices count, if any does not
    is_likelihood: bool = False  # whether ℓᵢ is the negative logarithm of one

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

    def sign_product(self, outputs: Tensor, targets: Tensor, z: Tensor) -> Tensor:
        """Return Sᵢzᵢ for signs ``z``, of a root whose columns overlap little.

        ‖Jᵢᵀ Sᵢ zᵢ‖² has the mean Tr(Gᵢ) for every root. Its variance is twice the sum
        of the squared inner products between different columns of Jᵢᵀ Sᵢ.

        Parameters
        ----------
        outputs : Tensor of shape (n, \\*output_shape)
        targets : Tensor of shape (n, ...)
        z : Tensor of shape (n, \\*output_shape)

        Returns
        -------
        Tensor of shape (n, \\*output_shape)
        """
        return self.root_product(outputs, targets, z)

    @abstractmethod
    def hessian_product(self, outputs: Tensor, targets: Tensor, u: Tensor) -> Tensor:
        """Return Hᵢuᵢ for ``u`` of the outputs' shape."""

    def target_weights(self, targets: Tensor) -> Tensor | None:
        """Return what each example counts in the mean over all of them, or None.

        Parameters
        ----------
        targets : Tensor of shape (n, ...)
            In the loss's form.

        Returns
        -------
        Tensor of shape (n,) or None
            None where all count alike.
        """
        return None

    def right(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return whether the class of the largest output is the target's.

        Parameters
        ----------
        outputs : Tensor of shape (n, C, \\*positions)
        targets : Tensor of shape (n, \\*positions)
            In the loss's form.

        Returns
        -------
        Tensor of shape (m,)
            Truth values, of the m targets that count.

        Raises
        ------
        ValueError
            If the targets are no classes of these outputs.
        """
        per_class = outputs.ndim > 1 and outputs.shape[2:] == targets.shape[1:]
        if targets.is_floating_point() or not per_class:
            raise ValueError(
                "An accuracy needs classes as targets. Got numbers under the loss "
                f"{self.name!r}; measure what you want by a function of (risk, theta)."
            )
        # No index below 0 is a class, whatever a function makes of it.
        counted = targets >= 0
        if self.classes is not None:
            counted = self.classes.counted(targets)
        return (outputs.argmax(1) == targets)[counted]

    def to(
        self, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> ExampleLoss:
        """Return the same loss with its tensors elsewhere, or in another precision.

        Parameters
        ----------
        device : torch.device, default=None
            None stays.
        dtype : torch.dtype, default=None
            None stays.

        Returns
        -------
        ExampleLoss
            Itself if it holds no tensors.
        """
        return self

    def parts(self) -> list[object]:
        """Return the objects with attributes that it is computed by."""
        return []

    def guarded(self) -> ExampleLoss:
        """Return the same loss with a guard of its own against writes into inputs."""
        return self

    def trust(self) -> None:
        """Make no more copies of what the loss is given: it writes into nothing."""
        return

    def model_slope(
        self, outputs: Tensor, targets: Tensor, rng: torch.Generator
    ) -> Tensor:
        """Return slopes rᵢ at targets that the model draws, with E[rᵢrᵢᵀ] = Hᵢ.

        With one position rᵢ = ∂ℓᵢ/∂f. Where ℓᵢ is a mean over T positions, rᵢ is √T
        times ∂ℓᵢ/∂f: draws at different positions are independent. A position that
        does not count, or counts more, does so as it does for the given targets.

        Parameters
        ----------
        outputs : Tensor of shape (n, \\*output_shape)
            So is what is returned.
        targets : Tensor of shape (n, ...)
        rng : torch.Generator
            On the outputs' device.

        Raises
        ------
        TypeError
            If the loss is not ``is_likelihood``.
        """
        raise self._no_likelihood()

    def check_likelihood(self) -> None:
        """Raise TypeError if the loss is not ``is_likelihood``."""
        if not self.is_likelihood:
            raise self._no_likelihood()

    def check_output_hessian(self) -> None:
        """Raise ValueError if there is no Hessian in the outputs, which G needs."""
        return

    def _no_likelihood(self) -> TypeError:
        return TypeError(
            "The Fisher matrix needs a likelihood: one of cross_entropy, next_token, "
            f"squared_error, binary_cross_entropy. Got the loss {self.name}; use the "
            "Gauss-Newton matrix."
        )


def mean_over_positions(losses: Tensor) -> Tensor:
    """Return the mean of an example's losses over what follows the first dimension.

    Parameters
    ----------
    losses : Tensor of shape (n, ...)

    Returns
    -------
    Tensor of shape (n,)
    """
    if losses.shape[1:].numel() == 1:  # one number: a mean would take a pass
        return losses.flatten()
    return losses.flatten(1).mean(1)
