"""What the analyzers return: frozen, printed as a table, with errors and costs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from flatmin import linalg
from flatmin._utils.arrays import to_numpy
from flatmin._utils.results import HtmlTable, html_table
from flatmin.analysis._sampling import Sampled, Sampling

__all__ = [
    "Alignment",
    "Diagonal",
    "Eigenpairs",
    "Trace",
]


@dataclass(frozen=True, repr=False, eq=False)
class Eigenpairs(HtmlTable, Sampled):
    """Eigenpairs of a matrix of the risk, and how good they are.

    Of a subset the eigenvalues are estimates of those of all examples, with the bias
    subtracted; vectors and residuals are those of the subset's own matrix.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from flatmin import CurvatureAnalyzer, NoisyDiffusionClassifier
    >>> clf = NoisyDiffusionClassifier(max_iter=100).fit(*load_iris(return_X_y=True))
    >>> analyzer = CurvatureAnalyzer(clf, random_state=0)
    >>> pairs = analyzer.eigen(k=2)
    >>> pairs.to_frame().shape
    (2, 3)
    """

    matrix: str
    eigenvalues: np.ndarray  # (k,), float64, in the order that was asked for
    eigenvectors: np.ndarray  # (d, k), columns; d parameters were selected
    residuals: np.ndarray  # (k,) ||A u - λ u||, from products with A
    converged: np.ndarray  # (k,) bool: residual <= tol * max |λ|
    n_matvecs: int  # products; 0 where a sweep of gradients gave all
    stderr: np.ndarray | None = None  # (k,) of a subset; None without
    sampling: Sampling | None = None

    @property
    def value(self) -> np.ndarray:
        """The eigenvalues, as other results call what they estimate."""
        return self.eigenvalues

    @classmethod
    def wrap(cls, matrix: str, result: linalg.Eigenpairs) -> Eigenpairs:
        """Bring a result of :func:`flatmin.linalg.eigsh` to NumPy.

        The largest entry of every vector is made positive: signs are arbitrary, and
        coordinates should not depend on a random start.

        Parameters
        ----------
        matrix : str
            Its name.
        result : flatmin.linalg.Eigenpairs

        Returns
        -------
        Eigenpairs
        """
        vectors = result.eigenvectors
        largest = vectors.abs().argmax(0, keepdim=True)
        vectors = vectors * vectors.gather(0, largest).sign()
        return cls(
            matrix,
            _numpy(result.eigenvalues),
            _numpy(vectors),
            _numpy(result.residuals),
            _numpy(result.converged),
            result.n_matvecs,
        )

    def _some(self, chosen: np.ndarray) -> Eigenpairs:
        """Return the pairs at which a mask, (k,), is true."""
        return replace(
            self,
            eigenvalues=self.eigenvalues[chosen],
            eigenvectors=self.eigenvectors[:, chosen],
            residuals=self.residuals[chosen],
            converged=self.converged[chosen],
            stderr=None if self.stderr is None else self.stderr[chosen],
        )

    def to_frame(self) -> pd.DataFrame:
        """Return one row a pair, counted from 1.

        Returns
        -------
        pandas.DataFrame
            Columns eigenvalue, of a subset stderr, residual and converged.
        """
        index = pd.RangeIndex(1, len(self.eigenvalues) + 1, name="pair")
        columns = {"eigenvalue": self.eigenvalues, "stderr": self.stderr}
        columns |= {"residual": self.residuals, "converged": self.converged}
        if self.stderr is None:
            del columns["stderr"]
        return pd.DataFrame(columns, index)

    def __repr__(self) -> str:
        d, k = self.eigenvectors.shape
        cost = f"{self.n_matvecs} products" if self.n_matvecs else "per-example sweep"
        title = f"{k} eigenpairs of the {self.matrix}, {d} parameters ({cost})"
        title += _of_subset(self.sampling)
        return f"{title}\n{_table(self.to_frame())}"


@dataclass(frozen=True, repr=False)
class Trace(HtmlTable, Sampled, linalg.Estimate):
    """The trace of a matrix of the risk and how well it is known.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from flatmin import CurvatureAnalyzer, NoisyDiffusionClassifier
    >>> clf = NoisyDiffusionClassifier(max_iter=100).fit(*load_iris(return_X_y=True))
    >>> analyzer = CurvatureAnalyzer(clf, random_state=0)
    >>> trace = analyzer.trace()
    >>> float(trace) == trace.value
    True
    """

    value: float  # type: ignore[assignment]
    stderr: float  # type: ignore[assignment]
    matrix: str = field(kw_only=True)
    sampling: Sampling | None = field(default=None, kw_only=True)

    @classmethod
    def wrap(cls, matrix: str, found: Any) -> Trace:
        """Return a number that was found as floats of Python."""
        value, stderr = float(found.value), float(found.stderr)
        sampling = found.sampling
        return cls(value, stderr, found.n_matvecs, matrix=matrix, sampling=sampling)

    def to_frame(self) -> pd.DataFrame:
        """Return one row.

        Returns
        -------
        pandas.DataFrame
            Columns trace, stderr and n_matvecs; of a subset n_examples and n_all, too.
        """
        row = {"trace": self.value, "stderr": self.stderr, "n_matvecs": self.n_matvecs}
        if self.sampling is not None:
            row |= {"n_examples": self.sampling.n_examples}
            row |= {"n_all": self.sampling.n_all}
        return pd.DataFrame(row, pd.Index([self.matrix], name="matrix"))

    def __repr__(self) -> str:
        error = f"± {self.stderr:.2g}" if self.stderr else "(exact)"
        subset = _of_subset(self.sampling)
        return f"trace of the {self.matrix}: {self.value:.6g} {error}{subset}"


@dataclass(frozen=True, repr=False, eq=False)
class Diagonal(Sampled, linalg.Estimate):
    """The diagonal of a matrix of the risk and how well each entry is known.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from flatmin import CurvatureAnalyzer, NoisyDiffusionClassifier
    >>> clf = NoisyDiffusionClassifier(max_iter=100).fit(*load_iris(return_X_y=True))
    >>> analyzer = CurvatureAnalyzer(clf, random_state=0)
    >>> diagonal = analyzer.diagonal()
    >>> diagonal.value.shape == clf.params_.shape
    True
    """

    value: np.ndarray  # type: ignore[assignment]  # (d,); d parameters were selected
    stderr: np.ndarray  # type: ignore[assignment]  # (d,); 0 where it is exact
    matrix: str = field(kw_only=True)
    # (d,) of str, the name of the tensor that each belongs to
    parameters: np.ndarray = field(kw_only=True)
    sampling: Sampling | None = field(default=None, kw_only=True)

    @classmethod
    def wrap(cls, matrix: str, found: Any, parameters: np.ndarray) -> Diagonal:
        """Return what was found as arrays of NumPy."""
        return cls(
            to_numpy("value", found.value),
            to_numpy("stderr", found.stderr),
            found.n_matvecs,
            matrix=matrix,
            parameters=parameters,
            sampling=found.sampling,
        )

    def to_frame(self) -> pd.DataFrame:
        """Return one row a coordinate of θ.

        Returns
        -------
        pandas.DataFrame
            Columns parameter, value and stderr.
        """
        return pd.DataFrame(
            {
                "parameter": pd.Categorical(self.parameters),
                "value": self.value,
                "stderr": self.stderr,
            }
        )

    def _by_tensor(self) -> pd.DataFrame:
        groups = self.to_frame().groupby("parameter", sort=False, observed=True)
        return groups["value"].agg(["size", "mean", "min", "max"])

    def _repr_html_(self) -> str | None:
        return html_table(self._by_tensor())

    def __repr__(self) -> str:
        title = f"diagonal of the {self.matrix}, {len(self.value)} parameters"
        if self.n_matvecs or self.sampling is not None:
            error, norm = np.linalg.norm(self.stderr), np.linalg.norm(self.value)
            share = error / norm if norm else 0.0
            title += f" ({self.n_matvecs} products, error {share:.1%})"
        title += _of_subset(self.sampling)
        return f"{title}\n{_table(self._by_tensor())}"


@dataclass(frozen=True, repr=False, eq=False)
class Alignment(HtmlTable):
    """How the gradient covariance Σ lies to the Hessian H, on D parameters.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from flatmin import NoiseCovarianceAnalyzer, NoisyDiffusionClassifier
    >>> clf = NoisyDiffusionClassifier(max_iter=100).fit(*load_iris(return_X_y=True))
    >>> analyzer = NoiseCovarianceAnalyzer(clf, random_state=0)
    >>> table = analyzer.alignment(k=3)
    >>> table["anisotropy gain"] > 1
    True
    """

    n_params: int  # D, or the number of those selected
    quantities: pd.DataFrame  # value and stderr of the single numbers, by name
    pairs: pd.DataFrame  # eigenvalues, cosines, angles, residuals of the i-th pairs
    inner_products: np.ndarray  # (k, k) |uᵢᵀvⱼ|, for a picture
    n_matvecs: int  # products with H and with Σ
    # Why a quantity is NaN, by name.
    undefined: dict[str, str] = field(default_factory=dict)
    sampling: Sampling | None = None

    def to_frame(self) -> pd.DataFrame:
        """Return the single numbers, one a row.

        Returns
        -------
        pandas.DataFrame
            Indexed by quantity; columns value and stderr. NaN is what is not
            defined, and ``undefined`` tells why.
        """
        return self.quantities.copy()

    def __getitem__(self, quantity: str) -> float:
        values = self.quantities["value"].to_dict()
        if quantity not in values:
            known = ", ".join(map(repr, values))
            raise KeyError(f"Unknown quantity {quantity!r}. There are: {known}.")
        return float(values[quantity])

    def __repr__(self) -> str:
        title = (
            f"gradient covariance Σ beside the Hessian H, {self.n_params} parameters "
            f"({self.n_matvecs} products){_of_subset(self.sampling)}"
        )
        reasons = "".join(f"\n{name}: {why}" for name, why in self.undefined.items())
        pairs = "" if self.sampling is not None else f"\n\n{_table(self.pairs)}"
        return f"{title}\n{_table(self.quantities)}{reasons}{pairs}"


def _of_subset(sampling: Sampling | None) -> str:
    return "" if sampling is None else f"; from {sampling}"


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()


def _table(frame: pd.DataFrame) -> str:
    return frame.to_string(float_format=lambda x: f"{x:.4g}")
