"""Noise laws: how ε in θ ← θ - η (g₀ + ε) is drawn. One class, one file, a law."""

from flatmin.noise._alpha_stable import AlphaStable
from flatmin.noise._anti_pgd import AntiPGD
from flatmin.noise._base import GaussianLaw, NoiseLaw
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
from flatmin.noise._match import (
    MatchedGaussianLaw,
    MatchedLaw,
    MatchedState,
    UndefinedNoiseError,
)
from flatmin.noise._projected import Projected
from flatmin.noise._random_subspace import GLDRandomSubspace
from flatmin.noise._registry import METHODS, make_noise_law, register_law
from flatmin.noise._sam import SAM
from flatmin.noise._sgd import SGD
from flatmin.noise._shuffled import GLDShuffled
from flatmin.noise._step import Step, step_for
from flatmin.noise._svag import SVAG

__all__ = [
    "GD",
    "GLDGGN",
    "METHODS",
    "SAM",
    "SGD",
    "SVAG",
    "AlphaStable",
    "AntiPGD",
    "Bernoulli",
    "GLDConst",
    "GLDDiagonal",
    "GLDDynamic",
    "GLDFirstEigenvector",
    "GLDFisher",
    "GLDFull",
    "GLDHessian",
    "GLDLeading",
    "GLDRandomSubspace",
    "GLDShuffled",
    "GaussianLaw",
    "GradientPenalty",
    "LabelNoise",
    "MatchedGaussianLaw",
    "MatchedLaw",
    "MatchedState",
    "NoiseLaw",
    "Projected",
    "Step",
    "UndefinedNoiseError",
    "make_noise_law",
    "register_law",
    "step_for",
]
