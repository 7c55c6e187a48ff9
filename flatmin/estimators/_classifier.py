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
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from flatmin._utils.arrays import to_array
from flatmin._utils.messages import naming
from flatmin._utils.weights import relative_weights
from flatmin.estimators._averages import mean_over
from flatmin.estimators._base import BaseNoisyDiffusion
from flatmin.estimators._examples import Examples
from flatmin.estimators._fitted import as_fitted
from flatmin.estimators._inputs import as_source, targets_like
from flatmin.estimators._labels import (
    accuracy,
    as_labels,
    check_positions,
    check_tokens,
    class_weights,
    counting,
    ignored_label,
    is_next_token,
    learn_classes,
    probabilities,
    training_accuracy,
)
from flatmin.estimators._net import EstimatorNetClassifier
from flatmin.estimators._outputs import outputs_and_targets, try_first
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
        Multiplies the sample weights. Of several labels an example, give the weights to
        ``nn.CrossEntropyLoss``.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        The labels, sorted. Output j of the module stands for ``classes_[j]``; outputs
        beyond are trained to be small and never predicted. Of ``loss="next_token"`` the
        numbers of all outputs.

    Notes
    -----
    y may have several labels an example, shape (n_samples, T), for a module with
    outputs of shape (n, n_classes, T), as PyTorch's cross-entropy takes them: a
    sequence is labelled at each position. ``predict`` then returns (n_samples, T), and
    ``predict_proba`` (n_samples, n_classes, T). With ``loss="next_token"`` y are token
    numbers as the module has them, (n_samples, T) and not shifted, and the module
    returns (n, T, V): ``predict`` gives at each position the most probable *next*
    token, and ``score`` compares it with the label of the next position.

    A label that the loss leaves out, -100 unless ``nn.CrossEntropyLoss`` is made with
    another ``ignore_index``, is no class: it counts in no loss, score or class weight.
    Scikit-learn's own splitters and metrics know no such y: use ``score``, and a
    ``KFold``.

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
        self.class_weight = class_weight
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
    def decision_function(self, X: Any) -> np.ndarray:
        """Return the scores of the classes.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features, ...), or a data set

        Returns
        -------
        ndarray of shape (n_samples, n_classes) or (n_samples,)
            Logits; for two classes the log-odds of the second. Positions come last.
        """
        return self._scores(self._outputs(X))

    @as_fitted
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
        ndarray of shape (n_samples, n_classes), or (n_samples, n_classes, T)
        """
        check_is_fitted(self)
        if params is not None:
            return mean_over(self, X, params, self._probabilities)
        return self._probabilities(self._outputs(X))

    @as_fitted
    def predict(self, X: Any, params: Any = None) -> np.ndarray:
        """Return the most probable class of each example, or of each position.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features, ...), or a data set
        params : array-like of shape (n_points, n_params), default=None
            Points θ: the class of the largest mean probability over them, as from
            :meth:`predict_proba`. None is the θ of the fit alone.

        Returns
        -------
        ndarray of shape (n_samples,) or (n_samples, T)
        """
        if params is not None:
            return self.classes_[self.predict_proba(X, params).argmax(axis=1)]
        return self._labels(self._outputs(X))

    @as_fitted
    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Return the accuracy, over all labels that count.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features, ...), or a data set
        y : array-like of shape (n_samples,) or (n_samples, T), default=None
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
            y = as_labels(y, warn=False)
            return accuracy(y, self.predict(X), sample_weight, self.loss)
        outputs, y = outputs_and_targets(self, source)
        if sample_weight is not None:
            sample_weight = to_array("sample_weight", sample_weight, (len(outputs),))
        y, labels = as_labels(y, warn=False), self._labels(outputs)
        return accuracy(y, labels, sample_weight, self.loss)

    def _scores(self, outputs: np.ndarray) -> np.ndarray:
        if is_next_token(self.loss):
            outputs = np.moveaxis(outputs, -1, 1)
        if outputs.ndim == 1 or outputs.shape[1] == 1:
            return outputs.reshape(-1)
        # A module may have outputs for classes that this y does not hold.
        logits = outputs[:, : len(self.classes_)]
        return logits[:, 1] - logits[:, 0] if len(self.classes_) == 2 else logits

    def _probabilities(self, outputs: np.ndarray) -> np.ndarray:
        scores = self._scores(outputs)
        if len(self.classes_) == 2:
            return np.stack([expit(-scores), expit(scores)], axis=1)
        return softmax(scores, axis=1)

    def _labels(self, outputs: np.ndarray) -> np.ndarray:
        scores = self._scores(outputs)
        indices = scores > 0 if len(self.classes_) == 2 else scores.argmax(axis=1)
        return self.classes_[np.asarray(indices, dtype=int)]

    def _encode(self, y: Any, *, reset: bool) -> np.ndarray:
        y = as_labels(y)
        if y.ndim > 1 and reset:
            check_positions(y, self.loss, self.module)
        if y.dtype.kind == "f" and not np.isfinite(y).all():
            raise ValueError("y contains NaN or infinity.")
        counted = counting(y, ignored_label(self.loss))
        labels = y[counted]
        with naming("y"):
            check_classification_targets(labels)
        if is_next_token(self.loss):  # numbers of outputs already
            check_tokens(y)
            if reset:  # until the module tells how many there are
                self.classes_ = np.arange(labels.max(initial=0) + 1)
            return y.astype(np.int64)
        if reset:
            self._encoder = learn_classes(labels)
            self.classes_ = self._encoder.classes_
        unknown = np.setdiff1d(labels, self.classes_)
        if len(unknown):
            raise ValueError(
                f"y holds labels that the training data did not: {unknown}. "
                f"There are {self.classes_}."
            )
        encoded = np.full(y.shape, ignored_label(self.loss) or 0, dtype=np.int64)
        encoded[counted] = self._encoder.transform(labels)
        return encoded

    def _probe_loss(
        self,
        module: nn.Module,
        examples: Examples,
        dtype: torch.dtype,
        device: torch.device,
    ) -> Any:
        if is_next_token(self.loss):
            outputs = try_first(
                module,
                examples,
                dtype=dtype,
                device=device,
                output_transform=self.output_transform,
            )
            if outputs.ndim == 3:
                self.classes_ = np.arange(outputs.shape[2])
        return super()._probe_loss(module, examples, dtype, device)

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
                probabilities,
                n_classes=len(self.classes_),
                of_tokens=is_next_token(self.loss),
            ),
            "callbacks__valid_acc": None,
        }

    def _for_skorch(
        self, examples: Examples, module: nn.Module, dtype: torch.dtype
    ) -> Any:
        if not is_next_token(self.loss):
            y, counted = examples.y, self._counted(examples.y)
            labels = self.classes_[np.where(counted, y, 0)]
            labels = labels if counted.all() else np.where(counted, labels, y)
            examples = replace(examples, y=labels)
        return super()._for_skorch(examples, module, dtype)

    def _counted(self, encoded: np.ndarray) -> np.ndarray:
        return counting(encoded, ignored_label(self.loss))

    def _combine_weights(
        self, sample_weight: Any, y: np.ndarray, *, reset: bool
    ) -> np.ndarray | None:
        weights = super()._combine_weights(sample_weight, y, reset=reset)
        if reset:
            self._by_class = None
        if reset and self.class_weight is not None:
            if y.ndim > 1:
                raise ValueError(
                    "class_weight is a weight of examples, of one label each. Got y of "
                    f"shape {y.shape}; pass loss=nn.CrossEntropyLoss(weight=...)."
                )
            self._by_class = class_weights(
                *(self.class_weight, self.classes_, y),
                counted=self._counted(y),
                weights=weights,
            )
        if self._by_class is None:
            return weights
        # What is left out counts nothing in the loss, whatever its weight.
        by_class = self._by_class[np.where(self._counted(y), y, 0)]
        return by_class if weights is None else relative_weights(weights, by_class)

    def _scorer(self, y: np.ndarray) -> Callable[[Tensor], float]:
        if isinstance(self.loss, ModuleLoss):  # whose outputs are the losses
            return lambda losses: float("nan")
        return training_accuracy(y, len(self.classes_), self.loss)
