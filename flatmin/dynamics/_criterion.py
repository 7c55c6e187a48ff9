"""The loss of a risk as a skorch criterion."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from flatmin.risk import ModuleLoss, resolve_loss
from flatmin.risk.losses.resolve_loss import LossLike
from flatmin.risk.network.outputs import OutputTransform, read_output

__all__ = ["MeanLoss"]


class MeanLoss(nn.Module):
    """Σ wᵢℓᵢ / Σ wᵢ over the examples of a batch, with the ℓᵢ and wᵢ of a risk's loss.

    It has neither parameters nor a state: what a loss module holds is the loss's, and
    is not to be trained or loaded.

    Parameters
    ----------
    loss : str, loss module or callable
        As for :class:`flatmin.EmpiricalRisk`.
    output_transform : callable, default=None
        The same.

    Examples
    --------
    >>> import torch
    >>> outputs, targets = torch.zeros(2, 1), torch.tensor([1.0, 3.0])
    >>> MeanLoss("squared_error")(outputs, targets)
    tensor(5.)
    """

    reduction = "mean"  # for skorch's loss_scoring

    def __init__(
        self, loss: LossLike, output_transform: OutputTransform | None = None
    ) -> None:
        super().__init__()
        self.output_transform = output_transform
        # None: such a loss is of the module and X, which a criterion does not meet.
        self.example_loss = None if isinstance(loss, ModuleLoss) else resolve_loss(loss)

    def forward(self, outputs: Any, targets: Tensor) -> Tensor:
        """Return the mean loss.

        Parameters
        ----------
        outputs : Tensor of shape (n, ...), or whatever the module returns
        targets : Tensor of shape (n, ...)
            In the form that the risk takes.

        Returns
        -------
        Tensor of shape ()

        Raises
        ------
        TypeError
            If the loss is a ``ModuleLoss``.
        """
        if self.example_loss is None:
            raise TypeError(
                "A ModuleLoss is of the module and X, and skorch hands outputs and y "
                "to a criterion. Use history_, or make_risk(X, y).value(theta) of the "
                "estimator."
            )
        outputs = read_output(outputs, self.output_transform)
        loss = self.example_loss.to(outputs.device, outputs.dtype)
        targets = loss.prepare_targets(targets, outputs[:1])
        losses, weights = (
            loss.per_example(outputs, targets),
            loss.target_weights(targets),
        )
        if weights is None:
            return losses.mean()
        return losses @ weights.to(losses) / weights.sum()

    def extra_repr(self) -> str:
        """Return the loss's name, for ``repr``."""
        return "ModuleLoss" if self.example_loss is None else self.example_loss.name
