"""A module that returns the losses of its examples, for a loss that looks inside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from flatmin._utils.messages import first_line
from flatmin._utils.trees import Inputs, as_tree, call_with, is_nested

__all__ = ["LossModule", "as_held", "check_losses", "check_untransformed"]


class LossModule(nn.Module):
    """X and y to ``f(module, X, y)``, one loss an example.

    It holds the module itself, so that f meets every attribute of it; under
    ``functional_call`` the parameters in it are those of the call. Their names are the
    module's own.

    Parameters
    ----------
    module : torch.nn.Module
    f : callable
        Takes the module, X and y, or None, and returns a Tensor of shape (n,).
    """

    def __init__(self, module: nn.Module, f: Callable[..., Tensor]) -> None:
        super().__init__()
        if not isinstance(module, nn.Module):
            raise TypeError(f"module must be a torch.nn.Module. Got {module!r}.")
        self.module = module
        self.training = module.training
        # In a tuple: a loss module must not become a part of this one.
        self._functions = (f,)
        self.differentiates = False  # whether f takes derivatives itself

    @property
    def f(self) -> Callable[..., Tensor]:
        """What computes the losses."""
        return self._functions[0]

    def forward(self, X: Any, y: Any = None) -> Tensor:
        """Return the losses of n examples, or raise if these are others.

        Parameters
        ----------
        X : Tensor of shape (n, ...), or a mapping or a tuple of them
        y : Tensor of shape (n, ...), default=None

        Returns
        -------
        Tensor of shape (n,)

        Raises
        ------
        TypeError
            If f returns no Tensor.
        ValueError
            If it returns one of another shape.
        """
        inputs = as_tree(X).map(_own) if is_nested(X) else _own(X)
        n = len(inputs)
        X = inputs if isinstance(inputs, Tensor) else inputs.unpacked()
        off = self.differentiates and not torch.is_grad_enabled()
        with torch.enable_grad() if off else nullcontext():
            losses = self.f(self.module, X, y)
        if not isinstance(losses, Tensor):
            raise TypeError(
                "f of ModuleLoss must return a Tensor with one loss for each example. "
                f"Got {type(losses).__name__}."
            )
        if losses.shape != (n,):
            raise ValueError(
                "f of ModuleLoss must return one loss for each example, shape (n,). "
                f"Got shape {tuple(losses.shape)} for n = {n}; do not average over "
                "examples, and average over what an example has, as by "
                ".flatten(1).mean(1)."
            )
        return losses.detach() if off else losses

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the module's parameters under its own names."""
        if recurse:
            yield from self.module.named_parameters(prefix, True, remove_duplicate)

    def named_buffers(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield the module's buffers under its own names."""
        if recurse:
            yield from self.module.named_buffers(prefix, True, remove_duplicate)


def as_held(held: nn.Module, module: nn.Module) -> nn.Module:
    """Return a module in the form of the one that a risk holds.

    Parameters
    ----------
    held : torch.nn.Module
        The risk's.
    module : torch.nn.Module
        Somebody's own.

    Returns
    -------
    torch.nn.Module
        Itself, unless the risk's returns losses.
    """
    if isinstance(held, LossModule) and isinstance(module, nn.Module):
        wrapped = LossModule(module, held.f)
        wrapped.differentiates = held.differentiates
        return wrapped
    return module


def check_untransformed(output_transform: Any) -> None:
    """Raise ValueError if the outputs of a :class:`LossModule` are to be transformed.

    Parameters
    ----------
    output_transform : callable or None

    Raises
    ------
    ValueError
        If it is not None.
    """
    if output_transform is not None:
        raise ValueError(
            "f of ModuleLoss calls the module itself, and takes what it needs of its "
            "outputs. Got output_transform too; leave it at None."
        )


def check_losses(module: LossModule, X: Inputs) -> None:
    """Try f on three examples, and raise if it does not give a loss for each.

    Parameters
    ----------
    module : LossModule
        Learns whether f takes derivatives, as of the outputs in X: then gradients are
        on for it.
    X : Tree
        X, and y if there is one.

    Raises
    ------
    TypeError, ValueError
        If it gives something else, or cannot take module, X and y.
    """
    three = X[torch.arange(3) % len(X)]
    for module.differentiates in (False, True):
        try:
            with torch.no_grad():
                call_with(module, three)
            return
        except RuntimeError as error:
            # That nothing requires a gradient, or a fault of its own.
            if module.differentiates:
                _raise_with_name(error)
        except Exception as error:
            _raise_with_name(error)


def _raise_with_name(error: Exception) -> None:
    if isinstance(error, torch.OutOfMemoryError) or "ModuleLoss" in str(error):
        raise error
    raise ValueError(
        "f of ModuleLoss is called as f(module, X, y), with X and y as they were given "
        f"and y None if there is none. It raised {type(error).__name__}: "
        f"{first_line(error)}."
    ) from error


def _own(leaf: Tensor) -> Tensor:
    # f may call requires_grad_ on it; the data must stay without.
    return leaf.view_as(leaf)
