"""The regressor."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.base import RegressorMixin
from sklearn.metrics import r2_score
from sklearn.utils import check_array
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from flatmin._utils.arrays import to_numpy
from flatmin._utils.messages import naming
from flatmin.estimators._averages import mean_over
from flatmin.estimators._base import BaseNoisyDiffusion
from flatmin.estimators._fitted import as_fitted
from flatmin.estimators._inputs import as_source, targets_like
from flatmin.estimators._net import EstimatorNetRegressor
from flatmin.estimators._outputs import outputs_and_targets
from flatmin.estimators._parameters import with_shared_entries
from flatmin.risk import EmpiricalRisk, ModuleLoss
from flatmin.risk.data.source import is_data_set, split_targets

__all__ = ["NoisyDiffusionRegressor"]


@with_shared_entries
class NoisyDiffusionRegressor(RegressorMixin, BaseNoisyDiffusion):
    """Regressor trained under designed gradient noise, θ ← θ - η (g₀ + ε).

    Gradient descent, SGD, and Langevin dynamics whose noise has another shape or size;
    see :mod:`flatmin.noise` for the laws. A full-batch method uses all examples in each
    iteration.

    Parameters
    ----------
    loss : str, loss module, callable or ModuleLoss, default="auto"
        "auto" is "squared_error", the mean over targets of (f - y)²; else as in
        :class:`flatmin.EmpiricalRisk`. With a :class:`~flatmin.risk.ModuleLoss` y may
        be None, scores are minus the mean loss, and predictions what the module
        returns, in the shape of y if they have as many numbers.
    lr : float, default=0.001
        η. Small, so that targets far from unit scale do not make it diverge; with
        standardised y use more.

    See Also
    --------
    NoisyDiffusionClassifier : The same for classification.

    References
    ----------
    Z. Zhu, J. Wu, B. Yu, L. Wu and J. Ma, "The Regularization Effects of Anisotropic
    Noise in Stochastic Gradient Descent", arXiv 1803.00195.

    Examples
    --------
    >>> from flatmin import NoisyDiffusionRegressor
    >>> from flatmin.datasets import make_cubic_regression
    >>> X, y = make_cubic_regression(20)
    >>> reg = NoisyDiffusionRegressor(lr=0.1, batch_size=5, random_state=0)
    >>> reg.fit(X, y).score(X, y) > 0.9
    True
    """

    _net_class = EstimatorNetRegressor

    def __init__(
        self,
        module=None,
        *,
        module_params=None,
        method="sgd",
        method_params=None,
        loss="auto",
        output_transform=None,
        target=None,
        positions="all",
        l2=0.0,
        lr=0.001,
        max_iter=2000,
        batch_size=None,
        noise_scale=None,
        n_components=None,
        refresh_every=None,
        gradient_batch_size=None,
        optimizer="sgd",
        optimizer_params=None,
        training=None,
        warmup=None,
        memory=None,
        params_init=None,
        metrics=None,
        record_every=100,
        keep_params_every=None,
        batch_norm="error",
        device="cpu",
        dtype="float32",
        distributed=False,
        callbacks=None,
        on_divergence="raise",
        checkpoint_dir=None,
        store_data=True,
        random_state=None,
        warm_start=False,
        verbose=False,
    ):
        self.module = module
        self.module_params = module_params
        self.method = method
        self.method_params = method_params
        self.loss = loss
        self.output_transform = output_transform
        self.target = target
        self.positions = positions
        self.l2 = l2
        self.lr = lr
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.noise_scale = noise_scale
        self.n_components = n_components
        self.refresh_every = refresh_every
        self.gradient_batch_size = gradient_batch_size
        self.optimizer = optimizer
        self.optimizer_params = optimizer_params
        self.training = training
        self.warmup = warmup
        self.memory = memory
        self.params_init = params_init
        self.metrics = metrics
        self.record_every = record_every
        self.keep_params_every = keep_params_every
        self.batch_norm = batch_norm
        self.device = device
        self.dtype = dtype
        self.distributed = distributed
        self.callbacks = callbacks
        self.on_divergence = on_divergence
        self.checkpoint_dir = checkpoint_dir
        self.store_data = store_data
        self.random_state = random_state
        self.warm_start = warm_start
        self.verbose = verbose

    @as_fitted
    def predict(self, X: Any, params: Any = None) -> np.ndarray:
        """Return the predicted targets.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features, ...), or a data set
        params : array-like of shape (n_points, n_params), default=None
            Points θ, such as ``trajectory_`` or a part of its ``params``: the mean of
            the predictions over them. None is the θ of the fit alone. After
            ``batch_norm="batch"`` each has the statistics of the training set there,
            which takes a pass over it.

        Returns
        -------
        ndarray of shape (n_samples,) or (n_samples, n_targets)
            As y was. Of dtype float64, unless X, or a data set, and the network are of
            float32 and there are no ``params``.
        """
        check_is_fitted(self)
        if params is not None:
            return mean_over(self, X, params, self._in_target_shape)
        predicted = self._in_target_shape(self._outputs(X))
        in_float32 = str(getattr(X, "dtype", "")).endswith("float32")
        if in_float32 or is_data_set(X):
            return predicted
        return predicted.astype(np.float64, copy=False)  # as scikit-learn's

    @as_fitted
    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Return the coefficient of determination R².

        With a ``ModuleLoss``, of which nobody knows what is compared with y, minus the
        mean of its losses, without a penalty.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features, ...), or a data set
        y : array-like of shape (n_samples,) or (n_samples, n_targets), default=None
            None with a data set, which holds its own.
        sample_weight : array-like of shape (n_samples,), default=None

        Returns
        -------
        float
        """
        if isinstance(self.loss, ModuleLoss):
            return self._minus_loss(self.make_risk(X, y, sample_weight))
        X, y = split_targets(X, y, self.target)
        source = as_source(X, y, self.target)
        if source is None:
            y, sample_weight = targets_like(X, y, sample_weight)
            return super().score(X, y, sample_weight)
        outputs, y = outputs_and_targets(self, source)
        predicted = self._in_target_shape(outputs)
        return r2_score(y, predicted, sample_weight=sample_weight)

    def _minus_loss(self, risk: EmpiricalRisk) -> float:
        theta = risk.params()
        penalty = risk.l2 / 2 * theta.double().square().sum()
        return float(penalty - risk.value(theta).double())

    def _takes_no_y(self) -> bool:
        return isinstance(self.loss, ModuleLoss)

    def _in_target_shape(self, outputs: np.ndarray) -> np.ndarray:
        shape = getattr(self, "_target_shape", None)
        fits = shape is not None and outputs[0].size == math.prod(shape)
        if isinstance(self.loss, ModuleLoss) and not fits:
            return outputs
        return outputs.reshape(-1, *self._target_shape)

    def _encode(self, y: Any, *, reset: bool) -> np.ndarray:
        y = to_numpy("y", y)
        if y is None:
            raise ValueError(
                "This NoisyDiffusionRegressor estimator requires y to be passed, but "
                "the target y is None."
            )
        with naming("y"):
            y = check_array(
                y, ensure_2d=False, allow_nd=True, dtype=np.float64, input_name="y"
            )
        if reset:
            self._target_shape = y.shape[1:]
        elif y.shape[1:] != self._target_shape:
            raise ValueError(
                f"y must have the shape of the training targets, "
                f"{('n', *self._target_shape)}. Got {('n', *y.shape[1:])}."
            )
        return y

    def _n_outputs(self, y: np.ndarray) -> int:
        return int(np.prod(y.shape[1:], initial=1))

    def _resolve_loss(self, outputs: Tensor) -> str:
        return "squared_error"

    def _net_params(self) -> dict[str, Any]:
        return {"predict_nonlinearity": None}

    def _scorer(self, y: np.ndarray) -> Callable[[Tensor], float]:
        flat = y.reshape(len(y), -1)
        if isinstance(self.loss, ModuleLoss):  # whose outputs are the losses
            return lambda losses: -float(losses.double().mean())

        def determination(outputs: Tensor) -> float:
            predicted = outputs.cpu().numpy().reshape(len(y), -1)
            if not np.isfinite(predicted).all():
                return float("nan")
            return float(r2_score(flat, predicted))

        return determination

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
