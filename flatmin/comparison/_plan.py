"""What all units of a comparison have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flatmin.dynamics import check_metrics

__all__ = ["Plan", "RiskSource", "read_metrics"]

# Columns of a comparison that the history of a fit does not have.
_TAKEN = {"distance", "method", "seed", "test_loss", "test_score"}


@dataclass(frozen=True)
class RiskSource:
    """Data and estimator, of which a seed makes a risk; travels to the workers."""

    data: Callable[[int], tuple[Any, ...]] | tuple[Any, ...]
    estimator: Any

    def load(self, seed: int) -> tuple[Any, Any, dict[str, Any]]:
        """Return X, y and what fit is told of the test data."""
        data = self.data(seed) if callable(self.data) else self.data
        if not isinstance(data, tuple) or len(data) not in (2, 4):
            raise ValueError(
                "A function of the seed must return (X, y) or (X, y, X_test, y_test). "
                f"Got {type(data).__name__}"
                + (f" of length {len(data)}." if isinstance(data, tuple) else ".")
            )
        X, y, *test = data
        return X, y, dict(zip(("X_val", "y_val"), test, strict=False))


@dataclass(frozen=True)
class Plan:
    """What is done with each unit; travels to the workers."""

    source: RiskSource
    metrics: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    end_metrics: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    quench: int = 0
    quench_lr: float | None = None
    quench_loss: float | None = None
    quench_loss_iter: int | None = None
    keep_params: bool = False
    n_threads: int = 1
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def identity(self) -> dict[str, Any]:
        """Return what the results depend on, besides the estimators."""
        found = {
            "data": self.source.data,
            "metrics": self.metrics,
            "end_metrics": self.end_metrics,
            "quench": self.quench,
            "quench_lr": self.quench_lr,
            "n_threads": self.n_threads,
        }
        # Folders of versions that had no such quench stay usable.
        if self.quench_loss is not None:
            found |= {
                "quench_loss": self.quench_loss,
                "quench_loss_iter": self.quench_loss_iter,
            }
        return found


def read_metrics(title: str, metrics: Any) -> dict[str, Any]:
    """Return metrics as a dict.

    Parameters
    ----------
    title : str
        What the argument is called.
    metrics : mapping of str to callable, or None

    Returns
    -------
    dict

    Raises
    ------
    TypeError
        If they are something else.
    ValueError
        If a name is that of a column.
    """
    if metrics is None:
        return {}
    if not isinstance(metrics, Mapping):
        raise TypeError(
            f"{title} must be a mapping from names to functions of (risk, theta). "
            f"Got {metrics!r}."
        )
    check_metrics(metrics, table="the table", taken=_TAKEN, title=title)
    return dict(metrics)
