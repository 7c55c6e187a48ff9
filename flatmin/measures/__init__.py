"""Alignment, gradient noise, sharpness and stability: pure functions of (risk, θ)."""

from flatmin.measures._alignment import alignment
from flatmin.measures._alignment_by_layer import LayerAlignments, alignment_by_layer
from flatmin.measures._alignment_result import Alignment
from flatmin.measures._ascent_sharpness import asam_sharpness, sam_sharpness
from flatmin.measures._batch_sharpness import batch_sharpness
from flatmin.measures._curvature_sharpness import max_eigenvalue, trace_sharpness
from flatmin.measures._curves import CurveProfile, bezier_profile, segment_profile
from flatmin.measures._fisher_rao import fisher_rao_norm
from flatmin.measures._gaussianity import Gaussianity, minibatch_gaussianity
from flatmin.measures._loss_scaled import LossScaledAlignment, loss_scaled_alignment
from flatmin.measures._negative_mass import density_negative_mass, negative_mass
from flatmin.measures._noise_scale import (
    GradientNoise,
    SignalToNoise,
    curvature_noise_scale,
    gradient_noise,
    gradient_signal_to_noise,
)
from flatmin.measures._noise_spectrum import NoiseSpectrum, noise_spectrum
from flatmin.measures._power_law import (
    PowerLaw,
    PowerLaws,
    covariance_exponent,
    covariance_exponents,
)
from flatmin.measures._registry import SHARPNESS_MEASURES, register_measure
from flatmin.measures._rescaling import rescale_layers
from flatmin.measures._sharpness import adaptive_expected_sharpness, expected_sharpness
from flatmin.measures._stability import (
    edge_of_stability,
    non_uniformity,
    non_uniformity_bound,
)
from flatmin.measures._subspaces import (
    cosines,
    overlap,
    principal_angles,
    projection_residual,
    random_projection_residual,
    subspace_share,
)
from flatmin.measures._tail_index import TailIndex, tail_index
from flatmin.measures._tic import tic
from flatmin.measures._trace_product import TraceProduct, trace_hessian_covariance

__all__ = [
    "SHARPNESS_MEASURES",
    "Alignment",
    "CurveProfile",
    "Gaussianity",
    "GradientNoise",
    "LayerAlignments",
    "LossScaledAlignment",
    "NoiseSpectrum",
    "PowerLaw",
    "PowerLaws",
    "SignalToNoise",
    "TailIndex",
    "TraceProduct",
    "adaptive_expected_sharpness",
    "alignment",
    "alignment_by_layer",
    "asam_sharpness",
    "batch_sharpness",
    "bezier_profile",
    "cosines",
    "covariance_exponent",
    "covariance_exponents",
    "curvature_noise_scale",
    "density_negative_mass",
    "edge_of_stability",
    "expected_sharpness",
    "fisher_rao_norm",
    "gradient_noise",
    "gradient_signal_to_noise",
    "loss_scaled_alignment",
    "max_eigenvalue",
    "minibatch_gaussianity",
    "negative_mass",
    "noise_spectrum",
    "non_uniformity",
    "non_uniformity_bound",
    "overlap",
    "principal_angles",
    "projection_residual",
    "random_projection_residual",
    "register_measure",
    "rescale_layers",
    "sam_sharpness",
    "segment_profile",
    "subspace_share",
    "tail_index",
    "tic",
    "trace_hessian_covariance",
    "trace_sharpness",
]
