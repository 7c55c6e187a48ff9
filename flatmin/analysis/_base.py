"""What the analyzers share: fixed data, and a basis."""

from __future__ import annotations

from abc import abstractmethod
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np
import torch
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from torch import Tensor

from flatmin._utils.fitted_attributes import adopt_attributes, scratch_copy
from flatmin._utils.locks import one_at_a_time
from flatmin._utils.names import check_known
from flatmin._utils.numbers import check_count, check_flag
from flatmin._utils.validation import Interval, StrOptions
from flatmin.analysis._coordinates import coordinates
from flatmin.analysis._cost import (
    Cost,
    Problem,
    layer_sizes,
    leaves_out,
    seconds_of_a_gradient,
    work_of_parts,
)
from flatmin.analysis._cost_arguments import all_arguments, check_pairs
from flatmin.analysis._held_model import HeldModel
from flatmin.analysis._model_by_reference import ModelByReference
from flatmin.analysis._of_all import eigen_of_all
from flatmin.analysis._results import Eigenpairs
from flatmin.analysis._sample import SUBSET_CONSTRAINTS, Sample, draw_sample
from flatmin.linalg import LinearOperator
from flatmin.linalg._basis_memory import search_arguments
from flatmin.linalg._eigenpairs import WHICH
from flatmin.measures._rounding import CLEAR
from flatmin.risk import Audit, EmpiricalRisk

__all__ = ["BaseAnalyzer"]


class BaseAnalyzer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, ModelByReference):
    """Analyses a fitted model by a matrix of its risk; see the subclasses.

    Several threads may call one analyzer, or several of one model: they wait for each
    other, so what is kept between calls is of one model and one setting.
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "n_components": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="neither")],
        "select": [None, str, list],
        "subset": SUBSET_CONSTRAINTS,
        "output_transform": [None, callable],
        "target": [None, str],
        "positions": [None, StrOptions({"all", "example"})],
        "l2": [None, Interval(Real, 0, None, closed="left")],
        "batch_norm": [None, StrOptions({"error", "frozen", "batch"})],
        "hvp": [StrOptions({"exact", "finite_difference"})],
        "distributed": ["boolean"],
        "compile": ["boolean"],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    _calls: ClassVar[tuple[str, ...]]

    n_components: int
    tol: float
    select: Any
    subset: Any
    verbose: Any
    _kept: dict[str, Any]

    @abstractmethod
    def _make_operator(self, risk: EmpiricalRisk) -> LinearOperator:
        """Return the matrix whose leading eigenvectors are the basis."""

    @abstractmethod
    def _largest_basis(self, risk: EmpiricalRisk) -> int:
        """Return how many eigenpairs there are."""

    @abstractmethod
    def _eigenpairs(
        self, risk: EmpiricalRisk, k: int, which: Any, **search: Any
    ) -> Eigenpairs:
        """Return k eigenpairs of that matrix; ``search`` goes to ``eigsh``."""

    def _check_risk(self, risk: EmpiricalRisk) -> None:
        """Raise if the matrix does not exist for this risk."""

    @one_at_a_time
    def fit(self, X: Any = None, y: Any = None, sample_weight: Any = None) -> Self:
        """Fix the model and the data to analyse on.

        It costs one pass over the data: what is asked for is computed when it is, and
        the basis of ``transform`` and ``score`` once. These two stay with the model,
        and with the settings of its risk, as they are now, whatever is trained, fitted
        or set later: fit the analyzer again to analyse a new state.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features, ...) or data set, default=None
            None takes the training data of a flatmin estimator that still holds them.
        y : array-like of shape (n_samples,), default=None
            Labels or targets as the model was trained with; None with a data set.
        sample_weight : array-like of shape (n_samples,), default=None
            wᵢ ≥ 0; only their ratios matter.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If parameters, model and data do not fit together.
        NotFittedError
            If the model is not fitted, or X is None and there are no training data.
        """
        self._validate_params()
        if X is None and (y is not None or sample_weight is not None):
            raise ValueError("y and sample_weight come with X. Got X=None.")
        learner = scratch_copy(self)
        if X is None:
            risk = self._training_risk(self.estimator)
        else:
            learner._check_features(X, reset=True)
            risk = self._risk_on(self.estimator, X, y, sample_weight)
        self._check_risk(risk)
        learner._drawn = draw_sample(risk, self.subset, self.random_state)
        learner.risk_ = learner._drawn.risk
        learner._held = HeldModel(self.estimator, self._settings())
        learner._kept = {}
        self._basis_size(learner.risk_)  # a name in ``select`` that fits nothing
        adopt_attributes(self, learner)
        return self

    @property
    @one_at_a_time
    def _n_features_out(self) -> int:
        return len(self._clear_basis().eigenvalues)

    @one_at_a_time
    def fit_transform(
        self, X: Any = None, y: Any = None, sample_weight: Any = None
    ) -> np.ndarray:
        """Fix the data and return their coordinates.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features, ...)
        y : array-like of shape (n_samples,)
        sample_weight : array-like of shape (n_samples,), default=None
            For the matrix; the coordinates are unweighted, as by ``transform``.

        Returns
        -------
        ndarray of shape (n_samples, k)
            k is n_components, or fewer, as of ``transform``.
        """
        return self.fit(X, y, sample_weight).transform(X, y)

    @one_at_a_time
    def audit(self) -> Audit:
        """Try the identities of the mathematics on the model, the loss and the data.

        Returns
        -------
        Audit
            Its ``str`` is a table: what holds and what does not, which path each
            quantity takes and what it costs. See :meth:`flatmin.EmpiricalRisk.audit`.
        """
        return self._risk().audit()

    @one_at_a_time
    def eigen(
        self,
        k: int | None = None,
        *,
        which: str = "LA",
        max_matvecs: int | None = None,
        max_basis: int | None = None,
        basis_device: torch.device | str | None = None,
        basis_dtype: torch.dtype | str | None = None,
    ) -> Eigenpairs:
        """Return leading eigenpairs.

        Of a large model let the search hold few vectors, such as
        ``eigen(1, max_basis=5)``. Without the arguments after ``which`` the result for
        k = None is kept for ``transform`` and ``score``.

        Parameters
        ----------
        k : int, default=None
            None is ``n_components``, or all there are if they are fewer.
        which : {"LA", "LM", "SA", "BE"}, default="LA"
            Largest algebraic, largest magnitude, smallest algebraic, or both ends.
        max_matvecs, max_basis : int, default=None
            Products, and vectors in the basis, at most.
        basis_device, basis_dtype : default=None
            Of the basis; as those two see :func:`flatmin.linalg.eigsh`. Without effect
            where no search is made, as for Σ from a Gram matrix.

        Returns
        -------
        Eigenpairs

        Raises
        ------
        ValueError
            If an argument does not fit.
        """
        if k is not None:
            k = check_count("k", k)
        check_known("which", which, WHICH)
        search = search_arguments(
            max_matvecs=max_matvecs,
            max_basis=max_basis,
            basis_device=basis_device,
            basis_dtype=basis_dtype,
        )
        if k is None and which == "LA" and not search:
            return self._basis()
        return self._leading(k, which, **search)

    @one_at_a_time
    def cost(self, call: str, **options: Any) -> Cost:
        """Return what a call takes, before it is made.

        It costs two gradients: one is timed. What an earlier call has kept is counted
        as if it had not, and data that are handed to ``transform`` or ``score`` as if
        they were as many as the fixed ones. Of a subset its blocks are counted, too.

        Parameters
        ----------
        call : str
            A method: "eigen", "trace", "diagonal", "transform", "score", and of
            :class:`CurvatureAnalyzer` "density" and "matvec", of
            :class:`NoiseCovarianceAnalyzer` "sample" and "alignment".
        **options
            Its arguments, without the data.

        Returns
        -------
        Cost
            Gradients of all examples as expected and at most, seconds, and the bytes
            that the call holds.

        Raises
        ------
        ValueError
            If there is no such method, or an argument does not fit.
        NotFittedError
            If there are no data.
        """
        check_known("call", call, self._calls)
        arguments = all_arguments(getattr(type(self), call), options)
        if "by_layer" in options:
            self._check_by_layer(options["by_layer"])
        sample = self._sample()
        risk = sample.risk
        self._check_risk(risk)
        if call not in ("eigen", "trace", "diagonal", "alignment"):
            sample.check_whole(call)
        if self.batch_norm == "batch" and call in ("transform", "score"):
            risk.check_examples(call)
        if call in ("eigen", "alignment"):
            check_pairs(sample, arguments, self._largest_basis(risk))
        problem = Problem(
            matrix=getattr(self, "matrix", "covariance"),
            size=self._n_selected(risk),
            whole=self.select is None and risk.batch_norm != "batch",
            layers=layer_sizes(risk) if options.get("by_layer") else (),
            n_examples=risk.n_examples,
            n_outputs=risk.n_outputs,
            itemsize=risk.params().element_size(),
            n_components=self._basis_size(risk),
        )
        sizes = sample.sizes(leave_out=leaves_out(call, problem, arguments))
        work = work_of_parts(call, problem, arguments, sizes)
        shown = ", ".join(f"{name}={value!r}" for name, value in options.items())
        return Cost(
            f"{call}({shown})",
            work.expected,
            work.at_most,
            risk.n_examples,
            sample.n_all,
            seconds_of_a_gradient(risk),
            work.memory,
        )

    def _check_by_layer(self, by_layer: Any) -> bool:
        by_layer = check_flag("by_layer", by_layer)
        if by_layer and self.select is not None:
            raise ValueError(
                f"by_layer is of all layers. Got select={self.select!r}; leave one out."
            )
        return by_layer

    def _sample(self) -> Sample:
        """Return the examples that fit has fixed, else those of the training."""
        if not hasattr(self, "risk_"):
            self._validate_params()
            risk = self._training_risk(self.estimator)
            return draw_sample(risk, self.subset, self.random_state)
        return self._drawn

    def _risk(self) -> EmpiricalRisk:
        """Return the risk of these examples."""
        return self._sample().risk

    def _whole_risk(self, what: str) -> EmpiricalRisk:
        """Return the risk, or raise where it is of a subset."""
        sample = self._sample()
        sample.check_whole(what)
        return sample.risk

    def _new_risk(
        self, X: Any, y: Any, sample_weight: Any = None, **options: Any
    ) -> EmpiricalRisk:
        """Return the risk on data that ``transform`` or ``score`` got."""
        if not hasattr(self, "risk_"):
            return self._risk_on(self.estimator, X, y, sample_weight, **options)
        self._check_features(X, reset=False)
        return self._held.risk_on(self.risk_, X, y, sample_weight, **options)

    def _keep(self, name: str, compute: Any) -> Any:
        """Return what is computed once for the data that fit has fixed."""
        if not hasattr(self, "risk_"):
            return compute()
        # set_params takes effect without another fit.
        names = ("matrix", "select", "n_components", "tol")
        settings = [getattr(self, name, None) for name in names]
        if name not in self._kept or self._kept[name][0] != settings:
            self._kept[name] = (settings, compute())
        return self._kept[name][1]

    def _operator(self, risk: EmpiricalRisk) -> LinearOperator:
        if risk is not getattr(self, "risk_", risk):  # of a part of these examples
            return self._make_operator(risk)
        return self._keep("operator", lambda: self._make_operator(risk))

    def _basis(self) -> Eigenpairs:
        return self._keep("basis", lambda: self._leading(None, "LA"))

    def _clear_basis(self) -> Eigenpairs:
        """Return the basis without the vectors whose eigenvalues may be rounding."""

        def find() -> Eigenpairs:
            basis = self._basis()
            clear = np.abs(basis.eigenvalues) > self._rounding_of(basis)
            if not clear.any():
                raise ValueError(
                    f"A basis needs an eigenvalue of the {basis.matrix} that is more "
                    "than rounding. Got none: use another θ, or other examples."
                )
            return basis._some(clear)

        return self._keep("clear basis", find)

    def _rounding_of(self, basis: Eigenpairs) -> float:
        """Return the eigenvalue below which a vector may be chance."""
        # Products are off by a rounding of the matrix, and what comes from a sweep of
        # gradients, in float64, by the square of a rounding of these.
        eps, fine = np.finfo(basis.eigenvectors.dtype).eps, np.finfo(np.float64).eps
        if not basis.n_matvecs:
            eps = max(fine, CLEAR * eps**2)
        return float(CLEAR * eps * np.abs(basis.eigenvalues).max(initial=0.0))

    def _leading(self, k: int | None, which: str, **search: Any) -> Eigenpairs:
        sample = self._sample()
        size = self._basis_size(sample.risk) if k is None else k
        if which != "LA":
            sample.check_whole(f"eigen with which={which!r}")
        return eigen_of_all(
            sample, lambda risk: self._eigenpairs(risk, size, which, **search)
        )

    def _basis_size(self, risk: EmpiricalRisk) -> int:
        return min(self.n_components, self._largest_basis(risk))

    def _indices(self, risk: EmpiricalRisk) -> Tensor | None:
        """Return the coordinates that ``select`` selects."""
        if self.select is None:
            return None
        return risk.layout.indices(self.select).to(risk.device)

    def _selected(self, risk: EmpiricalRisk, values: Tensor) -> Tensor:
        indices = self._indices(risk)
        return values if indices is None else values[indices]

    def _n_selected(self, risk: EmpiricalRisk) -> int:
        indices = self._indices(risk)
        return risk.n_params if indices is None else len(indices)

    def _parameter_names(self, risk: EmpiricalRisk) -> np.ndarray:
        """Return the name of the tensor that each coordinate belongs to."""
        names = np.repeat(risk.layout.names, risk.layout.sizes)
        indices = self._indices(risk)
        return names if indices is None else names[indices.cpu().numpy()]

    def _new_coordinates(self, X: Any, y: Any, vectors: np.ndarray) -> np.ndarray:
        """Return ∇ℓᵢᵀuⱼ of the unweighted loss, so that a row depends on no other."""
        risk = self._new_risk(X, y, use_class_weight=False)
        return self._coordinates(risk, vectors).cpu().numpy()

    def _coordinates(self, risk: EmpiricalRisk, vectors: np.ndarray) -> Tensor:
        return coordinates(risk, vectors, self._indices(risk), shown=self._shown)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "risk_")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.target_tags.multi_output = True
        tags.input_tags.three_d_array = True
        return tags

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__().copy()
        if "_kept" in state:  # what is prepared at θ is quickly prepared again
            state["_kept"] = {k: v for k, v in self._kept.items() if k != "operator"}
        return state
