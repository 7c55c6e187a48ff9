"""The regressor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.base import RegressorMixin
from sklearn.metrics import r2_score
from sklearn.utils import check_array
from torch import Tensor

from flatmin.dynamics import NoisyNetRegressor
from flatmin.estimators._base import BaseNoisyDiffusion

__all__ = ["NoisyDiffusionRegressor"]


class NoisyDiffusionRegressor(RegressorMixin, BaseNoisyDiffusion):
    """PLACEHOLDER"""

    _net_class = NoisyNetRegressor

    def __init__(
        self,
        module=None,
        *,
        module_params=None,
        method="sgd",
        method_params=None,
        loss="auto",
        lr=0.001,
        max_iter=2000,
        batch_size=None,
        noise_scale=None,
        n_components=None,
        refresh_every=None,
        optimizer="sgd",
        optimizer_params=None,
        warmup_method="gd",
        warmup_optimizer="sgd",
        warmup_iter=0,
        warmup_lr=None,
        memory=None,
        params_init=None,
        metrics=None,
        record_every=100,
        batch_norm="error",
        device="cpu",
        dtype="float32",
        callbacks=None,
        callbacks_params=None,
        on_divergence="raise",
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
        self.lr = lr
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.noise_scale = noise_scale
        self.n_components = n_components
        self.refresh_every = refresh_every
        self.optimizer = optimizer
        self.optimizer_params = optimizer_params
        self.warmup_method = warmup_method
        self.warmup_optimizer = warmup_optimizer
        self.warmup_iter = warmup_iter
        self.warmup_lr = warmup_lr
        self.memory = memory
        self.params_init = params_init
        self.metrics = metrics
        self.record_every = record_every
        self.batch_norm = batch_norm
        self.device = device
        self.dtype = dtype
        self.callbacks = callbacks
        self.callbacks_params = callbacks_params
        self.on_divergence = on_divergence
        self.store_data = store_data
        self.random_state = random_state
        self.warm_start = warm_start
        self.verbose = verbose

    def predict(self, X: Any) -> np.ndarray:
        """Return the predicted targets.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features, ...)

        Returns
        -------
        ndarray of shape (n_samples,) or (n_samples, n_targets)
            As y was.
        """
        return self._outputs(X).reshape(-1, *self._target_shape)

    def _encode(self, y: Any, *, reset: bool) -> np.ndarray:
        if isinstance(y, Tensor):
            y = y.detach().cpu().numpy()
        if y is None:
            raise ValueError(
                "This NoisyDiffusionRegressor estimator requires y to be passed, but "
                "the target y is None."
            )
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
        del outputs
        return "squared_error"

    def _scorer(self, y: np.ndarray) -> Callable[[Tensor], float]:
        flat = y.reshape(len(y), -1)

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
