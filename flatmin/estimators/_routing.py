"""``module__x``, ``optimizer__x``, ``method__x`` and ``warmup__x`` as parameters."""

from __future__ import annotations

from typing import Any, Self

from sklearn.base import BaseEstimator

__all__ = ["RoutedParamsMixin"]

# Prefix -> the parameter whose dict takes what follows it.
_ROUTES = {
    "module": "module_params",
    "optimizer": "optimizer_params",
    "method": "method_params",
    "warmup": "warmup",
}


class RoutedParamsMixin(BaseEstimator):
    """Sends double-underscore parameters into the dict that holds them.

    ``set_params(module__width=3)`` puts ``{"width": 3}`` into a *new* dict, so that a
    clone never shares it. ``method__x`` goes into ``method_params`` while ``method``
    is a name, and to the law itself when it is an instance.
    """

    def set_params(self, **params: Any) -> Self:
        """Set parameters, also those of the module, optimizer, law and warm-up.

        Parameters
        ----------
        **params
            As in scikit-learn; see the class for the prefixes.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If a parameter does not exist, or has no parameters of its own.
        """
        plain = {k: v for k, v in params.items() if "__" not in k}
        super().set_params(**plain)
        for key in params.keys() - plain.keys():
            prefix, _, name = key.partition("__")
            if prefix == "method" and isinstance(self.method, BaseEstimator):
                self.method.set_params(**{name: params[key]})
            elif prefix in _ROUTES:
                held = getattr(self, _ROUTES[prefix]) or {}
                setattr(self, _ROUTES[prefix], {**held, name: params[key]})
            else:
                raise ValueError(
                    f"Only {', '.join(sorted(_ROUTES))} have parameters of their own. "
                    f"Got {key!r}; set an object's parameters on the object."
                )
        return self
