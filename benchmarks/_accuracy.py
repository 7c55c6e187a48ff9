"""How wrong an answer is: a fast wrong answer has to be shown as wrong."""

from __future__ import annotations

from typing import Any

import torch
from _problems import Problem
from _reference import DoublePoint
from torch import Tensor

__all__ = ["CRITERIA", "errors"]

#: The error up to which an answer counts as right, by the name of its quantity.
CRITERIA = {
    "gradient": 1e-4,
    "hvp": 1e-3,
    "ggn": 1e-3,
    "variances": 1e-3,
    "squared norms": 1e-3,
    "eigenpairs": 1e-4,
    "eigenvectors": 1e-2,
    "trace": 0.05,  # of a noise covariance, which may be an estimate
    "uncentred trace": 0.05,
}


def errors(
    quantity: str, answer: Any, reference: dict[str, Tensor], problem: Problem
) -> dict[str, float]:
    """Return the errors of an answer; the largest is held against the criterion.

    Relative, and for eigenpairs in units of λ₁: the worst ‖Hu - λu‖, with products in
    float64. Small residuals alone do not tell, since a ghost is a right pair found
    twice: the values have to be the k largest too, and the vectors different. For
    "eigenvectors" alone, λ is their Rayleigh quotient.
    """
    if quantity not in ("eigenpairs", "eigenvectors"):
        wanted = reference[quantity].double()
        difference = torch.as_tensor(answer).double() - wanted
        return {"relative": float(difference.norm() / wanted.norm())}
    scale = reference["eigenvalues"].abs().max()
    point = DoublePoint(problem, reference["theta"])
    values, vectors = answer
    vectors = torch.as_tensor(vectors).double()
    vectors = vectors / vectors.norm(dim=0)
    products = torch.stack([point.hvp(u) for u in vectors.T], dim=1)
    if quantity == "eigenvectors":
        values = (vectors * products).sum(0)
    values = torch.as_tensor(values).double()
    residuals = (products - values * vectors).norm(dim=0)
    found = {"residual": float(residuals.max() / scale)}
    if quantity == "eigenpairs":
        differences = values.sort(descending=True).values - reference["eigenvalues"]
        found["values"] = float(differences.abs().max() / scale)
        overlaps = (vectors.T @ vectors).fill_diagonal_(0).abs().max()
        if overlaps > 0.5:
            found["found twice"] = float(overlaps)
    return found
