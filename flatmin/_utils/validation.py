"""scikit-learn's parameter constraints, of which no public form exists.

The one place that touches ``sklearn.utils._param_validation``; the ecosystem lives on
it, and when it moves this file moves.
"""

from sklearn.utils._param_validation import HasMethods, Interval, StrOptions

__all__ = ["HasMethods", "Interval", "StrOptions"]
