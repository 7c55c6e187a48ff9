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
from torch import Tensor, nn

from flatmin._utils.arrays import to_array, to_numpy
from flatmin._utils.messages import naming
from flatmin._utils.weights import relative_weights
from flatmin.estimators._base import BaseNoisyDiffusion
from flatmin.estimators._examples import Examples
from flatmin.estimators._inputs import as_source, targets_like
from flatmin.estimators._net import EstimatorNetClassifier

__all__ = ["NoisyDiffusionClassifier"]


class NoisyDiffusionClassifier(ClassifierMixin, BaseNoisyDiffusion):
    """Classifier trained under designed gradient noise, θ ← θ - η (g₀ + ε).

    Gradient descent, SGD, and Langevin dynamics whose noise has another shape or size;
    see :mod:`flatmin.noise` for the laws. A full-batch method uses all examples in each
    iteration.

    Parameters
    ----------
    module : None, torch.nn.Module class, factory or instance, default=None
        None is :class:`flatmin.modules.MLP`. A class or factory is called with
        ``module_params``; an instance is deep-copied, and so fine-tuned. If ``forward``
        returns a tuple its first entry is used.
    module_params : dict, default=None
        Keyword arguments of the class or factory; ``module__x`` in ``set_params`` and
        in grids goes here.
    method : str or NoiseLaw, default="sgd"
        A name from :data:`flatmin.noise.METHODS` or an instance.
    method_params : dict, default=None
        Settings of a law given by name; ``method__x`` goes here, or into the instance.
    loss : str, loss module or callable, default="auto"
        "auto" is "cross_entropy" on logits, and "binary_cross_entropy" for a module
        with one output and two classes; else as in :class:`flatmin.EmpiricalRisk`.
        Probabilities are softmax, or for one output sigmoid, of the outputs.
    lr : float, default=0.02
        η.
    max_iter : int, default=2000
        Iterations after the warm-up; not epochs.
    batch_size : int, default=None
        m, the minibatch size whose noise is drawn or imitated. This and the next three
        override the law's own setting where it has one: None is m = min(20, N), and
        min(20, ⌊N/2⌋) for "gld_leading".
    noise_scale : float, default=None
        Multiplies ε; None is 1.
    n_components : int or "full", default=None
        k, for laws of low rank; None is min(20, D), and less than the number of
        minibatches for "gld_leading". "full" is for "gld_hessian" alone.
    refresh_every : int, default=None
        Iterations between two evaluations of what a law measures, counted from the end
        of the warm-up; None is 10 for laws that use H or G and else 1.
    gradient_batch_size : int, default=None
        B, for many examples: each iteration, of the warm-up too, sees a fresh batch of
        B examples as if there were no others, and the law adds to the batch's gradient
        the noise that minibatches of m have inside the batch, such as Σ_B/m. Batches
        are drawn without replacement, by a generator of their own. The whole noise is
        then that of the batch, of covariance (N - B)/(N - 1) Σ/B, plus the law's.
        What a law measures every ``refresh_every`` iterations it measures on the batch
        at hand, and N is B in the defaults above. None, or B ≥ N, is all examples.
    optimizer : {"sgd", "rmsprop", "adam"} or torch.optim.Optimizer class, default="sgd"
        Takes the noisy gradient. "sgd" is the plain step θ ← θ - η (g₀ + ε).
    optimizer_params : dict, default=None
        Its further arguments, such as momentum; ``optimizer__x`` goes here.
    warmup_method : str or NoiseLaw, default="gd"
        The law of the warm-up.
    warmup_optimizer : str or torch.optim.Optimizer class, default="sgd"
        Its optimizer.
    warmup_iter : int, default=0
        Its iterations.
    warmup_lr : float, default=None
        Its η; None is ``lr``.
    memory : None, str or joblib.Memory, default=None
        Caches the warm-up, so that a grid over ``method`` runs it once a fold; after an
        edit of the code that it runs it is another one. It needs a ``random_state``:
        with None every warm-up is another one. Not used where training or validation
        data are a data set, which is not read as a whole.
    params_init : array-like of shape (n_params,), default=None
        θ to start from, flat, in ``named_parameters()`` order.
    metrics : dict of str to callable, default=None
        ``metric(risk, theta)`` returns a number; recorded in ``history_`` after the
        warm-up. Where one raises a ValueError after the first row, because it is not
        defined there, it is NaN in that row, and a warning tells why.
    record_every : int, default=100
        Iterations per block. After each one ``history_`` gets a row, which costs a few
        passes over the data, and callbacks are called: a skorch epoch is a block.
    class_weight : dict, "balanced" or None, default=None
        Multiplies the sample weights.
    batch_norm : {"error", "frozen"}, default="error"
        BatchNorm has no per-example gradients in train mode: refuse it, or train with
        its running statistics as they are.
    device : str or torch.device, default="cpu"
        "auto" is CUDA where there is any.
    dtype : {"float32", "float64"}, default="float32"
        Of θ and X.
    callbacks : list of skorch callbacks, default=None
        Those that work on epochs; batch-level ones are refused. What they write into
        the module is followed: the θ that they leave when training begins is the
        first row of ``history_``, and one that they set later is measured anew.
    callbacks_params : dict, default=None
        ``callbacks__x`` goes here.
    on_divergence : {"raise", "stop"}, default="raise"
        When the loss stops being finite: raise :class:`flatmin.DivergenceError`, or
        keep the last θ with a finite loss and warn.
    checkpoint_dir : path-like, default=None
        A folder for this run alone, in which it is saved on its way: ``fit``, called
        again with the same arguments, also in a later process, goes on from there, and
        ends at the same θ bit for bit (on a GPU as far as its sums are repeatable); a
        run that has ended is read back. Needs an integer ``random_state``. A
        folder that holds a run with other settings, data or code is refused, and so is
        one in which another run is at work, or that cannot be locked; a data set is
        known by checksums of all its examples. Files are whole or not there, hold no
        code, and the last two are kept. What a run does not own is not in them:
        random numbers of NumPy's and PyTorch's global generators, what metrics and
        modules remember, and of callbacks whatever they do not keep in attributes of
        numbers, strings, tensors and arrays, or return from ``state_dict``.
    checkpoint_every : int, default=None
        Iterations between two checkpoints, counted in the warm-up and after it; None
        is after every block.
    store_data : bool, default=True
        Keep the risk of the training data in ``risk_``, until pickled.
    random_state : int, RandomState instance or None, default=None
        Seeds initialisation, batches and noise through generators of their own.
    warm_start : bool, default=False
        Go on from where the last fit ended: θ, generator, history and iterations, with
        a new optimizer and without a warm-up.
    verbose : bool or int, default=False
        Show progress bars.

    Attributes
    ----------
    params_ : ndarray of shape (n_params,)
        θ of ``module_``, a copy: at the end of the training, and after
        ``net_.load_params`` what has been loaded.
    module_ : torch.nn.Module
        The trained network, in eval mode.
    net_ : skorch.NeuralNet
        The net that trained it, with the same labels and the same loss.
    noise_ : NoiseLaw
        The law with the settings that were used.
    history_ : pandas.DataFrame
        A row at the start and after every block: iteration (the warm-up's counted),
        phase, loss L(θ), train_score, valid_loss, valid_score, gradient_norm ‖g₀‖,
        noise_norm √E‖ε‖² in the same units, and the metrics. All are of the whole
        data, but with ``gradient_batch_size`` the law's noise is that in a batch.
    n_iter_ : int
        Iterations done after the warm-up.
    n_steps_ : int
        Steps of the optimizer in them: l an iteration for ``svag``, else one.
        ``history_`` has them as n_steps in the rows of a fit with ``svag``.
    diverged_ : str or None
        What happened, where ``on_divergence="stop"`` ended the training.
    risk_ : EmpiricalRisk or None
        On the training data, with ``store_data``; its ``params()`` is ``params_``, and
        another risk is made where ``module_`` has changed. None after unpickling.
    classes_ : ndarray of shape (n_classes,)
        The labels, sorted. Output j of the module stands for ``classes_[j]``; outputs
        beyond are trained to be small and never predicted.
    n_features_in_ : int
        Size of axis 1 of X.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Column names, if X had them.

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
        gradient_batch_size=None,
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
        checkpoint_dir=None,
        checkpoint_every=None,
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
        self.gradient_batch_size = gradient_batch_size
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
        self.checkpoint_dir = checkpoint_dir
        self.checkpoint_every = checkpoint_every
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

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the probabilities of the classes: softmax or sigmoid of the logits.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features, ...), or a data set

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
        X : array-like of shape (n_samples, n_features, ...), or a data set

        Returns
        -------
        ndarray of shape (n_samples,)
        """
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
        source = as_source(X, y)
        if source is None:
            y, sample_weight = targets_like(X, y, sample_weight)
            return super().score(X, y, sample_weight)
        outputs, y = self._outputs_and_targets(source)
        return accuracy_score(y, self._labels(outputs), sample_weight=sample_weight)

    def _scores(self, outputs: np.ndarray) -> np.ndarray:
        if outputs.ndim == 1 or outputs.shape[1] == 1:
            return outputs.reshape(-1)
        # A module may have outputs for classes that this y does not hold.
        logits = outputs[:, : len(self.classes_)]
        return logits[:, 1] - logits[:, 0] if len(self.classes_) == 2 else logits

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
