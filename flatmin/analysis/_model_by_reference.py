"""An estimator around a fitted model that clones and searches leave as it is."""

from __future__ import annotations

import copy
from typing import Any, Self

import torch
from sklearn.base import BaseEstimator
from sklearn.frozen import FrozenEstimator
from sklearn.utils.validation import validate_data

from flatmin._utils.arrays import check_readable
from flatmin._utils.docstrings import with_entries
from flatmin._utils.random import make_generator, make_seed
from flatmin._utils.trees import as_tree, is_nested
from flatmin.analysis._risk import (
    risk_of_model,
    training_risk,
    warn_of_batch_norm,
)
from flatmin.risk import EmpiricalRisk
from flatmin.risk.data.source import is_data_set
from flatmin.risk.ranks.collectives import is_first

__all__ = ["ModelByReference", "with_risk_entries"]

# How the risk of the model is made, the same for every class.
with_risk_entries = with_entries(
    parameters="""
output_transform : callable, default=None
    Takes what the module returns, and returns the tensor that the loss compares; see
    :class:`~flatmin.EmpiricalRisk`. A flatmin estimator has its own.
target : str, default=None
    The name of the targets, where X is a mapping that holds them, or a data set of
    such. A flatmin estimator has its own.
positions : {"all", "example"}, default=None
    What an example with several targets counts, None is "all"; see
    :class:`~flatmin.EmpiricalRisk`. A flatmin estimator has its own.
l2 : float, default=None
    λ of a penalty (λ/2)‖θ‖² of the risk; None is 0. A flatmin estimator has its own.
    The ``weight_decay`` of an optimizer is none.
batch_norm : {"error", "frozen", "batch"}, default=None
    What becomes of BatchNorm in a module: see :class:`~flatmin.EmpiricalRisk`. None is
    "frozen", and warns where a bare module has one in train mode. A flatmin estimator
    has its own: on its training data that of the training, on other data "frozen".
hvp : {"exact", "finite_difference"}, default="exact"
    How products with the Hessian are computed; the second is for networks of which
    PyTorch has no second derivative, see :class:`~flatmin.EmpiricalRisk`.
compile : bool, default=False
    Run ``torch.compile`` on the graph of products, which takes a minute or more and
    pays for many of them; see :class:`~flatmin.EmpiricalRisk`.
device : str or torch.device, default=None
    Of the analysis; None is the model's, "auto" CUDA where there is any.
dtype : {"float32", "float64"}, default=None
    Of the analysis; None is the model's.
subset : int or float, default=None
    How many of the examples to look at, or which share of them; None is all. They are
    drawn without replacement, by ``random_state``. What is measured is then an estimate
    of that of all examples, the bias subtracted and the error of the draw in its
    standard error: see :class:`~flatmin.analysis.Sampling`. What has no such error, and
    subsets that are too small, are refused.
distributed : bool, default=False
    Whether the processes of the default group of ``torch.distributed`` share the
    examples, see :class:`~flatmin.EmpiricalRisk`: all of them call the same, with one
    ``random_state``, and all get the results; the first shows progress.
"""
)


class ModelByReference(BaseEstimator):
    """An estimator around a fitted model that clones and searches leave as it is."""

    estimator: Any
    loss: Any
    output_transform: Any
    target: Any
    positions: Any
    l2: Any
    batch_norm: Any
    hvp: Any
    compile: Any
    device: Any
    dtype: Any
    distributed: Any
    random_state: Any
    verbose: Any

    def __sklearn_clone__(self) -> Self:
        # clone() hands a FrozenEstimator on as it is, so its own checks hold.
        shell = copy.copy(self)
        shell.estimator = FrozenEstimator(self.estimator)
        cloned = super(ModelByReference, shell).__sklearn_clone__()
        cloned.estimator = self.estimator
        return cloned

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the parameters, without those of the model.

        Parameters
        ----------
        deep : bool, default=True
            Without effect: the model is not searched.

        Returns
        -------
        dict
        """
        return super().get_params(deep=False)

    def set_params(self, **params: Any) -> Self:
        """Set parameters, but none of the model's.

        Parameters
        ----------
        **params
            Names and values.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If one is the model's, which is fitted and shared with all clones.
        """
        inner = [name for name in params if name.startswith("estimator__")]
        if inner:
            raise ValueError(
                f"{type(self).__name__} analyses a fitted model, which all its clones "
                f"share, and does not set its parameters. Got {', '.join(inner)}; "
                "fit another model, or search over the model with a SharpnessScorer "
                "in scoring=."
            )
        return super().set_params(**params)

    def _risk_on(
        self,
        estimator: Any,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        **options: Any,
    ) -> EmpiricalRisk:
        if self.batch_norm is None:
            warn_of_batch_norm(estimator)
        return risk_of_model(
            estimator, X, y, sample_weight, **options, **self._settings()
        )

    def _training_risk(self, estimator: Any) -> EmpiricalRisk:
        return training_risk(estimator, type(self).__name__, **self._settings())

    def _settings(self) -> dict[str, Any]:
        return {
            "loss": self.loss,
            "output_transform": self.output_transform,
            "target": self.target,
            "positions": self.positions,
            "l2": self.l2,
            "batch_norm": self.batch_norm,
            "hvp": self.hvp,
            "compile": self.compile,
            "device": self.device,
            "dtype": self.dtype,
            "distributed": self.distributed,
        }

    @property
    def _shown(self) -> Any:
        """Return ``verbose`` where this process shows something."""
        return is_first(self.distributed) and self.verbose

    def _check_features(self, X: Any, *, reset: bool) -> None:
        if is_nested(X):
            names = set(as_tree(X).names)
            if reset:
                self._leaves = names
                for learnt in ("n_features_in_", "feature_names_in_"):
                    self.__dict__.pop(learnt, None)
            elif getattr(self, "_leaves", None) != names:
                raise ValueError(
                    f"X must have the form of the X of fit. Got the parts "
                    f"{', '.join(sorted(names))}."
                )
        elif not is_data_set(X):
            if reset:
                self.__dict__.pop("_leaves", None)
            elif hasattr(self, "_leaves"):
                raise ValueError(
                    "X must have the parts of the X of fit, "
                    f"{', '.join(sorted(self._leaves))}. Got one {type(X).__name__}."
                )
            check_readable("X", X)
            try:
                validate_data(self, X, reset=reset, skip_check_array=True)
            except (AttributeError, IndexError, KeyError) as error:
                raise TypeError(
                    "X must be an array, a tensor, a data frame or a data set. Got "
                    f"{type(X).__name__}."
                ) from error

    def _generator(self, device: torch.device) -> torch.Generator:
        return make_generator(make_seed(self.random_state), device)
