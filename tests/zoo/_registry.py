"""All families, in the order of the page."""

from . import (
    activations,
    attention,
    complex_numbers,
    control_flow,
    convolutions,
    functions,
    indexing,
    layers,
    linear_algebra,
    losses,
    normalisation,
    parametrizations,
    pooling,
    recurrent,
    sharing,
)

__all__ = ["FAMILIES"]

FAMILIES = {
    "Convolutions": convolutions.KINDS,
    "Pooling": pooling.KINDS,
    "Normalisation": normalisation.KINDS,
    "Recurrent layers": recurrent.KINDS,
    "Attention": attention.KINDS,
    "Other layers": layers.KINDS,
    "Activations": activations.KINDS,
    "Losses": losses.KINDS,
    "Parametrizations": parametrizations.KINDS,
    "Indexing, sorting, reducing": indexing.KINDS,
    "Linear algebra": linear_algebra.KINDS,
    "Complex numbers": complex_numbers.KINDS,
    "Autograd functions": functions.KINDS,
    "Control flow and randomness": control_flow.KINDS,
    "Sharing, and examples that meet": sharing.KINDS,
}
