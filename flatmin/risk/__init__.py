"""The empirical risk: the only floor that differentiates."""

from flatmin.risk.analytic import AnalyticRisk, LinearRegressionRisk, QuadraticRisk
from flatmin.risk.audit import Audit
from flatmin.risk.basins import TwoBasinsRisk
from flatmin.risk.empirical import EmpiricalRisk
from flatmin.risk.interface import LinearizedRisk, Risk
from flatmin.risk.label_noise import LabelDraw
from flatmin.risk.layout import ParameterLayout
from flatmin.risk.losses import LOSSES, ExampleLoss
from flatmin.risk.resolve_loss import resolve_loss

__all__ = [
    "LOSSES",
    "AnalyticRisk",
    "Audit",
    "EmpiricalRisk",
    "ExampleLoss",
    "LabelDraw",
    "LinearRegressionRisk",
    "LinearizedRisk",
    "ParameterLayout",
    "QuadraticRisk",
    "Risk",
    "TwoBasinsRisk",
    "resolve_loss",
]
