"""The classifier."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from scipy.special import expit, softmax
from sklearn.base import ClassifierMixin
from sklearn.metrics import accuracy_score
from sklearn.preprocessing import LabelEncoder
from sklearn.utils import column_or_1d, compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from flatmin._utils.arrays import to_array, to_numpy
from flatmin._utils.messages import naming
from flatmin._utils.weights import relative_weights
from flatmin.estimators._averages import mean_over
from flatmin.estimators._base import BaseNoisyDiffusion
from flatmin.estimators._examples import Examples
from flatmin.estimators._inputs import as_source, targets_like
from flatmin.estimators._net import EstimatorNetClassifier
from flatmin.estimators._outputs import outputs_and_targets
from flatmin.estimators._parameters import CONSTRAINTS, with_shared_entries
from flatmin.risk import ModuleLoss
from flatmin.risk.data.source import split_targets

__all__ = ["NoisyDiffusionClassifier"]


@with_shared_entries
class NoisyDiffusionClassifier(ClassifierMixin, BaseNoisyDiffusion):
    """Classifier trained under designed gradient noise, θ ← θ - η (g₀ + ε).

    Gradient descent, SGD, and Langevin dynamics whose noise has another shape or size;
    see :mod:`flatmin.noise` for the laws. A full-batch method uses all examples in each
    iteration.

    Parameters
    ----------
    loss : str, loss module or callable, default="auto"
        "auto" is "cross_entropy" on logits, and "binary_cross_entropy" for a module
        with one output and two classes; else as in :class:`flatmin.EmpiricalRisk`.
        Probabilities are softmax, or for one output sigmoid, of the outputs. A
        :class:`~flatmin.risk.ModuleLoss` is given the labels as 0, 1, ...; then
        ``train_score`` and ``valid_score`` are NaN.
    lr : float, default=0.02
        η.
    class_weight : dict, "balanced" or None, default=None
        Multiplies the sample weights.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        The labels, sorted. Output j of the module stands for ``classes_[j]``; outputs
        beyond are trained to be small and never predicted.

    See Also
    --------
    NoisyDiffusionRegressor : The same for regression.
    flatmin.noise.make_noise_law : The laws for a loop of one's own.

    References
    ----------
    Z. Zhu, J. Wu, B. Yu, L. Wu and J. Ma, "The Regularization Effects of Anisotropic
    Noise in Stochastic Gradient Descent", arXiv 1803.00195.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from flatmin import NoisyDiffusionClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = NoisyDiffusionClassifier(method="gld_full", max_iter=500, random_state=0)
    >>> clf.fit(X, y).score(X, y) > 0.95
    True
    """

    _net_class = EstimatorNetClassifier
    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **CONSTRAINTS,
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
        output_transform=None,
        target=None,
        positions="all",
        l2=0.0,
        lr=0.02,
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
        class_weight=None,
        batch_norm="error",
        device="cpu",
        dtype="float32",
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
        self.class_weight = class_weight
        self.batch_norm = batch_norm
        self.device = device
        self.dtype = dtype
        self.callbacks = callbacks
        self.on_divergence = on_divergence
        self.checkpoint_dir = checkpoint_dir
        self.store_data = store_data
        self.random_state = random_state
        self.warm_start = warm_start
        self.verbose = verbose

    def decision_function(self, X: Any) -> np.ndarray:
        """Return the scores of the classes.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features, ...), or a data set

        Returns
        -------
        ndarray of shape (n_samples, n_classes) or (n_samples,)
            Logits; for two classes the log-odds of the second.
        """
        return self._scores(self._outputs(X))

    def predict_proba(self, X: Any, params: Any = None) -> np.ndarray:
        """Return the probabilities of the classes: softmax or sigmoid of the logits.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features, ...), or a data set
        params : array-like of shape (n_points, n_params), default=None
            Points θ, such as ``trajectory_`` or a part of its ``params``: the mean of
            the probabilities over them. None is the θ of the fit alone. After
            ``batch_norm="batch"`` each has the statistics of the training set there,
            which takes a pass over it.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
        """
        check_is_fitted(self)
        if params is not None:
            return mean_over(self, X, params, self._probabilities)
        return self._probabilities(self._outputs(X))

    def predict(self, X: Any, params: Any = None) -> np.ndarray:
        """Return the most probable class of each example.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features, ...), or a data set
        params : array-like of shape (n_points, n_params), default=None
            Points θ: the class of the largest mean probability over them, as from
            :meth:`predict_proba`. None is the θ of the fit alone.

        Returns
        -------
        ndarray of shape (n_samples,)
        """
        if params is not None:
            return self.classes_[self.predict_proba(X, params).argmax(axis=1)]
        return self._labels(self._outputs(X))

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Return the accuracy.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features, ...), or a data set
        y : array-like of shape (n_samples,), default=None
            None with a data set, which holds its own.
        sample_weight : array-like of shape (n_samples,), default=None

        Returns
        -------
        float
        """
        X, y = split_targets(X, y, self.target)
        source = as_source(X, y, self.target)
        if source is None:
            y, sample_weight = targets_like(X, y, sample_weight)
            return super().score(X, y, sample_weight)
        outputs, y = outputs_and_targets(self, source)
        return accuracy_score(y, self._labels(outputs), sample_weight=sample_weight)

    def _scores(self, outputs: np.ndarray) -> np.ndarray:
        if outputs.ndim == 1 or outputs.shape[1] == 1:
            return outputs.reshape(-1)
        # A module may have outputs for classes that this y does not hold.
        logits = outputs[:, : len(self.classes_)]
        return logits[:, 1] - logits[:, 0] if len(self.classes_) == 2 else logits

    def _probabilities(self, outputs: np.ndarray) -> np.ndarray:
        scores = self._scores(outputs)
        if scores.ndim == 1:
            return np.stack([expit(-scores), expit(scores)], axis=1)
        return softmax(scores, axis=1)

    def _labels(self, outputs: np.ndarray) -> np.ndarray:
        scores = self._scores(outputs)
        indices = scores > 0 if scores.ndim == 1 else scores.argmax(axis=1)
        return self.classes_[np.asarray(indices, dtype=int)]

    def _encode(self, y: Any, *, reset: bool) -> np.ndarray:
        y = to_numpy("y", y)
        if y is None:
            raise ValueError(
                "This NoisyDiffusionClassifier estimator requires y to be passed, but "
                "the target y is None."
            )
        with naming("y"):
            y = column_or_1d(y, warn=True)
        if y.dtype.kind == "f" and not np.isfinite(y).all():
            raise ValueError("y contains NaN or infinity.")
        with naming("y"):
            check_classification_targets(y)
        if reset:
            encoder = LabelEncoder().fit(y)
            if not len(encoder.classes_):
                raise ValueError("y must hold at least one label. Got none.")
            if len(encoder.classes_) < 2:
                raise ValueError(
                    "NoisyDiffusionClassifier needs y with at least two classes. Got "
                    f"one class: {encoder.classes_.tolist()[0]!r}."
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
        name = self.loss if isinstance(self.loss, str) else None
        return 1 if name == "binary_cross_entropy" else len(self.classes_)

    def _resolve_loss(self, outputs: Tensor) -> str:
        one_logit = outputs[0].numel() == 1 and len(self.classes_) == 2
        return "binary_cross_entropy" if one_logit else "cross_entropy"

    def _net_params(self) -> dict[str, Any]:
        return {
            "classes": self.classes_,
            "predict_nonlinearity": partial(
                _probabilities, n_classes=len(self.classes_)
            ),
            "callbacks__valid_acc": None,
        }

    def _for_skorch(
        self, examples: Examples, module: nn.Module, dtype: torch.dtype
    ) -> Any:
        labelled = replace(examples, y=self.classes_[examples.y])
        return super()._for_skorch(labelled, module, dtype)

    def _combine_weights(
        self, sample_weight: Any, y: np.ndarray, *, reset: bool
    ) -> np.ndarray | None:
        weights = super()._combine_weights(sample_weight, y, reset=reset)
        if reset:
            self._by_class = None
        if reset and self.class_weight is not None:
            self._by_class = self._class_weights(weights, y)
        if self._by_class is None:
            return weights
        by_class = self._by_class[y]
        return by_class if weights is None else relative_weights(weights, by_class)

    def _class_weights(self, weights: np.ndarray | None, y: np.ndarray) -> np.ndarray:
        """Return what ``class_weight`` says of each class."""
        balanced = isinstance(self.class_weight, str)
        by_class = compute_class_weight(
            self.class_weight,
            classes=self.classes_,
            y=self.classes_[y],
            sample_weight=relative_weights(weights)
            if balanced and weights is not None
            else None,
        )
        # A class none of whose examples counts is divided by 0, and counts nothing.
        by_class = to_array("class_weight", by_class, (None,))
        if (by_class < 0).any():
            raise ValueError(
                f"class_weight must not be negative. Got {by_class.min()}."
            )
        return by_class

    def _scorer(self, y: np.ndarray) -> Callable[[Tensor], float]:
        n_classes = len(self.classes_)
        target: Tensor | None = None
        if isinstance(self.loss, ModuleLoss):  # whose outputs are the losses
            return lambda losses: float("nan")

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


def _probabilities(outputs: Tensor, n_classes: int) -> Tensor:
    """Turn logits into probabilities; for the skorch net, as ``predict_proba`` does."""
    if outputs.ndim == 1 or outputs.shape[1] == 1:
        second = outputs.reshape(-1).sigmoid()
        return torch.stack([1 - second, second], 1)
    return outputs[:, :n_classes].softmax(1)
