"""The covariance of a fitted model's per-example gradients."""

from __future__ import annotations

from typing import Any, Literal, overload

import numpy as np
import torch
from torch import Tensor

from flatmin import measures
from flatmin._utils.locks import one_at_a_time
from flatmin._utils.numbers import check_count
from flatmin._utils.progress import progress_bar
from flatmin._utils.random import make_generator, make_seed
from flatmin.analysis._base import BaseAnalyzer
from flatmin.analysis._model_by_reference import with_risk_entries
from flatmin.analysis._of_all import Found, alignment_of_all, mean_of_all
from flatmin.analysis._results import (
    Alignment,
    Diagonal,
    Eigenpairs,
    Trace,
)
from flatmin.curvature import (
    GradientCovarianceOperator,
    HessianOperator,
    covariance_eigenpairs,
)
from flatmin.curvature._finite import check_finite
from flatmin.linalg import eigsh
from flatmin.measures import LayerAlignments, alignment_by_layer, overlap
from flatmin.measures._rounding import GradientMoments, gradient_moments
from flatmin.risk import EmpiricalRisk

__all__ = ["NoiseCovarianceAnalyzer"]


@with_risk_entries
class NoiseCovarianceAnalyzer(BaseAnalyzer):
    """Σ = (1/N) Σᵢ (gᵢ - g₀)(gᵢ - g₀)ᵀ of a fitted model, and how it lies to H.

    Σ/m is the covariance of the noise that minibatches of m put on the gradient. The
    divisor is N. Data, model and weight decay are as in :class:`CurvatureAnalyzer`:
    ``NoiseCovarianceAnalyzer(clf).trace()`` works at once where a flatmin estimator
    still holds its training data, else :meth:`fit` fixes the data first.

    Parameters
    ----------
    estimator : flatmin estimator, skorch net or torch.nn.Module
        As in :class:`CurvatureAnalyzer`.
    loss : str, loss module or callable, default=None
        As there: for a module, the loss it was trained with.
    n_components : int, default=20
        Size of the leading eigenbasis, at most min(n_params, N - 1). Of its k vectors
        ``transform`` and ``score`` leave out those whose eigenvalue may be rounding:
        such vectors are chance.
    select : str or list of str, default=None
        Names of parameters or modules, with wildcards: blocks of the matrices.
    tol : float, default=1e-4
        An eigenpair has converged when its residual is at most ``tol`` · max \\|λ\\|.
    random_state : int, RandomState instance or None, default=None
        Of start vectors, probes and samples. A number makes every call repeatable.
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
    CurvatureAnalyzer : The Hessian and its relatives.

    Examples
    --------
    Gradients 2x(θx - y) of 2 and -6 have the variance 16:

    >>> import torch
    >>> from flatmin import NoiseCovarianceAnalyzer
    >>> net = torch.nn.Linear(1, 1, bias=False)
    >>> torch.nn.init.zeros_(net.weight).tolist()
    [[0.0]]
    >>> analyzer = NoiseCovarianceAnalyzer(net, loss="squared_error")
    >>> analyzer.fit([[1.0], [1.0]], [-1.0, 3.0]).trace()
    trace of the gradient covariance: 16 (exact)
    """

    _name = "gradient covariance"
    _calls = (
        *("eigen", "trace", "diagonal", "sample", "alignment"),
        *("transform", "score"),
    )

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
    def trace(self) -> Trace:
        """Return Tr(Σ), by one sweep over the examples.

        Returns
        -------
        Trace
        """

        def measure(risk: EmpiricalRisk) -> Found:
            return Found(float(self._variances(risk).sum()), 0.0)

        return Trace.wrap(self._name, mean_of_all(self._sample(), measure))

    @one_at_a_time
    def diagonal(self) -> Diagonal:
        """Return diag(Σ), by one sweep over the examples.

        Returns
        -------
        Diagonal
        """

        def measure(risk: EmpiricalRisk) -> Found:
            value = self._variances(risk).cpu().numpy()
            return Found(value, np.zeros_like(value))

        sample = self._sample()
        names = self._parameter_names(sample.risk)
        return Diagonal.wrap(self._name, mean_of_all(sample, measure), names)

    @one_at_a_time
    def sample(self, n: int = 1) -> np.ndarray:
        """Draw from N(0, Σ), each by one backward pass.

        Divide by √m for the noise of minibatches of m.

        Parameters
        ----------
        n : int, default=1

        Returns
        -------
        ndarray of shape (n, d)
            In gradient units; d is the number of parameters, or of those selected.

        Raises
        ------
        ValueError
            If n is less than 1.
        """
        n = check_count("n", n)
        risk = self._whole_risk("sample")
        rng = self._generator(risk.device)
        theta = risk.params()
        draws = []
        with progress_bar(n, "draws", verbose=self._shown) as bar:
            for _ in range(n):
                z = torch.randn(
                    risk.n_examples, generator=rng, dtype=risk.dtype, device=risk.device
                )
                weights = (z - z.mean()) * risk.n_examples**0.5
                draw = self._selected(risk, risk.weighted_gradient(theta, weights))
                draws.append(check_finite("A draw", draw, risk, self._indices(risk)))
                bar.update()
        return torch.stack(draws).cpu().numpy()

    @overload
    def alignment(
        self,
        k: int | None = None,
        *,
        by_layer: Literal[False] = False,
        rtol: float = 0.02,
        max_matvecs: int = 200,
    ) -> Alignment: ...

    @overload
    def alignment(
        self,
        k: int | None = None,
        *,
        by_layer: Literal[True],
        rtol: float = 0.02,
        max_matvecs: int = 200,
    ) -> LayerAlignments: ...

    @one_at_a_time
    def alignment(
        self,
        k: int | None = None,
        *,
        by_layer: bool = False,
        rtol: float = 0.02,
        max_matvecs: int = 200,
    ) -> Alignment | LayerAlignments:
        """Return how Σ lies to the Hessian H, as a table.

        Parameters
        ----------
        k : int, default=None
            Eigenpairs of either; None is ``n_components``, or all there are.
        by_layer : bool, default=False
            One table of all layers, the parameters that one module holds. One sweep
            gives the gradients of all. Products with H are those of a layer's block,
            which compute nothing below the layer.
        rtol : float, default=0.02
            Relative standard error of traces and norms to reach.
        max_matvecs : int, default=200
            Products for each of them at most.

        Returns
        -------
        Alignment, or with ``by_layer`` LayerAlignments
            See :func:`flatmin.measures.alignment` for the quantities.

        Raises
        ------
        ValueError
            If ``select`` and ``by_layer`` come together.
        """
        by_layer = self._check_by_layer(by_layer)
        sample = self._sample()
        risk = sample.risk
        if by_layer:
            sample.check_whole("alignment by layer")
            return alignment_by_layer(
                risk,
                risk.params(),
                self.n_components if k is None else k,
                tol=self.tol,
                rtol=rtol,
                max_matvecs=max_matvecs,
                rng=self._generator(risk.device),
                verbose=bool(self._shown),
            )
        own, seed = sample.risk, make_seed(self.random_state)

        def measure(risk: EmpiricalRisk) -> measures.Alignment:
            # The blocks of a subset have fewer eigenpairs, and none is asked of them.
            size = self._basis_size(risk) if k is None else k
            return measures.alignment(
                risk,
                risk.params(),
                min(size, self._largest_basis(risk)) if risk is not own else size,
                select=self.select,
                tol=self.tol,
                rtol=rtol,
                max_matvecs=max_matvecs,
                rng=make_generator(seed, risk.device),
                verbose=self._shown,
            )

        return alignment_of_all(sample, measure)

    @one_at_a_time
    def transform(self, X: Any, y: Any = None) -> np.ndarray:
        """Return per-example gradients in the leading eigenbasis, as PCA would.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features, ...)
        y : array-like of shape (n_samples,)
            A gradient needs the targets.

        Returns
        -------
        ndarray of shape (n_samples, k)
            (∇ℓᵢ - ḡ)ᵀvⱼ with the mean ḡ of the gradients on the fixed data, which is
            g₀ but for a penalty. Weights, of examples and of classes, are in the basis
            and in ḡ, not in these rows.
        """
        self._whole_risk("transform")
        basis = self._clear_basis()
        mean = self._keep("mean", lambda: self._mean_coordinates(basis))
        return self._new_coordinates(X, y, basis.eigenvectors) - mean

    @one_at_a_time
    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Return the overlap of the basis V of Σ with the basis U of H.

        V is that of the fixed data, U is on (X, y). Each holds the k leading
        eigenvectors, of n_components as many as both have before an eigenvalue that
        may be rounding.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features, ...)
        y : array-like of shape (n_samples,)
        sample_weight : array-like of shape (n_samples,), default=None

        Returns
        -------
        float
            ‖UᵀV‖²_F / k, between 0 and 1; k / n_params for bases that know nothing of
            each other.

        Raises
        ------
        ValueError
            If all gradients of the fixed data are equal up to rounding: Σ = 0 has no
            directions. Or if k is 0, since H on (X, y) has none.
        """
        self._whole_risk("score")
        what = "score, which compares directions of the gradient noise,"
        self._moments().check_noise(what)
        basis = self._clear_basis()
        risk = self._new_risk(X, y, sample_weight)
        hessian = eigsh(
            HessianOperator(risk, risk.params(), select=self.select),
            len(basis.eigenvalues),
            tol=self.tol,
            rng=self._generator(risk.device),
            verbose=self._shown,
        )
        pairs = Eigenpairs.wrap("hessian", hessian)
        clear = np.abs(pairs.eigenvalues) > super()._rounding_of(pairs)
        k = int(np.cumprod(clear).sum())
        if not k:
            raise ValueError(
                "score compares with the leading eigenvectors of H. Got H of these "
                "data whose largest eigenvalue is rounding: use other examples, or "
                "another θ."
            )
        V = torch.tensor(basis.eigenvectors[:, :k], device=risk.device)
        return float(overlap(hessian.eigenvectors[:, :k], V))

    def _moments(self) -> GradientMoments:
        risk = self._risk()
        theta, indices = risk.params(), self._indices(risk)
        return self._keep("moments", lambda: gradient_moments(risk, theta, indices))

    def _rounding_of(self, basis: Eigenpairs) -> float:
        in_gradients = float(self._moments().noise_rounding.sum())
        return max(super()._rounding_of(basis), in_gradients)

    def _mean_coordinates(self, basis: Eigenpairs) -> np.ndarray:
        risk = self._risk()
        ones = torch.ones(risk.n_examples, dtype=risk.dtype, device=risk.device)
        # The mean of the gᵢ. It is not g₀, to which a penalty adds.
        mean = risk.weighted_gradient(risk.params(), ones)
        gradient = self._selected(risk, mean)
        return gradient.double().cpu().numpy() @ basis.eigenvectors.astype(np.float64)

    def _variances(self, risk: EmpiricalRisk) -> Tensor:
        variances = self._selected(risk, risk.gradient_variances(risk.params()))
        return check_finite("The diagonal of Σ", variances, risk, self._indices(risk))

    def _check_risk(self, risk: EmpiricalRisk) -> None:
        risk.check_examples("The covariance of the gradients")

    def _make_operator(self, risk: EmpiricalRisk) -> GradientCovarianceOperator:
        return GradientCovarianceOperator(risk, risk.params(), select=self.select)

    def _largest_basis(self, risk: EmpiricalRisk) -> int:
        return max(1, min(self._n_selected(risk), risk.n_examples - 1))

    def _eigenpairs(
        self, risk: EmpiricalRisk, k: int, which: Any, **search: Any
    ) -> Eigenpairs:
        rng = self._generator(risk.device)
        search |= {"tol": self.tol, "rng": rng, "verbose": self._shown}
        if which == "LA":
            result = covariance_eigenpairs(
                risk, risk.params(), k, select=self.select, **search
            )
        else:
            result = eigsh(self._operator(risk), k, which=which, **search)
        return Eigenpairs.wrap(self._name, result)
