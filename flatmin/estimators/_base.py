"""What the classifier and the regressor share: fit, its results and outputs."""

from __future__ import annotations

import copy
import warnings
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Self

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from flatmin._utils.arrays import to_array
from flatmin._utils.fitted_attributes import adopt_attributes, scratch_copy
from flatmin._utils.numbers import check_flag
from flatmin._utils.quiet import ignored
from flatmin._utils.registry import pack, unpack
from flatmin.estimators._examples import Examples
from flatmin.estimators._fit import run_fit
from flatmin.estimators._fitted import as_fitted, set_fitted
from flatmin.estimators._inputs import (
    as_source,
    check_inputs,
    read_targets,
)
from flatmin.estimators._laws import resolve_law
from flatmin.estimators._outputs import outputs_and_targets, try_first
from flatmin.estimators._own_part import find_own_part
from flatmin.estimators._parameters import CONSTRAINTS
from flatmin.estimators._routing import RoutedParamsMixin
from flatmin.noise import METHODS, NoiseLaw
from flatmin.noise._registry import BUILT_IN
from flatmin.risk import EmpiricalRisk, ModuleLoss
from flatmin.risk.autodiff.surroundings import modes_put_back
from flatmin.risk.data.inputs import check_lengths
from flatmin.risk.data.source import is_data_set, split_targets
from flatmin.risk.network.module_copy import graphs_left_out
from flatmin.risk.ranks.collectives import ALONE, Ranks, find_ranks

__all__ = ["BaseNoisyDiffusion"]


class BaseNoisyDiffusion(RoutedParamsMixin):
    """Trains a module by θ ← θ - η (g₀ + ε); see the two subclasses."""

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = CONSTRAINTS
    _net_class: ClassVar[type]
    _risk: EmpiricalRisk | None  # on the training data, after a fit

    @abstractmethod
    def _encode(self, y: Any, *, reset: bool) -> np.ndarray:
        """Check y, learn from it if ``reset``, and give it the risk's form."""

    @abstractmethod
    def _n_outputs(self, y: np.ndarray) -> int:
        """Return how many outputs the default MLP needs."""

    @abstractmethod
    def _resolve_loss(self, outputs: Tensor) -> Any:
        """Return the loss; ``outputs`` are those of one example."""

    @abstractmethod
    def _net_params(self) -> dict[str, Any]:
        """Return what the skorch net of this kind is made with."""

    @abstractmethod
    def _scorer(self, y: np.ndarray) -> Callable[[Tensor], float]:
        """Return the function that scores the network's outputs against y."""

    def _combine_weights(
        self, sample_weight: Any, y: np.ndarray, *, reset: bool
    ) -> np.ndarray | None:
        """Return the weights of the examples; learn those of classes if ``reset``."""
        return _check_weights(sample_weight, len(y))

    @modes_put_back
    def fit(
        self,
        X: Any,
        y: Any = None,
        sample_weight: Any = None,
        *,
        X_val: Any = None,
        y_val: Any = None,
    ) -> Self:
        """Train.

        Predictions, scores and :meth:`make_risk` keep the loss, ``output_transform``,
        ``positions``, ``target`` and ``l2`` of the fit: what ``set_params`` changes
        afterwards counts from the next fit on.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features, ...), or what holds several
            Rows, images or sequences: whatever the module takes. A mapping of names to
            arrays gives its keywords, a tuple its arguments in order; see
            :class:`flatmin.EmpiricalRisk`. scikit-learn slices no plain dict: for
            cross-validation wrap it, ``skorch.helper.SliceDict(**X)``. A map-style
            ``torch.utils.data.Dataset`` of pairs (x, y), or a ``DataLoader`` that keeps
            their order, is read a chunk at a time, for data larger than memory; one
            pass before training checks it and collects its targets. With
            ``distributed=True`` a ``torch.utils.data.Subset`` is this process's own
            part of the examples, after those of lower ranks.
        y : array-like of shape (n_samples,), default=None
            Targets; for a regressor also of shape (n_samples, n_targets), for a
            classifier (n_samples, T), as of sequences. None with a
            data set, or a mapping with a ``target``, which hold their own, and with a
            ``ModuleLoss`` that needs none.
        sample_weight : array-like of shape (n_samples,), default=None
            wᵢ ≥ 0; only their ratios matter. Of a process's own part where X is one.
        X_val : array-like or a data set, default=None
            Validation data: ``history_`` and the callbacks then have ``valid_loss``
            and ``valid_score``. They are not trained on. ``early_stopping`` looks at
            them, and then holds out nothing of X.
        y_val : array-like, default=None
            Their targets; None with a data set.

        Returns
        -------
        self

        Raises
        ------
        ValueError, TypeError
            Before training, if parameters and data do not fit together, or
            ``checkpoint_dir`` holds another run or one that cannot be read.
        BlockingIOError
            Before training, if another run works in ``checkpoint_dir``.
        OSError
            Before training, if that cannot be written, or its file system has no locks.
        DivergenceError
            If the loss stops being finite and ``on_divergence="raise"``.
        KeyboardInterrupt
            After Ctrl-C, with the fitted attributes of where it came; or with those
            from before, if it comes before the training or while they are set.

        Warns
        -----
        ConvergenceWarning
            If it stops being finite and ``on_divergence="stop"``.
        UserWarning
            If the last checkpoint is damaged, and the one before is used; or if one
            cannot be written, and those that are there are kept.
        """
        self._validate_params()
        ranks = find_ranks(bool(self.distributed))
        learner = scratch_copy(self)
        with ranks.announced("fit"):
            data = {"X": X, "y": y, "sample_weight": sample_weight}
            run, net, binding = run_fit(
                self, learner, ranks, validation=(X_val, y_val), **data
            )
        ranks.agree("fit", binding.theta)
        set_fitted(learner, run, net, binding)
        adopt_attributes(self, learner)
        if run.diverged is not None:
            warnings.warn(
                f"{run.diverged} Stopped at the last parameters with a finite loss "
                "(on_divergence='stop').",
                ConvergenceWarning,
                stacklevel=3,
            )
        return self

    def _make_law(self) -> NoiseLaw:
        """Return the law with the settings that this estimator gives it."""
        shared = ("batch_size", "noise_scale", "n_components", "refresh_every")
        given = {name: getattr(self, name) for name in shared}
        return resolve_law(self.method, self.method_params, given)

    def _for_skorch(
        self, examples: Examples, module: nn.Module, dtype: torch.dtype
    ) -> Any:
        """Return the examples as callbacks see them, with labels as they came."""
        return examples.for_skorch(module, dtype)

    @property
    def module_(self) -> nn.Module:
        """The network of ``net_``."""
        return self.net_.module_

    @property
    def params_(self) -> np.ndarray:
        """θ of ``module_``, shape (n_params,); a copy."""
        named = dict(self.module_.named_parameters())
        parts = [named[name].detach().reshape(-1) for name in self._names]
        return torch.cat(parts).cpu().numpy()

    @property
    def risk_(self) -> EmpiricalRisk | None:
        """Risk of ``module_`` on the training data."""
        module, before = self.module_, self._risk
        if before is None:
            return None
        with ignored(UserWarning):  # said in fit
            risk = before.with_module(module)
        if self._risk is before:  # no fit in another thread has ended meanwhile
            self._risk = risk
        return risk

    @as_fitted
    def make_risk(
        self,
        X: Any,
        y: Any = None,
        sample_weight: Any = None,
        *,
        use_class_weight: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | str | None = None,
        distributed: bool = False,
    ) -> EmpiricalRisk:
        """Return the risk of the fitted network on other data, with the same loss.

        The network is in evaluation mode, as in predictions: after
        ``batch_norm="batch"`` it keeps the statistics of the training set, also on the
        training set itself and at other θ. :attr:`risk_` takes them anew at each θ.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features, ...), or a data set
        y : array-like of shape (n_samples,), default=None
            Labels or targets as in :meth:`fit`.
        sample_weight : array-like of shape (n_samples,), default=None
            Multiplied by the class weights of the training.
        use_class_weight : bool, default=True
            False ignores the class weights of the training; a regressor has none.
        device : torch.device or str, default=None
            None is the network's.
        dtype : {"float32", "float64"}, default=None
            None is the network's.
        distributed : bool, default=False
            As in :class:`flatmin.EmpiricalRisk`.

        Returns
        -------
        EmpiricalRisk
            Its ``params()`` are θ at the end of the training.
        """
        check_is_fitted(self)
        return self._make_risk_of(
            self.module_,
            X,
            y,
            sample_weight,
            use_class_weight=use_class_weight,
            device=device,
            dtype=dtype,
            distributed=distributed,
        )

    def _make_risk_of(
        self,
        module: nn.Module,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        *,
        use_class_weight: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | str | None = None,
        distributed: bool = False,
    ) -> EmpiricalRisk:
        """Return the risk of a network that is held elsewhere; see :meth:`make_risk`.

        Parameters
        ----------
        module : torch.nn.Module
        X : array-like of shape (n_samples, n_features, ...), or a data set
        y : array-like of shape (n_samples,)
        sample_weight : array-like of shape (n_samples,), default=None
        use_class_weight : bool, default=True
        device : torch.device or str, default=None
        dtype : {"float32", "float64"}, default=None
        distributed : bool, default=False

        Returns
        -------
        EmpiricalRisk
        """
        ranks = find_ranks(distributed)
        with ranks.announced("make_risk"):
            examples = self._check_examples(X, y, "X and y", reset=False, ranks=ranks)
            sample_weight = examples.weights_of_all(sample_weight)
        first = next(module.parameters())
        if check_flag("use_class_weight", use_class_weight):
            weights = self._combine_weights(sample_weight, examples.y, reset=False)
        else:
            weights = _check_weights(sample_weight, len(examples.y))
        return EmpiricalRisk(
            module,
            self._probe_loss(module, examples, first.dtype, first.device),
            *examples.for_risk(),
            sample_weight=None if weights is None else examples.of_own(weights),
            **self._risk_options(),
            device=device,
            dtype=dtype,
            distributed=distributed,
        )

    def __sklearn_is_fitted__(self) -> bool:
        # What is learnt of the data alone is there before, and without, a training.
        return hasattr(self, "net_")

    def _check_examples(
        self, X: Any, y: Any, names: str, *, reset: bool, ranks: Ranks = ALONE
    ) -> Examples:
        X, y = split_targets(X, y, self.target)
        source = as_source(X, y, self.target)
        if source is not None:
            y = read_targets(self, source, reset=reset)
            own = find_own_part(source, ranks, self.device)
            y = y if own is None else own.of_all("y", y)
            if reset and len(y) < 2:
                raise ValueError(f"X must hold two examples or more. Got {len(y)}.")
            return Examples(source, self._encode(y, reset=reset), own=own)
        X = check_inputs(self, X, reset=reset)
        if y is None and self._takes_no_y():
            return Examples(X, np.zeros(len(X)), has_y=False)
        y = self._encode(y, reset=reset)
        check_lengths(X, y, names)
        return Examples(X, y)

    def _takes_no_y(self) -> bool:
        """Say whether the loss may do without targets."""
        return False

    def _risk_options(self) -> dict[str, Any]:
        """Return the settings of a risk that this estimator has by the same names."""
        # The f of a ModuleLoss takes what it needs; predictions are transformed.
        transform = self.output_transform
        return {
            "output_transform": None
            if isinstance(self.loss, ModuleLoss)
            else transform,
            "positions": self.positions,
            "l2": self.l2,
        }

    def _check_validation(
        self, X_val: Any, y_val: Any, ranks: Ranks
    ) -> Examples | None:
        if X_val is None and y_val is None:
            return None
        if X_val is not None:
            X_val, y_val = split_targets(X_val, y_val, self.target)
        has_y = is_data_set(X_val) or self._takes_no_y()
        if X_val is None or (y_val is None and not has_y):
            missing = "X_val" if X_val is None else "y_val"
            raise ValueError(f"X_val and y_val come together. Got {missing}=None.")
        names = "X_val and y_val"
        return self._check_examples(X_val, y_val, names, reset=False, ranks=ranks)

    def _probe_loss(
        self,
        module: nn.Module,
        examples: Examples,
        dtype: torch.dtype,
        device: torch.device,
    ) -> Any:
        if not (isinstance(self.loss, str) and self.loss == "auto"):
            return self.loss
        outputs = try_first(
            module,
            examples,
            dtype=dtype,
            device=device,
            output_transform=self.output_transform,
        )
        return self._resolve_loss(outputs)

    def _outputs(self, X: Any) -> np.ndarray:
        """Return the network's outputs; skorch's data loader would draw a seed."""
        return outputs_and_targets(self, X)[0]

    @modes_put_back
    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__().copy()
        if "_risk" in state:
            state["_risk"] = None  # the data stay behind
        if isinstance(state.get("module"), nn.Module):
            module = state["module"]
            with graphs_left_out():
                state["module"] = copy.deepcopy(module)
            if "_start" in state and state["_start"]["module"] is module:
                state["_start"] = state["_start"] | {"module": state["module"]}
        laws = pack(METHODS, BUILT_IN)
        return state | ({"_registered_laws": laws} if laws else {})

    def __setstate__(self, state: dict[str, Any]) -> None:
        unpack(METHODS, state.pop("_registered_laws", {}))
        super().__setstate__(state)

    @modes_put_back
    def __sklearn_clone__(self) -> Any:
        with graphs_left_out():
            return super().__sklearn_clone__()


def _check_weights(sample_weight: Any, n_examples: int) -> np.ndarray | None:
    if sample_weight is None:
        return None
    weights = to_array("sample_weight", sample_weight, (n_examples,))
    if (weights < 0).any():
        raise ValueError(f"sample_weight must not be negative. Got {weights.min():g}.")
    return weights
