"""The curvature of a fitted model's risk."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch

from flatmin._utils.arrays import to_array
from flatmin._utils.locks import one_at_a_time
from flatmin._utils.numbers import check_accuracy, check_count
from flatmin._utils.random import make_generator, make_seed
from flatmin._utils.validation import StrOptions
from flatmin.analysis._base import BaseAnalyzer
from flatmin.analysis._model_by_reference import with_risk_entries
from flatmin.analysis._of_all import Found, mean_of_all
from flatmin.analysis._results import Diagonal, Eigenpairs, Trace
from flatmin.analysis._spectral_density import SpectralDensity
from flatmin.curvature import (
    EmpiricalFisherOperator,
    FisherOperator,
    GGNOperator,
    HessianOperator,
    RiskOperator,
    ggn_trace,
)
from flatmin.curvature._finite import check_finite
from flatmin.linalg import Estimate, diagonal, eigsh, spectral_density, trace
from flatmin.measures._rounding import gradient_moments
from flatmin.risk import EmpiricalRisk

__all__ = ["CurvatureAnalyzer"]

_MATRICES: dict[str, type[RiskOperator]] = {
    "hessian": HessianOperator,
    "ggn": GGNOperator,
    "fisher": FisherOperator,
    "empirical_fisher": EmpiricalFisherOperator,
}


@with_risk_entries
class CurvatureAnalyzer(BaseAnalyzer):
    """Eigenpairs, trace, diagonal and spectrum of the curvature of a fitted model.

    The matrices belong to the mean loss L(θ) = Σ wᵢℓᵢ / Σ wᵢ over the data, whatever
    the reduction of the training; weight decay is the optimizer's and no part of them.
    Where ``estimator`` is a flatmin estimator that still holds its training data, every
    method works at once: ``CurvatureAnalyzer(clf).eigen(k=20)``. Else :meth:`fit`
    fixes the data first. The model is analysed in eval mode, on a copy, and its
    parameters are no parameters of the analyzer: clones share the model.

    Parameters
    ----------
    estimator : flatmin estimator, skorch net or torch.nn.Module
        Fitted; also inside a ``FrozenEstimator`` or a ``Pipeline``, through whose
        earlier steps X goes. Labels are encoded as at training: those of a skorch net
        and of a module are class indices. Of a tuple that a module returns the first
        entry counts.
    loss : str, loss module or callable, default=None
        See :func:`flatmin.risk.resolve_loss`. A module needs one; None is the
        training loss of a flatmin estimator or skorch net. With the ``NLLLoss`` of a
        skorch classifier that is -log(p_y + ε) of its probabilities p, for which "ggn"
        is the empirical Fisher matrix and "fisher" is refused; logits with
        ``CrossEntropyLoss`` have both.
    matrix : {"hessian", "ggn", "fisher", "empirical_fisher"}, default="hessian"
        H = ∇²L; the generalised Gauss-Newton matrix; the Fisher matrix, with the
        expectation over labels that the model draws, which equals it; the second moment
        (1/N) Σ gᵢgᵢᵀ of the gradients at the true labels.
    n_components : int, default=20
        Size of the leading eigenbasis, or all eigenpairs where they are fewer. Of its
        k vectors ``transform`` and ``score`` leave out those whose eigenvalue
        may be rounding: such vectors are chance.
    select : str or list of str, default=None
        Names of parameters or modules, with wildcards: the matrix is then the block of
        these. None takes all.
    tol : float, default=1e-4
        An eigenpair has converged when its residual is at most ``tol`` · max \\|λ\\|.
    random_state : int, RandomState instance or None, default=None
        Of start vectors and probes. A number makes every call repeatable.
    verbose : bool or int, default=False
        Show progress bars.

    Attributes
    ----------
    risk_ : EmpiricalRisk
        On the data of :meth:`fit`, or the subset of them, for the functions of the
        floors below; its ``params()`` are the model's θ.
    n_features_in_ : int
        Size of axis 1 of the X of :meth:`fit`; not there for a mapping or a tuple.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Column names, if it had them.

    See Also
    --------
    NoiseCovarianceAnalyzer : The covariance of the gradients.
    flatmin.curvature : The operators, for a risk at any θ.

    Examples
    --------
    A linear model has the Hessian (2/N) XᵀX:

    >>> import torch
    >>> from flatmin import CurvatureAnalyzer
    >>> net = torch.nn.Linear(2, 1, bias=False)
    >>> X, y = [[1.0, 0.0], [3.0, 0.0]], [0.0, 0.0]
    >>> analyzer = CurvatureAnalyzer(net, loss="squared_error").fit(X, y)
    >>> analyzer.eigen(k=1)
    1 eigenpairs of the hessian, 2 parameters (2 products)
          eigenvalue  residual  converged
    pair
    1             10         0       True
    >>> analyzer.trace()
    trace of the hessian: 10 (exact)
    """

    _calls = ("eigen", "trace", "diagonal", "density", "matvec", "transform", "score")
    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BaseAnalyzer._parameter_constraints,
        "matrix": [StrOptions(set(_MATRICES))],
    }

    def __init__(
        self,
        estimator,
        *,
        loss=None,
        output_transform=None,
        target=None,
        positions=None,
        l2=None,
        batch_norm=None,
        matrix="hessian",
        n_components=20,
        select=None,
        subset=None,
        tol=1e-4,
        hvp="exact",
        compile=False,
        device=None,
        dtype=None,
        distributed=False,
        random_state=None,
        verbose=False,
    ):
        self.estimator = estimator
        self.loss = loss
        self.output_transform = output_transform
        self.target = target
        self.positions = positions
        self.l2 = l2
        self.batch_norm = batch_norm
        self.matrix = matrix
        self.n_components = n_components
        self.select = select
        self.subset = subset
        self.tol = tol
        self.hvp = hvp
        self.compile = compile
        self.device = device
        self.dtype = dtype
        self.distributed = distributed
        self.random_state = random_state
        self.verbose = verbose

    @one_at_a_time
    def trace(self, *, rtol: float = 0.02, max_matvecs: int = 200) -> Trace:
        """Return the trace, exact where that is cheap.

        Parameters
        ----------
        rtol : float, default=0.02
            Relative standard error to reach.
        max_matvecs : int, default=200
            Products at most; see :func:`flatmin.linalg.trace`. Without ``select`` the
            trace of "ggn" and "fisher" is estimated by sweeps over the examples
            instead, 32 at most: see :func:`flatmin.curvature.ggn_trace`. With
            ``batch_norm="batch"`` it is by products.

        Returns
        -------
        Trace

        Raises
        ------
        ValueError
            If ``rtol`` or ``max_matvecs`` is too small.
        """
        rtol, max_matvecs = check_accuracy(rtol, max_matvecs)
        sample, seed = self._sample(), make_seed(self.random_state)
        if self.matrix == "fisher":
            self._operator(sample.risk)  # raises if the loss is no likelihood
        found = mean_of_all(
            sample, lambda risk: self._trace(risk, rtol, max_matvecs, seed)
        )
        return Trace.wrap(self.matrix, found)

    def _trace(
        self, risk: EmpiricalRisk, rtol: float, max_matvecs: int, seed: int
    ) -> Estimate:
        rng = make_generator(seed, risk.device)
        # An example has a part of G of its own, but not with a batch's statistics.
        by_examples = self.select is None and risk.batch_norm != "batch"
        if self.matrix in ("ggn", "fisher") and by_examples:
            is_ggn = self.matrix == "ggn"
            return ggn_trace(risk, risk.params(), rtol=rtol, penalty=is_ggn, rng=rng)
        return trace(
            self._operator(risk),
            rtol=rtol,
            max_matvecs=max_matvecs,
            rng=rng,
            verbose=self._shown,
        )

    @one_at_a_time
    def diagonal(self, *, rtol: float = 0.05, max_matvecs: int = 200) -> Diagonal:
        """Return the diagonal, exact where that is cheap.

        Parameters
        ----------
        rtol : float, default=0.05
            Norm of the errors to reach, relative to the norm of the diagonal.
        max_matvecs : int, default=200
            Products at most; see :func:`flatmin.linalg.diagonal`.

        Returns
        -------
        Diagonal

        Raises
        ------
        ValueError
            If ``rtol`` or ``max_matvecs`` is too small.
        """
        rtol, max_matvecs = check_accuracy(rtol, max_matvecs)
        sample, seed = self._sample(), make_seed(self.random_state)
        found = mean_of_all(
            sample, lambda risk: self._diagonal(risk, rtol, max_matvecs, seed)
        )
        return Diagonal.wrap(self.matrix, found, self._parameter_names(sample.risk))

    def _diagonal(
        self, risk: EmpiricalRisk, rtol: float, max_matvecs: int, seed: int
    ) -> Found | Estimate:
        if self.matrix == "empirical_fisher":
            squares = self._selected(risk, risk.squared_gradient_sum(risk.params()))
            check_finite("Σ gᵢ²", squares, risk, self._indices(risk))
            value = squares.cpu().numpy() / risk.n_examples
            return Found(value, np.zeros_like(value))
        return diagonal(
            self._operator(risk),
            rtol=rtol,
            max_matvecs=max_matvecs,
            rng=make_generator(seed, risk.device),
            verbose=self._shown,
        )

    @one_at_a_time
    def density(self, *, n_probes: int = 10, n_steps: int = 80) -> SpectralDensity:
        """Return the distribution of all eigenvalues.

        Parameters
        ----------
        n_probes : int, default=10
            2 or more; see :func:`flatmin.linalg.spectral_density`.
        n_steps : int, default=80
            Products for each probe at most.

        Returns
        -------
        SpectralDensity

        Raises
        ------
        ValueError
            If there are fewer than two probes, or no step.
        """
        n_probes = check_count("n_probes", n_probes, at_least=2)
        n_steps = check_count("n_steps", n_steps)
        risk = self._whole_risk("density")
        result = spectral_density(
            self._operator(risk),
            n_probes=n_probes,
            n_steps=n_steps,
            rng=self._generator(risk.device),
            verbose=self._shown,
        )
        return SpectralDensity.wrap(self.matrix, result)

    @one_at_a_time
    def matvec(self, v: Any) -> np.ndarray:
        """Return the product of the matrix with vectors.

        After :meth:`fit` θ is prepared once for all products.

        Parameters
        ----------
        v : array-like of shape (d,) or (d, k)
            d is the number of parameters, or of those selected.

        Returns
        -------
        ndarray of shape (d,) or (d, k)

        Raises
        ------
        ValueError
            If ``v`` has another shape.
        """
        operator = self._operator(self._whole_risk("matvec"))
        size = operator.shape[-1]
        v = to_array("v", v, finite=False)
        if v.ndim not in (1, 2) or len(v) != size:
            raise ValueError(
                f"v must have shape ({size},) or ({size}, k). Got {v.shape}."
            )
        v = torch.as_tensor(v).to(operator.device, operator.dtype)
        product = operator.matvec(v) if v.ndim == 1 else operator.matmat(v)
        return product.cpu().numpy()

    @one_at_a_time
    def transform(self, X: Any, y: Any = None) -> np.ndarray:
        """Return per-example gradients gᵢ in the leading eigenbasis.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features, ...)
        y : array-like of shape (n_samples,)
            A gradient needs the targets.

        Returns
        -------
        ndarray of shape (n_samples, k)
            ∇ℓᵢᵀuⱼ, not centred. Weights, of examples and of classes, are in the basis
            and not in these rows.
        """
        self._whole_risk("transform")
        return self._new_coordinates(X, y, self._clear_basis().eigenvectors)

    @one_at_a_time
    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Return the share of Tr(Σ) that lies in the leading eigenbasis.

        Σ is the gradient covariance on (X, y), the basis is that of the fixed data.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features, ...)
        y : array-like of shape (n_samples,)
        sample_weight : array-like of shape (n_samples,), default=None

        Returns
        -------
        float
            Between 0 and 1; k / n_params for a basis that knows nothing.

        Raises
        ------
        ValueError
            If there is one example, or all gradients are equal up to rounding: Σ = 0
            has no shares.
        """
        self._whole_risk("score")
        risk = self._new_risk(X, y, sample_weight)
        if risk.n_examples < 2:
            raise ValueError(
                "score compares with the gradient noise Σ of the examples, so there "
                "must be at least two. Got 1."
            )
        moments = gradient_moments(risk, risk.params(), self._indices(risk))
        moments.check_noise("score, the share of the gradient noise in the basis,")
        total, basis = float(moments.variances.sum()), self._clear_basis()
        along = self._coordinates(risk, basis.eigenvectors).var(0, correction=0)
        return float(along.sum() / total)

    def _check_risk(self, risk: EmpiricalRisk) -> None:
        if self.matrix == "empirical_fisher":
            risk.check_examples("matrix='empirical_fisher'")

    def _make_operator(self, risk: EmpiricalRisk) -> RiskOperator:
        return _MATRICES[self.matrix](risk, risk.params(), select=self.select)

    def _largest_basis(self, risk: EmpiricalRisk) -> int:
        return self._n_selected(risk)

    def _eigenpairs(
        self, risk: EmpiricalRisk, k: int, which: Any, **search: Any
    ) -> Eigenpairs:
        result = eigsh(
            self._operator(risk),
            k,
            which=which,
            tol=self.tol,
            rng=self._generator(risk.device),
            verbose=self._shown,
            **search,
        )
        return Eigenpairs.wrap(self.matrix, result)
