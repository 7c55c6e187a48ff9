"""The classifier."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.special import expit, softmax
from sklearn.base import ClassifierMixin
from sklearn.preprocessing import LabelEncoder
from sklearn.utils import column_or_1d, compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from torch import Tensor

from flatmin.dynamics import NoisyNetClassifier
from flatmin.estimators._base import BaseNoisyDiffusion

__all__ = ["NoisyDiffusionClassifier"]


class NoisyDiffusionClassifier(ClassifierMixin, BaseNoisyDiffusion):
    """PLACEHOLDER"""

    _net_class = NoisyNetClassifier
    _parameter_constraints = {
        **BaseNoisyDiffusion._parameter_constraints,
        "class_weight": [None, dict, str],
    }

    def __init__(
        self,
        module=None,
        *,
        module_params=None,
        method="sgd",
        method_params=None,
        loss="auto",
        lr=0.02,
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
        class_weight=None,
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
        self.class_weight = class_weight
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

    def decision_function(self, X: Any) -> np.ndarray:
        """Return the scores of the classes.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features, ...)

        Returns
        -------
        ndarray of shape (n_samples, n_classes) or (n_samples,)
            Logits; for two classes the log-odds of the second.
        """
        outputs = self._outputs(X)
        if outputs.ndim == 1 or outputs.shape[1] == 1:
            return outputs.reshape(-1)
        # A module may have outputs for classes that this y does not hold.
        logits = outputs[:, : len(self.classes_)]
        return logits[:, 1] - logits[:, 0] if len(self.classes_) == 2 else logits

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the probabilities of the classes: softmax or sigmoid of the logits.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features, ...)

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
        """
        scores = self.decision_function(X)
        if scores.ndim == 1:
            return np.stack([expit(-scores), expit(scores)], axis=1)
        return softmax(scores, axis=1)

    def predict(self, X: Any) -> np.ndarray:
        """Return the most probable class of each example.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features, ...)

        Returns
        -------
        ndarray of shape (n_samples,)
        """
        scores = self.decision_function(X)
        indices = scores > 0 if scores.ndim == 1 else scores.argmax(axis=1)
        return self.classes_[np.asarray(indices, dtype=int)]

    def _encode(self, y: Any, *, reset: bool) -> np.ndarray:
        if isinstance(y, Tensor):
            y = y.detach().cpu().numpy()
        if y is None:
            raise ValueError(
                "This NoisyDiffusionClassifier estimator requires y to be passed, but "
                "the target y is None."
            )
        y = column_or_1d(y, warn=True)
        if y.dtype.kind == "f" and not np.isfinite(y).all():
            raise ValueError("y contains NaN or infinity.")
        check_classification_targets(y)
        if reset:
            encoder = LabelEncoder().fit(y)
            if len(encoder.classes_) < 2:
                raise ValueError(
                    "NoisyDiffusionClassifier needs y with at least two classes. Got "
                    f"one class: {encoder.classes_[0]!r}."
                )
            self.classes_ = encoder.classes_
            self._encoder = encoder
        unknown = np.setdiff1d(y, self.classes_)
        if len(unknown):
            raise ValueError(
                f"y holds labels that the training data did not: {unknown}. "
                f"There are {self.classes_}."
            )
        return self._encoder.transform(y).astype(np.int64)

    def _n_outputs(self, y: np.ndarray) -> int:
        return 1 if self.loss == "binary_cross_entropy" else len(self.classes_)

    def _resolve_loss(self, outputs: Tensor) -> str:
        one_logit = outputs[0].numel() == 1 and len(self.classes_) == 2
        return "binary_cross_entropy" if one_logit else "cross_entropy"

    def _combine_weights(self, sample_weight: Any, y: np.ndarray) -> np.ndarray | None:
        weights = super()._combine_weights(sample_weight, y)
        if self.class_weight is None:
            return weights
        by_class = compute_class_weight(
            self.class_weight,
            classes=self.classes_,
            y=self.classes_[y],
            sample_weight=weights if self.class_weight == "balanced" else None,
        )
        return by_class[y] if weights is None else weights * by_class[y]

    def _scorer(self, y: np.ndarray) -> Callable[[Tensor], float]:
        n_classes = len(self.classes_)
        target: Tensor | None = None

        def accuracy(outputs: Tensor) -> float:
            nonlocal target
            if target is None:
                target = torch.as_tensor(y, device=outputs.device)
            if outputs.ndim == 1 or outputs.shape[1] == 1:
                predicted = (outputs.reshape(-1) > 0).long()
            else:
                predicted = outputs[:, :n_classes].argmax(1)
            return float((predicted == target).double().mean())

        return accuracy
