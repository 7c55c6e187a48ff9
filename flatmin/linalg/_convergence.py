"""The warning of a solver that has not converged."""

import warnings

__all__ = ["warn_not_converged"]


def warn_not_converged(text: str, *, stacklevel: int) -> None:
    """Warn with scikit-learn's ``ConvergenceWarning``, loaded for a warning alone.

    Parameters
    ----------
    text : str
    stacklevel : int
        As in ``warnings.warn``, seen from the caller.

    Warns
    -----
    ConvergenceWarning
    """
    from sklearn.exceptions import ConvergenceWarning

    warnings.warn(text, ConvergenceWarning, stacklevel=stacklevel + 1)
