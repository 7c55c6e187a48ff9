"""The parameters of a module as views of one vector."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flatmin._utils.arrays import check_tensor
from flatmin.risk.network.layout import ParameterLayout
from flatmin.risk.network.module_checks import trainable

__all__ = ["FlatParameters", "joined"]

# Numbers in a vector of which a second copy counts.
_LARGE = 1 << 24


class FlatParameters:
    """The trainable parameters, which from now on are views of one vector.

    Parameters
    ----------
    module : torch.nn.Module
        Its parameters' ``data`` are replaced.

    Attributes
    ----------
    layout : ParameterLayout
        Order and shapes.
    params : list of torch.nn.Parameter
        In that order.
    theta : Tensor of shape (D,)
        The vector itself, not a copy.
    """

    def __init__(self, module: nn.Module) -> None:
        self.layout = ParameterLayout.of(module)
        self.params = trainable(module)
        self.theta = self.layout.flatten(dict(module.named_parameters()))
        views = self.layout.views(self.theta)
        # Two real numbers can be read as a complex one (torch.view_as_complex) at an
        # even place only. What lies at an odd one has a copy, in the same storage.
        self._odd = [
            i
            for i, view in enumerate(views)
            if view.shape[-1:] == (2,) and view.storage_offset() % 2
        ]
        self._moved: list[tuple[Tensor, Tensor]] = []
        if self._odd:
            n = self.layout.n_params
            sizes = [n, n % 2, *(views[i].numel() for i in self._odd)]
            parts = torch.cat([self.theta, self.theta.new_empty(sum(sizes) - n)])
            self.theta, _, *copies = parts.split(sizes)
            views = self.layout.views(self.theta)
            for i, copied in zip(self._odd, copies, strict=True):
                place = copied.view(views[i].shape)
                self._moved.append((place.copy_(views[i]), views[i]))
                views[i] = place
        for parameter, view in zip(self.params, views, strict=True):
            parameter.data = view
            parameter.grad = None
        # Where each parameter is held: a tied one in several modules. (By itself
        # functional_call leaves its own tensors behind in a module of two names.)
        index = {id(p): i for i, p in enumerate(self.params)}
        self._places = {
            f"{prefix}.{name}".removeprefix("."): index[id(parameter)]
            for prefix, part in module.named_modules()
            for name, parameter in part.named_parameters(recurse=False)
            if id(parameter) in index
        }

    def bind(self, theta: Tensor) -> None:
        """Give the parameters the values of θ; see :meth:`FlatModel.bind`."""
        if not isinstance(theta, Tensor):
            raise TypeError(
                "θ must be a Tensor, such as risk.params(). Got "
                f"{type(theta).__name__}; use torch.as_tensor."
            )
        check_tensor("θ", theta)
        if theta.shape != self.theta.shape:
            raise ValueError(
                f"θ must have shape ({self.layout.n_params},), one flat vector of the "
                f"trainable parameters. Got {tuple(theta.shape)}."
            )
        self.theta.copy_(theta.detach())
        for place, view in self._moved:
            place.copy_(view)

    def holds(self, tensor: Tensor) -> bool:
        """Return whether a tensor is a part of the vector."""
        storages = (tensor.untyped_storage(), self.theta.untyped_storage())
        return storages[0].data_ptr() == storages[1].data_ptr()

    def by_place(self, theta: Tensor) -> dict[str, Tensor]:
        """Return the parts of another θ by the names under which modules hold them.

        Parameters
        ----------
        theta : Tensor of shape (D,)

        Returns
        -------
        dict of str to Tensor
            Of the parameters' shapes, as ``torch.func.functional_call`` takes them.
        """
        views = self.layout.views(theta)
        for i in self._odd:
            views[i] = views[i].clone()
        return {place: views[i] for place, i in self._places.items()}


def joined(parts: list[Tensor]) -> Tensor:
    """Return parts of a vector, one after the other.

    Parameters
    ----------
    parts : list of Tensor
        Emptied: on a CPU a large part is let go of as soon as it is copied.

    Returns
    -------
    Tensor of shape (D,)
    """
    n = sum(part.numel() for part in parts)
    if n < _LARGE or parts[0].device.type != "cpu":
        return torch.cat([part.reshape(-1) for part in parts])
    flat, end = parts[0].new_empty(n), n
    while parts:
        part = parts.pop()
        flat[end - part.numel() : end].copy_(part.reshape(-1))
        end -= part.numel()
    return flat
