"""The network of an empirical risk: its θ, what else it holds, and how it is taken."""

from __future__ import annotations

from contextlib import suppress

import torch
from torch import Tensor, nn

from flatmin._utils.locks import Lock
from flatmin._utils.names import check_text
from flatmin.risk.autodiff.surroundings import alone
from flatmin.risk.data.chunks import Chunk
from flatmin.risk.network.batch_statistics import (
    Statistics,
    check_statistics,
    refuse_examples,
)
from flatmin.risk.network.layout import ParameterLayout
from flatmin.risk.network.loss_module import as_held
from flatmin.risk.network.model import FlatModel
from flatmin.risk.network.module_update import comparable
from flatmin.risk.trials import tolerance

__all__ = ["NetworkRisk"]


class NetworkRisk:
    """A network, and a few examples to try it on."""

    device: torch.device
    dtype: torch.dtype
    _model: FlatModel
    _few: Chunk  # up to 16 examples, to try things on
    _theta: Tensor

    @property
    def layout(self) -> ParameterLayout:
        """Order and shapes of the parameters in θ."""
        return self._model.layout

    @property
    def n_params(self) -> int:
        """D."""
        return self._model.layout.n_params

    @property
    def keeps_graph(self) -> bool:
        """Whether the module computes something else where gradients are off.

        Then they are on for values and outputs, too.
        """
        return self._model.keeps_graph

    @property
    def batch_norm(self) -> str:
        """How BatchNorm is taken: "batch" with the statistics of all examples.

        Else "frozen", also for a network without BatchNorm.
        """
        return "batch" if self._model.normalises_batch else "frozen"

    @property
    def _lock(self) -> Lock:
        return self._model.lock

    def params(self) -> Tensor:
        """Return the θ that the risk was made with, or was last set to.

        The module's parameters at construction; where an estimator has trained, the
        ones that it ended with.

        Returns
        -------
        Tensor of shape (D,)
            A copy.
        """
        return self._theta.clone()

    @alone
    def set_params(self, theta: Tensor) -> None:
        """Make θ what :meth:`params` returns.

        Parameters
        ----------
        theta : Tensor of shape (D,)
            Copied.
        """
        self._model.bind(theta)
        self._theta = self._model.theta()

    @alone
    def update_from(self, module: nn.Module) -> None:
        """Take over what a module holds now, so that one risk serves a whole training.

        θ, which :meth:`params` then returns, the parameters that are not trained, and
        the buffers, such as the running statistics of BatchNorm. Subsets of the risk
        share the network: they see the new buffers, but have a θ of their own.

        Parameters
        ----------
        module : torch.nn.Module
            That the risk was made with, or one of the same form, in any mode, dtype
            and place. It is not touched.

        Raises
        ------
        ValueError
            If it has other names or shapes, or computes something else at the same
            parameters; the risk stays as it was then.

        Examples
        --------
        >>> from flatmin import EmpiricalRisk
        >>> net = nn.Linear(1, 1, bias=False)
        >>> risk = EmpiricalRisk(net, "squared_error", [[1.0]], [[0.0]])
        >>> _ = nn.init.constant_(net.weight, 3.0)
        >>> risk.update_from(net)
        >>> risk.value(risk.params())
        tensor(9.)
        """
        module = as_held(self._model.module, module)
        other = comparable(module, batch_statistics=self._model.normalises_batch)
        self._model.take_over(other, self._few.X)
        self._theta = self._model.theta()

    @alone
    def set_batch_statistics(self, statistics: Statistics) -> None:
        """Make statistics the running ones of the BatchNorm layers.

        Parameters
        ----------
        statistics : dict of str to (mean, variance)
            From :meth:`batch_statistics` of a risk of the same network.

        Raises
        ------
        ValueError
            If this risk takes the statistics of its own examples, or these are of
            other layers.
        TypeError
            If they are no such dict.
        """
        if self._model.normalises_batch:
            raise ValueError(
                "set_batch_statistics needs a risk with running statistics. Got one "
                "with batch_norm='batch', which takes those of its examples."
            )
        check_statistics(self._model.module, statistics)
        self._model.set_statistics(statistics)

    @alone
    def check_running_statistics(self) -> None:
        """Raise if running statistics cannot give what those of a batch give.

        Nothing is asked of a network without ``batch_norm="batch"``. Of another one a
        few examples are run through with the statistics of their batch, and with these
        as running statistics.

        Raises
        ------
        ValueError
            If the outputs differ.
        """
        if not self._model.normalises_batch:
            return
        off = self._model.frozen_off(self._few.X)
        if off > tolerance(self.dtype, 0):
            # In float32 PyTorch's evaluation mode loses digits where the mean of a
            # channel is large beside its spread.
            with suppress(RuntimeError):
                wide = self._model.to(torch.float64)
                off = wide.frozen_off(self._few.double().X)
        if off > tolerance(self.dtype, 0):
            raise ValueError(
                "Predictions after batch_norm='batch' need running statistics with "
                "which the network gives the outputs that it is trained to. Got "
                f"outputs that change by {off:.1e}, relative to their size. Look for a "
                "BatchNorm that a pass uses twice, which has two sets of them; make it "
                "two layers."
            )

    def check_examples(self, who: str, way_out: str = "") -> None:
        """Raise ValueError if no example has a loss of its own.

        It is so under ``batch_norm="batch"``, where all of them share statistics.

        Parameters
        ----------
        who : str
            Needs the losses of examples; begins the message.
        way_out : str, default=""
            Besides those that the message always has.
        """
        check_text("who", who)
        check_text("way_out", way_out)
        refuse_examples(self._model, who, way_out)
