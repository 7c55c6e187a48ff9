"""A model as it was when an analyzer was fitted: its risk on other data."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from flatmin.analysis._risk import (
    is_flatmin,
    loss_of,
    reader_of,
    risk_of_model,
    unwrap,
)
from flatmin.risk import EmpiricalRisk

__all__ = ["HeldModel"]


class HeldModel:
    """What a risk needs besides its network, which the risk of the fit holds.

    Parameters
    ----------
    estimator : flatmin estimator, skorch net or torch.nn.Module
        Also wrapped as in :func:`risk_of_model`.
    settings : dict
        Further arguments of :func:`risk_of_model`.
    """

    def __init__(self, estimator: Any, settings: dict[str, Any]) -> None:
        model, transformers = unwrap(estimator)
        # A pipeline that is fitted again fits the same objects.
        self._transformers = copy.deepcopy(transformers)
        self._reader = reader_of(model) if is_flatmin(model) else None
        self._settings = dict(settings)
        if self._reader is None:
            self._settings["loss"] = loss_of(model, settings["loss"])

    def risk_on(
        self, risk: EmpiricalRisk, X: Any, y: Any, sample_weight: Any, **options: Any
    ) -> EmpiricalRisk:
        """Return the risk of the network of another risk on other data.

        Parameters
        ----------
        risk : EmpiricalRisk
            That the analyzer made when it was fitted.
        X, y, sample_weight, **options : object
            As in :func:`risk_of_model`.

        Returns
        -------
        EmpiricalRisk
        """
        for transformer in self._transformers:
            X = transformer.transform(X)
        model: Any = risk.frozen_module()
        if self._reader is not None:
            model = _Predictor(self._reader, model)
        return risk_of_model(model, X, y, sample_weight, **options, **self._settings)


class _Predictor:
    """A network, with what a flatmin estimator has learnt of labels and weights."""

    def __init__(self, reader: Any, module: nn.Module) -> None:
        self.reader_ = reader
        self._module = module

    def make_risk(self, *args: Any, **options: Any) -> Any:
        return self.reader_._make_risk_of(self._module, *args, **options)
