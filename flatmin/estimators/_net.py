"""The nets of the estimators, which know labels, targets and loss as these do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from skorch.utils import to_tensor
from torch import Tensor

from flatmin._utils.trees import as_tree, call_with, lists_as_tuples
from flatmin.dynamics import NoisyNetClassifier, NoisyNetRegressor
from flatmin.estimators._examples import NestedDataset
from flatmin.risk import EmpiricalRisk, ModuleLoss
from flatmin.risk.network.module_copy import copy_module
from flatmin.risk.network.outputs import read_output
from flatmin.risk.network.prepared_module import evaluation_mode

__all__ = [
    "FITTED_PARAMS",
    "EstimatorNetClassifier",
    "EstimatorNetRegressor",
    "make_reader",
]

# Parameters of which a fitted estimator keeps the values of its fit.
FITTED_PARAMS = ("loss", "output_transform", "target", "positions", "l2")

# These, and what an estimator has learnt of the data besides θ.
_READS = {
    *FITTED_PARAMS,
    *("classes_", "n_features_in_", "feature_names_in_"),
    *("_encoder", "_by_class", "_input_shape", "_input_kinds", "_target_shape"),
}


def make_reader(estimator: Any) -> Any:
    """Return what of an estimator reads data, and holds none.

    Parameters
    ----------
    estimator : estimator
        That has seen its training data.

    Returns
    -------
    estimator
        Of the same class, without a network, and without parameters but those that say
        what is compared with y.
    """
    reader = object.__new__(type(estimator))
    known = {name: held for name, held in vars(estimator).items() if name in _READS}
    vars(reader).update(known, module=None)
    return reader


class _EstimatorNet:
    """What the two nets share; ``reader_`` comes from :func:`make_reader`."""

    reader_: Any
    module_: torch.nn.Module

    def make_risk(self, X: Any, y: Any = None, *args: Any, **options: Any) -> Any:
        """Return the risk of the network; see ``make_risk`` of the estimator."""
        module = evaluation_mode(copy_module(self.module_))
        risk: EmpiricalRisk = self.reader_._make_risk_of(module, X, y, *args, **options)
        return risk

    def get_loss(self, y_pred: Any, y_true: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Return the mean loss of a batch, for labels or targets as in ``fit``.

        Returns
        -------
        Tensor of shape ()
        """
        device = next(self.module_.parameters()).device
        targets = y_true  # as they are for a ModuleLoss: its criterion raises
        if not isinstance(self.reader_.loss, ModuleLoss):
            encoded = self.reader_._encode(y_true, reset=False)
            targets = torch.as_tensor(encoded).to(device)
        loss: Tensor = self.criterion_(y_pred, targets)  # type: ignore[attr-defined]
        return loss

    def get_dataset(self, X: Any, y: Any = None) -> Any:
        """Return X and y as a data set; skorch's own knows no nested X.

        Returns
        -------
        torch.utils.data.Dataset
        """
        if isinstance(X, tuple | Mapping):
            X, y = NestedDataset(as_tree(X).map(np.asarray), y), None
        return super().get_dataset(X, y)  # type: ignore[misc]

    def infer(self, x: Any, **fit_params: Any) -> Any:
        """Call the module: a mapping gives keywords, a tuple arguments in order.

        Returns
        -------
        object
            What the module returns.
        """
        if isinstance(x, list | tuple | Mapping):
            # A loader makes lists of tuples, and no tensor is a list.
            tree = as_tree(lists_as_tuples(x))
            device = next(self.module_.parameters()).device
            return call_with(
                self.module_, tree.map(lambda leaf: to_tensor(leaf, device))
            )
        return super().infer(x, **fit_params)  # type: ignore[misc]

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return probabilities of a classifier's labels, or a regressor's outputs.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            As the module takes it.

        Returns
        -------
        ndarray of shape (n_samples, ...)
        """
        turned = self._get_predict_nonlinearity()(torch.as_tensor(self._raw(X)))  # type: ignore[attr-defined]
        probabilities: np.ndarray = turned.numpy()
        return probabilities

    def _raw(self, X: Any) -> np.ndarray:
        transform = self.reader_.output_transform
        parts = [read_output(part, transform) for part in self.forward_iter(X)]  # type: ignore[attr-defined]
        outputs: np.ndarray = torch.cat(parts).detach().cpu().numpy()
        return outputs


class EstimatorNetClassifier(_EstimatorNet, NoisyNetClassifier):
    """The net of a classifier: its labels are those of ``fit``."""

    def predict(self, X: Any) -> np.ndarray:
        """Return the most probable class of each example.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            As the module takes it.

        Returns
        -------
        ndarray of shape (n_samples,)
            Labels, as the estimator's.
        """
        labels: np.ndarray = self.reader_._labels(self._raw(X))
        return labels


class EstimatorNetRegressor(_EstimatorNet, NoisyNetRegressor):
    """The net of a regressor: its predictions have the shape of y."""

    def predict(self, X: Any) -> np.ndarray:
        """Return the predicted targets.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            As the module takes it.

        Returns
        -------
        ndarray of shape (n_samples,) or (n_samples, n_targets)
            As y was.
        """
        predicted: np.ndarray = self.reader_._in_target_shape(self._raw(X))
        return predicted
