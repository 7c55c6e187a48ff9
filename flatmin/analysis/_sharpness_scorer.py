"""How flat the minimum of a model is, as a scikit-learn scorer."""

from __future__ import annotations

import inspect
import math
from functools import partial
from numbers import Integral, Real
from typing import Any, ClassVar, Self

from flatmin._utils.fitted_attributes import adopt_attributes, scratch_copy
from flatmin._utils.locks import one_at_a_time
from flatmin._utils.names import check_known
from flatmin._utils.random import make_generator, make_seed
from flatmin._utils.registry import pack, unpack
from flatmin._utils.validation import Interval, StrOptions
from flatmin.analysis._model_by_reference import (
    ModelByReference,
    with_risk_entries,
)
from flatmin.analysis._of_all import Found, estimate_all
from flatmin.analysis._sample import SUBSET_CONSTRAINTS, draw_sample
from flatmin.linalg import Estimate
from flatmin.measures import (
    SHARPNESS_MEASURES,
    edge_of_stability,
    max_eigenvalue,
    non_uniformity,
)
from flatmin.measures._registry import BUILT_IN, as_estimate
from flatmin.risk import EmpiricalRisk

__all__ = ["SharpnessScorer"]

# Means over examples, or smooth in them, whatever θ is. "sam" and "asam" go along g₀,
# which near a minimum is nothing but noise on a subset.
_SMOOTH = [
    SHARPNESS_MEASURES[name]
    for name in (
        *("expected", "adaptive_expected", "trace"),
        *("max_eigenvalue", "fisher_rao"),
    )
]

# Whose stderr is NaN where they have not converged.
_EIGENVALUES = [max_eigenvalue, edge_of_stability, non_uniformity]


@with_risk_entries
class SharpnessScorer(ModelByReference):
    """Minus the sharpness of a model: flat is high, as a scorer has to be.

    ``scoring={"accuracy": "accuracy", "flatness": SharpnessScorer()}`` in a search over
    flatmin estimators or skorch nets, also inside pipelines: a call
    ``scorer(estimator, X, y)`` changes neither the estimator nor the scorer. With a
    model of its own, ``SharpnessScorer(clf).fit(X, y)`` measures it once and keeps the
    result.

    Parameters
    ----------
    estimator : flatmin estimator, skorch net or torch.nn.Module, default=None
        For ``fit`` and ``score`` alone; a call brings its own. As in
        :class:`CurvatureAnalyzer`.
    measure : str or callable, default="expected"
        A name from :data:`flatmin.measures.SHARPNESS_MEASURES`: "expected", "trace",
        "max_eigenvalue", "sam", "asam", "adaptive_expected", "fisher_rao" or "batch",
        and what :func:`flatmin.measures.register_measure` has added. Or a function of
        (risk, theta) that returns one number, small for what is flat; an option ``rng``
        is given a generator.
    sigma : float, default=None
        Size of the perturbations, for measures that have it. None is the measure's own:
        0.01, for "adaptive_expected" 0.05.
    n_draws : int, default=None
        Perturbations, for measures that draw them. None is the measure's own, 100.
    measure_params : dict, default=None
        Its further options, such as ``{"rho": 0.1}`` of "sam".
    on : {"given", "training"}, default="given"
        Score on the data that the scorer is handed, or on the training data of a
        flatmin estimator, whatever it is handed: the quantity of the paper.
    loss : str, loss module or callable, default=None
        As in :class:`CurvatureAnalyzer`.
    random_state : int, RandomState instance or None, default=0
        A number means common random numbers: models of one size are perturbed alike,
        so that differences between them are known better than each value.

    Attributes
    ----------
    sharpness_ : float
        Measured by :meth:`fit`; small is flat.
    stderr_ : float
        Its standard error; 0 where nothing is drawn.
    n_matvecs_ : int
        Products with a curvature matrix that it took.
    sampling_ : Sampling or None
        Of a subset, what it knows of all the examples.
    n_features_in_ : int
        Size of axis 1 of the X of :meth:`fit`; not there for a mapping or a tuple.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Column names, if it had them.

    Examples
    --------
    The loss (θ - 1)² rises by s² on average:

    >>> import torch
    >>> from flatmin import SharpnessScorer
    >>> net = torch.nn.Linear(1, 1, bias=False)
    >>> scorer = SharpnessScorer(net, loss="squared_error", measure="trace", sigma=0.1)
    >>> round(scorer.fit([[1.0]], [1.0]).sharpness_, 6)
    0.01
    >>> round(scorer(net, [[2.0]], [1.0]), 6)
    -0.04
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        # A view: it holds what is registered later.
        "measure": [StrOptions(SHARPNESS_MEASURES.keys()), callable],
        "sigma": [None, Interval(Real, 0, None, closed="neither")],
        "n_draws": [None, Interval(Integral, 2, None, closed="left")],
        "measure_params": [None, dict],
        "on": [StrOptions({"given", "training"})],
        "output_transform": [None, callable],
        "target": [None, str],
        "positions": [None, StrOptions({"all", "example"})],
        "l2": [None, Interval(Real, 0, None, closed="left")],
        "batch_norm": [None, StrOptions({"error", "frozen", "batch"})],
        "hvp": [StrOptions({"exact", "finite_difference"})],
        "subset": SUBSET_CONSTRAINTS,
        "distributed": ["boolean"],
        "compile": ["boolean"],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        estimator=None,
        *,
        measure="expected",
        sigma=None,
        n_draws=None,
        measure_params=None,
        on="given",
        loss=None,
        output_transform=None,
        target=None,
        positions=None,
        l2=None,
        batch_norm=None,
        hvp="exact",
        compile=False,
        device=None,
        dtype=None,
        subset=None,
        distributed=False,
        random_state=0,
    ):
        self.estimator = estimator
        self.measure = measure
        self.sigma = sigma
        self.n_draws = n_draws
        self.measure_params = measure_params
        self.on = on
        self.loss = loss
        self.output_transform = output_transform
        self.target = target
        self.positions = positions
        self.l2 = l2
        self.batch_norm = batch_norm
        self.hvp = hvp
        self.compile = compile
        self.device = device
        self.dtype = dtype
        self.subset = subset
        self.distributed = distributed
        self.random_state = random_state

    def __call__(
        self, estimator: Any, X: Any = None, y: Any = None, sample_weight: Any = None
    ) -> float:
        """Return minus the sharpness of a model.

        Parameters
        ----------
        estimator : flatmin estimator, skorch net or torch.nn.Module
            Fitted. It is not touched.
        X : array-like of shape (n_samples, n_features, ...), default=None
            None, with ``y``, is the training data as with ``on="training"``.
        y : array-like of shape (n_samples,), default=None
        sample_weight : array-like of shape (n_samples,), default=None
            Of the mean loss that is perturbed. The training data have their own.

        Returns
        -------
        float

        Raises
        ------
        NotFittedError
            If the training data are wanted, and the model does not hold them.
        ValueError, TypeError
            If parameters, model and data do not fit together.
        RuntimeError
            If an eigenvalue has not converged; ``fit`` keeps it, with its ``stderr_``.
        """
        found = self._measure(estimator, X, y, sample_weight)
        measure = self._measure_of_name()
        while isinstance(measure, partial):
            measure = measure.func
        is_eigenvalue = any(measure is one for one in _EIGENVALUES)
        if is_eigenvalue and math.isnan(found.stderr):
            more = " or max_matvecs" if measure is max_eigenvalue else ""
            raise RuntimeError(
                f"The measure {_name(measure)!r} has not converged within "
                f"{found.n_matvecs} products, and a score has no place to say so. Set "
                f"a larger tol{more} in measure_params, or take dtype='float64'."
            )
        return -float(found.value)

    @one_at_a_time
    def fit(self, X: Any = None, y: Any = None, sample_weight: Any = None) -> Self:
        """Measure the model that the scorer was made with.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features, ...), default=None
            None is the training data of a flatmin estimator.
        y : array-like of shape (n_samples,), default=None
        sample_weight : array-like of shape (n_samples,), default=None

        Returns
        -------
        self

        Raises
        ------
        NotFittedError
            If the model is not fitted, or X is None and it holds no training data.
        ValueError, TypeError
            If parameters, model and data do not fit together.
        """
        result = self._measure(self._own(), X, y, sample_weight)
        learner = scratch_copy(self)
        if X is not None:
            learner._check_features(X, reset=True)
        learner.sharpness_ = float(result.value)
        learner.stderr_ = float(result.stderr)
        learner.n_matvecs_ = result.n_matvecs
        learner.sampling_ = result.sampling
        adopt_attributes(self, learner)
        return self

    @one_at_a_time
    def score(self, X: Any = None, y: Any = None, sample_weight: Any = None) -> float:
        """Return minus the sharpness of the model that the scorer was made with.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features, ...), default=None
            None is the training data of a flatmin estimator.
        y : array-like of shape (n_samples,), default=None
        sample_weight : array-like of shape (n_samples,), default=None

        Returns
        -------
        float
        """
        if X is not None and hasattr(self, "sharpness_"):
            self._check_features(X, reset=False)
        return self(self._own(), X, y, sample_weight)

    def _measure_of_name(self) -> Any:
        is_name = isinstance(self.measure, str)
        return SHARPNESS_MEASURES[self.measure] if is_name else self.measure

    def _own(self) -> Any:
        if self.estimator is None:
            raise ValueError(
                "fit and score measure the model that the scorer was made with. Got "
                "estimator=None; use SharpnessScorer(model), or call the scorer, "
                "scorer(model, X, y)."
            )
        return self.estimator

    def _measure(self, estimator: Any, X: Any, y: Any, sample_weight: Any) -> Found:
        self._validate_params()
        if X is None and (y is not None or sample_weight is not None):
            raise ValueError("y and sample_weight come with X. Got X=None.")
        measure = self._measure_of_name()
        is_name = isinstance(self.measure, str)
        title = f"the measure {self.measure if is_name else _name(measure)!r}"
        # Before the risk is made: a wrong option needs no pass over the data.
        options, draws = self._options(title, measure)
        if self.on == "training" or X is None:
            risk = self._training_risk(estimator)
        else:
            risk = self._risk_on(estimator, X, y, sample_weight)
        sample = draw_sample(risk, self.subset, self.random_state)
        if not any(measure is one for one in _SMOOTH) or options.get("absolute"):
            sample.check_whole(title)
        seed = make_seed(self.random_state) if draws else 0

        def measured(risk: EmpiricalRisk) -> Estimate:
            if draws:
                options["rng"] = make_generator(seed, risk.device)
            return as_estimate(title, measure(risk, risk.params(), **options))

        return estimate_all(sample, measured(sample.risk), measured)

    def _options(self, title: str, measure: Any) -> tuple[dict[str, Any], bool]:
        """Return what the measure is called with, and whether it takes an rng too."""
        given = {"sigma": self.sigma, "n_draws": self.n_draws}
        options = {name: value for name, value in given.items() if value is not None}
        options |= self.measure_params or {}
        try:
            signature = inspect.signature(measure)
        except (TypeError, ValueError):  # a builtin does not tell its arguments
            return options, False
        known = [name for name in list(signature.parameters)[2:] if name != "rng"]
        takes_all = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
        for name in options:
            if not takes_all:
                check_known(f"option of {title}", name, known)
        draws = "rng" in signature.parameters
        try:
            signature.bind(None, None, **options, **({"rng": None} if draws else {}))
        except TypeError as error:
            raise TypeError(
                f"{title} must be a function of (risk, theta), and of what sigma, "
                f"n_draws and measure_params give it. Got {measure!r}: {error}."
            ) from error
        return options, draws

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__().copy()
        measures = pack(SHARPNESS_MEASURES, BUILT_IN)
        return state | ({"_registered_measures": measures} if measures else {})

    def __setstate__(self, state: dict[str, Any]) -> None:
        unpack(SHARPNESS_MEASURES, state.pop("_registered_measures", {}))
        super().__setstate__(state)

    def _accept_sample_weight(self) -> bool:
        # scikit-learn asks this in a search with several scorers.
        return True

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "sharpness_")


def _name(measure: Any) -> str:
    return getattr(measure, "__qualname__", type(measure).__name__)
