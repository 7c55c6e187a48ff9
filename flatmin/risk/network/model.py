"""A module as a function of one flat θ."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import is_batchedtensor
from torch.autograd.graph import GradientEdge
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from flatmin._utils.locks import Lock
from flatmin._utils.trees import Inputs, call_with, leaves_of, map_inputs
from flatmin.risk.autodiff.casts import InFloat64
from flatmin.risk.autodiff.isolation import check_autograd
from flatmin.risk.autodiff.surroundings import attends, one_attention
from flatmin.risk.network.batch_statistics import (
    Statistics,
    normalises_batch,
    recorded_statistics,
    write_statistics,
)
from flatmin.risk.network.flat_parameters import FlatParameters, joined
from flatmin.risk.network.module_copy import copy_module
from flatmin.risk.network.module_update import check_form, copy_tensors, reads_alike
from flatmin.risk.network.outputs import OutputTransform, read_output
from flatmin.risk.trials import difference, tolerance
from flatmin.risk.write_guard import WriteGuard

__all__ = ["FlatModel"]


class FlatModel:
    """A private module whose parameters are views of one vector.

    Parameters
    ----------
    module : torch.nn.Module
        In eval mode; taken over, so hand in a copy.
    output_transform : callable or None
        Applied to what ``forward`` returns; None is the rule of
        :func:`flatmin.risk.network.outputs.read_output`.

    Attributes
    ----------
    layout : ParameterLayout
        Order and shapes.
    params : list of torch.nn.Parameter
        The trainable ones; :meth:`bind` sets their values.
    guard : WriteGuard
        Of its input, for the module and its copies.
    normalises_batch : bool
        True if BatchNorm takes the statistics of its input, so that the outputs for one
        example depend on all that it comes with.
    pairs_single : bool
        True if one example runs as two: the derivative of BatchNorm in eval mode on a
        single example can be wrong (torch 2.13).
    keeps_graph : bool
        True if the module computes something else where gradients are switched off:
        then they are on for its outputs, too.
    lowest_dtype : torch.dtype
        In which the module computes what depends on θ, at its lowest: θ's own, or less
        where it casts.
    in_float64 : bool
        True if casts of the module's are taken for casts to float64.
    n_updates : int
        How often :meth:`take_over` has changed what θ does not hold; a block's count
        is that of the model that it was made of.
    lock : Lock
        Held by who binds θ until he has his numbers.
    """

    def __init__(
        self, module: nn.Module, output_transform: OutputTransform | None
    ) -> None:
        self.module = module
        self.output_transform = output_transform
        self.guard = WriteGuard(_WRITES)
        self.normalises_batch = normalises_batch(module)
        self.pairs_single = not self.normalises_batch and any(
            isinstance(part, _BatchNorm) for part in module.modules()
        )
        self.keeps_graph = False
        self.in_float64 = False
        self._updates = [0]  # shared with blocks
        self.lock = Lock("A risk")
        self._attends = attends(module)
        self._make_views()
        self.lowest_dtype = self._flat.theta.dtype

    def _make_views(self) -> None:
        self._flat = FlatParameters(self.module)
        self.layout, self.params = self._flat.layout, self._flat.params

    # Copies and pickles of views are no longer views: a copied model would ignore
    # bind(), and a pickle would hold θ once for every parameter.
    def __getstate__(self) -> dict[str, Any]:
        return self._copied_state()

    def _copied_state(self, dtype: torch.dtype | None = None) -> dict[str, Any]:
        with self.lock:
            state = self.__dict__.copy()
            for derived in ("layout", "params", "_flat", "lock"):
                del state[derived]
            state["module"] = copy_module(self.module, dtype=dtype)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.lock = Lock("A risk")
        self._make_views()

    def to(self, dtype: torch.dtype) -> FlatModel:
        """Return a copy in another precision, bound to the same θ."""
        twin = FlatModel.__new__(FlatModel)  # copy.copy would copy the module once more
        twin.__setstate__(self._copied_state(dtype) | {"lowest_dtype": dtype})
        return twin

    def frozen_at(self, X: Inputs) -> FlatModel:
        """Return a copy whose BatchNorm keeps the statistics of some examples.

        Parameters
        ----------
        X : Tensor of shape (n, ...) or Tree

        Returns
        -------
        FlatModel
            Bound to the same θ.
        """
        with recorded_statistics(self.module) as statistics:
            self.evaluate(X)
        module = copy_module(self.module)
        write_statistics(module, statistics)
        twin = FlatModel(module, self.output_transform)
        twin.guard, twin.keeps_graph = self.guard, self.keeps_graph
        twin.lowest_dtype, twin.in_float64 = self.lowest_dtype, self.in_float64
        return twin

    @property
    def precision(self) -> torch.dtype:
        """Return float64 where every number has its digits, else float32.

        Two ways to one quantity may differ by the rounding of this precision.
        """
        in_float64 = self.lowest_dtype == torch.float64
        return torch.float64 if in_float64 else torch.float32

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters."""
        return self._flat.theta.dtype

    @property
    def n_updates(self) -> int:
        """How often what θ does not hold has changed."""
        return self._updates[0]

    def check_current(self, n_updates: int) -> None:
        """Raise RuntimeError if what θ does not hold has changed since then."""
        if self.n_updates != n_updates:
            raise RuntimeError(
                "A prepared point is of the module as it was. Got one that was made "
                "before update_from; linearize again."
            )

    def block(self, names: Collection[str]) -> FlatModel:
        """Return a copy of which θ is some parameters; the others stay as bound now.

        Parameters
        ----------
        names : collection of str
            Of ``layout.names``.

        Returns
        -------
        FlatModel
            It shares the lock.
        """
        twin = copy.copy(self)
        for name, parameter in twin.module.named_parameters():
            parameter.requires_grad_(name in names)
        twin._make_views()
        twin.lock = self.lock
        return twin

    def frozen_off(self, X: Inputs) -> float:
        """Return how far outputs of :meth:`frozen_at` are from the model's own.

        Parameters
        ----------
        X : Tensor of shape (n, ...) or Tree

        Returns
        -------
        float
            Relative to their size.
        """
        return difference(self.frozen_at(X).evaluate(X), self.evaluate(X))

    def bind(self, theta: Tensor) -> None:
        """Give the parameters the values of θ.

        Parameters
        ----------
        theta : Tensor of shape (D,)

        Raises
        ------
        ValueError
            If its shape does not fit.
        TypeError
            If it is no tensor, or complex.
        """
        self._flat.bind(theta)

    def take_over(self, module: nn.Module, few: Inputs) -> None:
        """Copy the parameters and buffers of a module of the same form.

        Parameters
        ----------
        module : torch.nn.Module
            In the form that a risk holds.
        few : Tensor of shape (n, ...) or Tree
            Examples, for which both must give the same outputs.

        Raises
        ------
        ValueError
            If the form is another one, or the outputs are; nothing changes then.
        """
        check_form(self.module, module)
        before = copy_module(self.module)
        copy_tensors(self.module, module)
        self.bind(self.layout.flatten(dict(module.named_parameters())))
        exactly = not reads_alike(before, module)
        if not self.computes_as(module, few, exactly=exactly):
            copy_tensors(self.module, before)
            self.bind(self.layout.flatten(dict(before.named_parameters())))
            raise ValueError(
                "The module must compute what the one that the risk was made with "
                "computes. Got one with other settings, which gives other outputs "
                "at the same parameters. Make a new risk."
            )
        self._updates[0] += 1

    def set_statistics(self, statistics: Statistics) -> None:
        """Give BatchNorm these running statistics."""
        write_statistics(self.module, statistics)
        self._updates[0] += 1

    def computes_as(
        self, module: nn.Module, few: Inputs, *, exactly: bool = False
    ) -> bool:
        """Say whether another module of the same numbers gives the same outputs.

        What it computes may depend on more than its numbers and plain settings: on
        tensors that are no buffers, on hooks, on an object with settings.

        Parameters
        ----------
        module : torch.nn.Module
            In the form that a risk holds, with the bound parameters and the buffers.
        few : Tensor of shape (n, ...) or Tree
            Examples.
        exactly : bool, default=False
            Whether rounding counts.

        Returns
        -------
        bool
        """
        theta = self._flat.theta
        twin = FlatModel(
            copy_module(module, device=theta.device, dtype=theta.dtype),
            self.output_transform,
        )
        twin.keeps_graph = self.keeps_graph
        ours, theirs = self.evaluate(few), twin.evaluate(few)
        if exactly or ours.shape != theirs.shape:
            return torch.equal(ours, theirs)
        return difference(theirs, ours) <= tolerance(theta.dtype, 0)

    def holds(self, tensor: Tensor) -> bool:
        """Return whether a tensor is a part of the bound θ."""
        return self._flat.holds(tensor)

    def theta(self) -> Tensor:
        """Return a copy of the bound θ, shape (D,)."""
        return self._flat.theta.clone()

    def __call__(self, X: Inputs) -> Tensor:
        """Return the outputs at the bound θ."""
        return self._run(self.module, X)

    def evaluate(self, X: Inputs) -> Tensor:
        """Return the outputs at the bound θ, without a graph."""
        with torch.set_grad_enabled(self.keeps_graph):
            return self(X).detach()

    def _run(self, module: Callable[..., Any], X: Inputs) -> Tensor:
        # Under vmap a tensor of one example stands for many.
        pairs = self.pairs_single and len(X) == 1 and not _is_batched(X)
        if pairs:
            X = map_inputs(lambda leaf: torch.cat([leaf, leaf]), X)
        with (
            one_attention() if self._attends else nullcontext(),
            InFloat64() if self.in_float64 else nullcontext(),
        ):
            outputs = self.guard.call(
                lambda X: self.read_output(call_with(module, X)), X, are_copies=pairs
            )
        return outputs[:1] if pairs else outputs

    def functional(self, theta: Tensor, X: Inputs) -> Tensor:
        """Return the outputs at θ as a function of θ, for higher derivatives.

        Parameters
        ----------
        theta : Tensor of shape (D,)
        X : Tensor of shape (n, ...) or Tree

        Returns
        -------
        Tensor of shape (n, ...)
        """
        parameters = self._flat.by_place(theta)

        def module(*args: Any, **kwargs: Any) -> Any:
            return functional_call(
                self.module, parameters, args, kwargs, tie_weights=False
            )

        return self._run(module, X)

    def gradient(self, tensors: Tensor, cotangents: Tensor) -> Tensor:
        """Return the flat vector-Jacobian product at the bound θ, shape (D,)."""
        return joined(self.gradients(tensors, cotangents))

    def gradients(
        self,
        tensors: Tensor | Sequence[Tensor] | Sequence[GradientEdge],
        cotangents: Tensor | Sequence[Tensor] | None = None,
        **options: bool,
    ) -> list[Tensor]:
        """Return the vector-Jacobian product at the bound θ by parameter.

        Parameters
        ----------
        tensors : Tensor, or sequence of Tensor or of GradientEdge
        cotangents : Tensor or sequence of Tensor, default=None
            None for a single number.
        **options : bool
            Of ``torch.autograd.grad``.

        Returns
        -------
        list of Tensor
            Zeros of what does not depend on θ, as where an unused layer is the block.
        """
        several = [tensors] if isinstance(tensors, Tensor) else tensors
        if not any(isinstance(t, GradientEdge) or t.requires_grad for t in several):
            check_autograd()
            return [torch.zeros_like(parameter) for parameter in self.params]
        return list(
            torch.autograd.grad(
                tensors,
                self.params,
                cotangents,
                allow_unused=True,
                materialize_grads=True,
                **options,
            )
        )

    def read_output(self, outputs: Any) -> Tensor:
        """Return the one tensor of what ``forward`` returned."""
        return read_output(outputs, self.output_transform)


_WRITES = (
    "The module must leave its input as it is. Got one that writes into it, for some "
    "examples or at some θ only; the trials when the risk was made did not show it. X "
    "may be changed now, and this risk cannot be used any more. Begin forward with "
    "x = x.clone(), or write nothing into x (x.masked_fill in place of x.masked_fill_, "
    "torch.where in place of x[mask] = ...), and make a new risk of X as it was."
)


def _is_batched(X: Inputs) -> bool:
    return any(is_batchedtensor(leaf) for leaf in leaves_of(X))
