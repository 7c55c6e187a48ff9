"""The names of the laws."""

from __future__ import annotations

from typing import Any

from flatmin._utils.names import check_known
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
from flatmin.noise._hessian import GLDHessian
from flatmin.noise._label_noise import LabelNoise
from flatmin.noise._leading import GLDLeading
from flatmin.noise._projected import Projected
from flatmin.noise._random_subspace import GLDRandomSubspace
from flatmin.noise._sam import SAM
from flatmin.noise._sgd import SGD
from flatmin.noise._shuffled import GLDShuffled
from flatmin.noise._svag import SVAG

__all__ = ["METHODS", "make_noise_law"]

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
    )
}


def make_noise_law(name: str, **settings: Any) -> NoiseLaw:
    """Make a law by its name.

    Parameters
    ----------
    name : str
        One of ``METHODS``.
    **settings
        Parameters of that law.

    Returns
    -------
    NoiseLaw

    Raises
    ------
    ValueError
        If the name, or a setting of that law, does not exist.

    Examples
    --------
    >>> make_noise_law("gld_full", batch_size=20)
    GLDFull(batch_size=20)
    """
    check_known("method", name, METHODS)
    law = METHODS[name]
    known = law._get_param_names()
    for setting in settings:
        check_known(f"setting of {name}", setting, known)
    return law(**settings)
