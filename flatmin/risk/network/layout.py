"""How a module's parameters lie in one flat vector."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import accumulate
from math import prod

import torch
from torch import Tensor, nn

from flatmin._utils.arrays import check_tensor

__all__ = ["ParameterLayout"]

_Slice = slice  # the class below has a method of that name


@dataclass(frozen=True)
class ParameterLayout:
    """The order and the shapes of the trainable parameters.

    Parameters
    ----------
    names : tuple of str
        In ``module.named_parameters()`` order; a shared parameter appears once.
    shapes : tuple of tuple of int
        One for each name.
    aliases : tuple of (str, str), default=()
        Each further name of a shared parameter, and its name in ``names``.

    Examples
    --------
    >>> layout = ParameterLayout.of(nn.Linear(3, 2))
    >>> layout.n_params, layout.slice("bias")
    (8, slice(6, 8, None))
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    aliases: tuple[tuple[str, str], ...] = field(default=(), compare=False, repr=False)

    @classmethod
    def of(cls, module: nn.Module) -> ParameterLayout:
        """Read the layout of a module; frozen parameters are left out.

        Parameters
        ----------
        module : torch.nn.Module
            Only its parameters' names, shapes and ``requires_grad`` are read.

        Returns
        -------
        ParameterLayout

        Raises
        ------
        TypeError
            If it is no module.
        """
        if not isinstance(module, nn.Module):
            raise TypeError(
                f"module must be a torch.nn.Module. Got {type(module).__name__}."
            )
        named = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
        names = {id(p): name for name, p in named}
        every = module.named_parameters(remove_duplicate=False)
        known = [(name, names[id(p)]) for name, p in every if id(p) in names]
        return cls(
            tuple(names.values()),
            tuple(tuple(p.shape) for _, p in named),
            tuple(pair for pair in known if pair[0] != pair[1]),
        )

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of entries of each parameter."""
        return tuple(prod(shape) for shape in self.shapes)

    @property
    def n_params(self) -> int:
        """D."""
        return sum(self.sizes)

    @property
    def _called(self) -> list[tuple[str, str]]:
        """Each name that a parameter goes by, and its name in ``names``."""
        return [*((name, name) for name in self.names), *self.aliases]

    def slice(self, name: str) -> slice:
        """Return where a parameter lies in θ.

        Parameters
        ----------
        name : str
            One of ``names``, or another name of a shared parameter.

        Returns
        -------
        slice

        Raises
        ------
        KeyError
            If there is no trainable parameter of that name.
        """
        known = dict(self._called)
        if not isinstance(name, str) or name not in known:
            raise KeyError(
                f"name must be a trainable parameter. Got {name!r}; there are "
                f"{self.names}."
            )
        i = self.names.index(known[name])
        stops = list(accumulate(self.sizes))
        return slice(stops[i] - self.sizes[i], stops[i])

    def indices(self, patterns: str | list[str]) -> Tensor:
        """Return the coordinates of some parameters in θ, in the order of θ.

        Parameters
        ----------
        patterns : str or list of str
            Names of parameters, or of modules for all that is below them; with the
            wildcards of :mod:`fnmatch`. A shared parameter goes by each of its names.

        Returns
        -------
        Tensor of shape (d,)

        Raises
        ------
        TypeError
            If these are no names.
        ValueError
            If there are none, or a pattern fits no trainable parameter.

        Examples
        --------
        >>> ParameterLayout.of(nn.Linear(2, 2)).indices("bias")
        tensor([4, 5])
        """
        slices = [self.slice(name) for name in self.chosen(patterns)]
        return torch.cat([torch.arange(s.start, s.stop) for s in slices])

    def chosen(self, patterns: str | list[str]) -> tuple[str, ...]:
        """Return the names that patterns stand for, in the order of θ.

        Parameters
        ----------
        patterns : str or list of str
            As of :meth:`indices`.

        Returns
        -------
        tuple of str

        Raises
        ------
        TypeError
            If these are no names.
        ValueError
            If there are none, or a pattern fits no trainable parameter.
        """
        several = [patterns] if isinstance(patterns, str) else patterns
        if not isinstance(several, list | tuple) or not all(
            isinstance(pattern, str) for pattern in several
        ):
            raise TypeError(
                "select must be a name of parameters, or a list of names. Got "
                f"{patterns!r}."
            )
        if not several:
            raise ValueError(
                "select must name at least one parameter; None takes all. Got none."
            )
        wanted: set[str] = set()
        for pattern in several:
            found = {
                name
                for called, name in self._called
                if fnmatchcase(called, pattern) or fnmatchcase(called, f"{pattern}.*")
            }
            if not found:
                raise ValueError(
                    "select must name trainable parameters, or modules that have some. "
                    f"Got {pattern!r}; there are {', '.join(self.names)}."
                )
            wanted |= found
        return tuple(name for name in self.names if name in wanted)

    def layers(self) -> dict[str, _Slice]:
        """Return where the parameters of each module lie in θ.

        A shared parameter belongs to the first module.

        Returns
        -------
        dict of str to slice
            By the module's name, in the order of θ.

        Raises
        ------
        ValueError
            If a module's parameters do not lie side by side.
        """
        layers: dict[str, _Slice] = {}
        for name in self.names:
            module, part = name.rpartition(".")[0], self.slice(name)
            before = layers.get(module)
            if before is not None and before.stop != part.start:
                raise ValueError(
                    f"The parameters of {module!r} do not lie side by side in θ: "
                    f"{', '.join(self.names)}."
                )
            start = part.start if before is None else before.start
            layers[module] = slice(start, part.stop)
        return layers

    def views(self, theta: Tensor) -> list[Tensor]:
        """Cut θ into views of the parameters' shapes; no copy.

        Parameters
        ----------
        theta : Tensor of shape (D,)

        Returns
        -------
        list of Tensor
            In the order of ``names``.

        Raises
        ------
        ValueError
            If it has another shape.
        """
        check_tensor("theta", theta, 1)
        if theta.shape != (self.n_params,):
            raise ValueError(
                f"theta must have shape ({self.n_params},). Got {tuple(theta.shape)}."
            )
        parts = theta.split(list(self.sizes))
        return [
            part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)
        ]

    def unflatten(self, theta: Tensor) -> dict[str, Tensor]:
        """Return the views of θ by name.

        Parameters
        ----------
        theta : Tensor of shape (D,)

        Returns
        -------
        dict of str to Tensor
        """
        return dict(zip(self.names, self.views(theta), strict=True))

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Join tensors by name into one new vector.

        Parameters
        ----------
        tensors : mapping of str to Tensor
            Has every one of ``names``.

        Returns
        -------
        Tensor of shape (D,)

        Raises
        ------
        TypeError
            If one is missing.
        """
        if not isinstance(tensors, Mapping) or not tensors.keys() >= {*self.names}:
            raise TypeError(
                "tensors must be a mapping that has every name of "
                f"{', '.join(self.names)}. Got {type(tensors).__name__}."
            )
        return torch.cat([tensors[name].detach().reshape(-1) for name in self.names])
