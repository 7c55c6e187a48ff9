"""A module's parameters and gradients as views of two vectors, while it trains."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from flatmin.dynamics._optimizer_state import join_state, split_state
from flatmin.risk import EmpiricalRisk, ParameterLayout, Risk
from flatmin.risk.data.opened_data import trial_indices
from flatmin.risk.network.batch_statistics import Statistics, write_statistics
from flatmin.risk.network.module_checks import trainable
from flatmin.risk.network.prepared_module import settings
from flatmin.risk.trials import difference, tolerance

__all__ = ["FlatBinding", "check_outputs"]

_ELEMENT_WISE = {
    torch.optim.ASGD,
    torch.optim.Adadelta,
    torch.optim.Adagrad,
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.Adamax,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.RMSprop,
    torch.optim.Rprop,
    torch.optim.SGD,
}


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
    watch : bool, default=False
        Keep copies of them, of the buffers and of the module's settings, for
        :meth:`check_rest` and :meth:`has_other_settings`.

    Attributes
    ----------
    module : torch.nn.Module
        As given.
    theta : Tensor of shape (D,)
        The parameters.
    gradient : Tensor of shape (D,)
        What the optimizer sees as ``.grad``; write into it.
    params : list of torch.nn.Parameter
        The trainable ones that it began with.
    """

    def __init__(self, module: nn.Module, *, watch: bool = False) -> None:
        self.module = module
        self._layout = layout = ParameterLayout.of(module)
        self.params = trainable(module)
        self.theta = layout.flatten(dict(module.named_parameters()))
        self.gradient = self.theta.new_zeros(self.theta.shape)
        self._flat = nn.Parameter(self.theta)
        self._views = list(layout.views(self.theta))
        self._slopes = list(layout.views(self.gradient))
        self._tie(self.params)
        rest = self._rest() if watch else {}
        self._rest_before = {name: tensor.clone() for name, tensor in rest.items()}
        self._settings_before = copy.deepcopy(settings(module)) if watch else None

    def _tie(self, params: list[nn.Parameter]) -> None:
        for parameter, values, slopes in zip(
            params, self._views, self._slopes, strict=True
        ):
            parameter.data = values
            parameter.grad = slopes
        self._flat.grad = self.gradient

    def _rest(self) -> dict[str, Tensor]:
        """Return what the module holds besides θ."""
        tensors = [*self.module.named_parameters(), *self.module.named_buffers()]
        return {
            name: t.detach() for name, t in tensors if name not in self._layout.names
        }

    def follow(self) -> None:
        """Take over what others have written into the module.

        A parameter that was given another tensor, as by
        ``load_state_dict(assign=True)``, hands its values to θ and is tied again. So
        are gradients that were set to None.

        Raises
        ------
        RuntimeError
            If the trainable parameters are others than in the beginning.
        """
        named = {n: p for n, p in self.module.named_parameters() if p.requires_grad}
        shapes = tuple(tuple(p.shape) for p in named.values())
        if (tuple(named), shapes) != (self._layout.names, self._layout.shapes):
            raise RuntimeError(
                "A callback has changed which parameters of the module are trained. "
                f"Required are {', '.join(self._layout.names)}, as they were. Pass a "
                "module whose frozen parameters have requires_grad=False."
            )
        params = list(named.values())
        tied = all(
            (p.data_ptr(), p.dtype) == (view.data_ptr(), view.dtype)
            for p, view in zip(params, self._views, strict=True)
        )
        if not tied:
            self.theta.copy_(self._layout.flatten(named))
        self._tie(self.params)  # an optimizer may hold the old ones
        self._tie(params)

    def write_statistics(self, statistics: Statistics) -> None:
        """Make statistics the running ones of the module's BatchNorm layers.

        Parameters
        ----------
        statistics : dict of str to (mean, variance)
            From ``batch_statistics`` of a risk of this module.
        """
        write_statistics(self.module, statistics)
        now = dict(self.module.named_buffers())
        for name in self._rest_before.keys() & now.keys():
            if name.rpartition(".")[0] in statistics:
                self._rest_before[name] = now[name].clone()

    def check_rest(self) -> None:
        """Raise if what θ does not hold is not as it was.

        Raises
        ------
        RuntimeError
            If a buffer or a frozen parameter has changed.
        """
        rest = self._rest() if self._rest_before else {}
        for name, before in self._rest_before.items():
            now = rest.get(name)
            if now is None or now.dtype != before.dtype or not torch.equal(now, before):
                raise RuntimeError(
                    f"A callback has changed {name} of the module, which θ does not "
                    "hold: the loss that is trained has it as it was when fit began. "
                    "Set it before fit, in the module that is passed as module=."
                )

    def has_other_settings(self) -> bool:
        """Return whether attributes of plain values have changed since the last call.

        Returns
        -------
        bool
            They may be counters, which no output depends on.
        """
        before = self._settings_before
        if before is None or before == (now := settings(self.module)):
            return False
        self._settings_before = copy.deepcopy(now)
        return True

    def params_for(self, optimizer: type[torch.optim.Optimizer]) -> list[nn.Parameter]:
        """Return what to give an optimizer.

        One that works element by element takes θ as a single parameter: its step is
        then one call and not one for each layer (of a network of 251 parameters an
        iteration takes 1.1 and not 1.2 times a bare loop).

        Parameters
        ----------
        optimizer : type

        Returns
        -------
        list of torch.nn.Parameter
        """
        return [self._flat] if optimizer in _ELEMENT_WISE else self.params

    def assign(self, theta: Tensor) -> None:
        """Copy values into θ, and so into the module.

        Parameters
        ----------
        theta : Tensor of shape (D,)
        """
        self.follow()
        self.theta.copy_(theta)

    def speak_of_parameters(self, optimizer: torch.optim.Optimizer) -> None:
        """Let an optimizer of the flat θ save and load its state by parameters.

        What is saved can then be loaded where an optimizer holds the module's own, as
        in a net that has been trained, and the other way round.

        Parameters
        ----------
        optimizer : torch.optim.Optimizer
            On what :meth:`params_for` returns.
        """
        if optimizer.param_groups[0]["params"][0] is self._flat:
            shapes = self._layout.shapes
            optimizer.register_state_dict_post_hook(
                lambda _, state: split_state(state, shapes)
            )
            optimizer.register_load_state_dict_pre_hook(
                lambda _, state: join_state(state, shapes)
            )

    def release(self) -> None:
        """Give every parameter its own storage and no gradient."""
        for parameter in self.module.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.clone()
                parameter.grad = None


def check_outputs(risk: Risk, module: nn.Module, theta: Tensor) -> None:
    """Raise if a module no longer computes what the risk does.

    Parameters
    ----------
    risk : Risk
    module : torch.nn.Module
        Tried on some of the risk's examples, where it has a network.
    theta : Tensor of shape (D,)

    Raises
    ------
    RuntimeError
        If the outputs differ.
    """
    if not isinstance(risk, EmpiricalRisk):
        return
    few = risk
    if risk.batch_norm != "batch":
        few = risk.subset(trial_indices(risk.n_examples))
    now = few.with_module(module).outputs(theta)
    if difference(now, few.outputs(theta)) > tolerance(now.dtype, 0):
        raise RuntimeError(
            "A callback has changed a setting of the module, and so its outputs: the "
            "loss that is trained has it as it was when fit began. Set it before fit, "
            "in the module that is passed as module=."
        )
