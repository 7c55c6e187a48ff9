"""A module's parameters and gradients as views of two vectors, while it trains."""

from __future__ import annotations

from torch import Tensor, nn

from flatmin.risk import ParameterLayout

__all__ = ["FlatBinding"]


class FlatBinding:
    """Ties a module to one flat θ and one flat gradient.

    A step of any optimizer on the module's parameters then moves ``theta`` in place.
    The tie exists during training only: :meth:`release` gives every parameter its own
    storage again, since a pickled view carries the whole vector with it, once a
    parameter, and comes back tied to nothing.

    Parameters
    ----------
    module : torch.nn.Module
        Frozen parameters are left alone.

    Attributes
    ----------
    theta : Tensor of shape (D,)
        The parameters.
    gradient : Tensor of shape (D,)
        What the optimizer sees as ``.grad``; write into it.
    """

    def __init__(self, module: nn.Module) -> None:
        layout = ParameterLayout.of(module)
        self.params = [p for p in module.parameters() if p.requires_grad]
        self.theta = layout.flatten(dict(module.named_parameters()))
        self.gradient = self.theta.new_zeros(self.theta.shape)
        views = zip(
            self.params,
            layout.views(self.theta),
            layout.views(self.gradient),
            strict=True,
        )
        for parameter, values, slopes in views:
            parameter.data = values
            parameter.grad = slopes

    def assign(self, theta: Tensor) -> None:
        """Copy values into θ.

        Parameters
        ----------
        theta : Tensor of shape (D,)
        """
        self.theta.copy_(theta)

    def release(self) -> None:
        """Give every parameter its own storage and no gradient."""
        for parameter in self.params:
            parameter.data = parameter.data.clone()
            parameter.grad = None
