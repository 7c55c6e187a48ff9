"""``module__x``, ``optimizer__x`` and ``method__x`` as parameters of an estimator."""

from __future__ import annotations

from typing import Any

from sklearn.base import BaseEstimator

__all__ = ["RoutedParamsMixin"]

_ROUTES = {
    "module": "module_params",
    "optimizer": "optimizer_params",
    "callbacks": "callbacks_params",
    "method": "method_params",
}


class RoutedParamsMixin(BaseEstimator):
    """Sends double-underscore parameters into the dict that holds them.

    ``set_params(module__width=3)`` puts ``{"width": 3}`` into a *new* dict, so that a
    clone never shares it. ``method__x`` goes into ``method_params`` while ``method``
    is a name, and to the law itself when it is an instance.
    """

    def set_params(self, **params: Any) -> RoutedParamsMixin:
        """Set parameters, also those of the module, optimizer, callbacks and law.

        Parameters
        ----------
        **params
            As in scikit-learn; see the class for the prefixes.

        Returns
        -------
        self
        """
        plain = {k: v for k, v in params.items() if not self._is_routed(k)}
        super().set_params(**plain)
        nested = {}
        for key in params.keys() - plain.keys():
            prefix, _, name = key.partition("__")
            if prefix == "method" and isinstance(self.method, BaseEstimator):
                nested[key] = params[key]
                continue
            held = getattr(self, _ROUTES[prefix]) or {}
            setattr(self, _ROUTES[prefix], {**held, name: params[key]})
        if nested:
            super().set_params(**nested)
        return self

    @staticmethod
    def _is_routed(key: str) -> bool:
        prefix, separator, _ = key.partition("__")
        return bool(separator) and prefix in _ROUTES
