"""The names of the laws."""

from __future__ import annotations

import inspect
from typing import Any, TypeVar

from flatmin._utils.names import check_known
from flatmin._utils.registry import enter
from flatmin.noise._alpha_stable import AlphaStable
from flatmin.noise._anti_pgd import AntiPGD
from flatmin.noise._base import NoiseLaw
from flatmin.noise._bernoulli import Bernoulli
from flatmin.noise._const import GLDConst
from flatmin.noise._diagonal import GLDDiagonal
from flatmin.noise._dynamic import GLDDynamic
from flatmin.noise._first_eigenvector import GLDFirstEigenvector
from flatmin.noise._fisher import GLDFisher
from flatmin.noise._full import GLDFull
from flatmin.noise._gd import GD
from flatmin.noise._ggn import GLDGGN
from flatmin.noise._gradient_penalty import GradientPenalty
from flatmin.noise._hessian import GLDHessian
from flatmin.noise._label_noise import LabelNoise
from flatmin.noise._leading import GLDLeading
from flatmin.noise._projected import Projected
from flatmin.noise._random_subspace import GLDRandomSubspace
from flatmin.noise._sam import SAM
from flatmin.noise._sgd import SGD
from flatmin.noise._shuffled import GLDShuffled
from flatmin.noise._svag import SVAG

__all__ = [
    "BUILT_IN",
    "METHODS",
    "check_law_class",
    "make_noise_law",
    "register_law",
    "registered_laws",
]

Law = TypeVar("Law", bound=type[NoiseLaw])

#: The class of every law by its name.
METHODS: dict[str, type[NoiseLaw]] = {
    law.name: law
    for law in (
        GD,
        SGD,
        GLDConst,
        GLDDynamic,
        GLDDiagonal,
        GLDLeading,
        GLDHessian,
        GLDFirstEigenvector,
        GLDFull,
        GLDFisher,
        GLDGGN,
        GLDRandomSubspace,
        GLDShuffled,
        Projected,
        SVAG,
        Bernoulli,
        AlphaStable,
        LabelNoise,
        AntiPGD,
        SAM,
        GradientPenalty,
    )
}


# What a user registers later is not in it.
BUILT_IN = frozenset(METHODS.values())


def register_law(law: Law) -> Law:
    """Enter a law of one's own in ``METHODS``, under its ``name``.

    It is then a ``method=`` of the estimators and of ``compare_dynamics`` by that name;
    the class itself is one without being registered. Also a decorator.

    Parameters
    ----------
    law : type
        A subclass of :class:`NoiseLaw` with a ``name`` of its own. A pickled estimator
        brings it to worker processes: they must be able to import its module, unless
        it is of a notebook or a script and is written whole.

    Returns
    -------
    type
        The same class.

    Raises
    ------
    TypeError
        If it is no such class, or lacks a method.
    ValueError
        If another law has its name.

    Examples
    --------
    >>> from flatmin.noise import GLDFull
    >>> @register_law
    ... class Halved(GLDFull):
    ...     name = "halved"
    ...
    ...     def noisy_gradient(self, risk, theta, state, rng):
    ...         loss, noisy = super().noisy_gradient(risk, theta, state, rng)
    ...         return loss, (noisy + risk.gradient(theta)) / 2
    >>> make_noise_law("halved", batch_size=20)
    Halved(batch_size=20)
    >>> del METHODS["halved"]
    """
    check_law_class("law", law)
    own: type[NoiseLaw] = law
    enter("law", METHODS, getattr(law, "name", None), own)
    return law


def check_law_class(title: str, law: Any) -> None:
    """Raise unless something is a class of laws that instances can be made of."""
    if not (isinstance(law, type) and issubclass(law, NoiseLaw)):
        raise TypeError(f"{title} must be a subclass of NoiseLaw. Got {law!r}.")
    if inspect.isabstract(law):
        missing = ", ".join(sorted(law.__abstractmethods__))
        raise TypeError(
            f"{title} must be a NoiseLaw with all its methods. Got {law.__name__}, "
            f"which lacks {missing}."
        )


def registered_laws(*names: Any) -> tuple[type[NoiseLaw], ...]:
    """Return those classes among named laws that a user has registered.

    Parameters
    ----------
    *names : object
        What is no name of a law is left out.

    Returns
    -------
    tuple of type
    """
    laws = (METHODS.get(name) for name in names if isinstance(name, str))
    return tuple(law for law in laws if law is not None and law not in BUILT_IN)


def make_noise_law(name: str | type[NoiseLaw], **settings: Any) -> NoiseLaw:
    """Make a law by its name.

    Parameters
    ----------
    name : str or type
        One of ``METHODS``, or a subclass of :class:`NoiseLaw`.
    **settings
        Parameters of that law.

    Returns
    -------
    NoiseLaw

    Raises
    ------
    TypeError
        If a class is none of laws.
    ValueError
        If the name, or a setting of that law, does not exist.

    Examples
    --------
    >>> make_noise_law("gld_full", batch_size=20)
    GLDFull(batch_size=20)
    """
    if isinstance(name, type):
        check_law_class("method", name)
        law = name
    else:
        check_known("method", name, METHODS)
        law = METHODS[name]
    known = law._get_param_names()
    for setting in settings:
        check_known(f"setting of {law.name}", setting, known)
    return law(**settings)
