"""The empirical risk: the only floor that differentiates."""

from flatmin.risk.analytic.analytic_risk import AnalyticRisk
from flatmin.risk.analytic.basins import TwoBasinsRisk
from flatmin.risk.analytic.double_well import DoubleWellRisk
from flatmin.risk.analytic.function import FunctionRisk
from flatmin.risk.analytic.linear_regression import LinearRegressionRisk
from flatmin.risk.analytic.quadratic import QuadraticRisk
from flatmin.risk.audit import Audit
from flatmin.risk.empirical import EmpiricalRisk
from flatmin.risk.interface import LinearizedRisk, Risk
from flatmin.risk.label_noise import LabelDraw
from flatmin.risk.losses.example_loss import ExampleLoss
from flatmin.risk.losses.module_loss import ModuleLoss
from flatmin.risk.losses.resolve_loss import LOSSES, resolve_loss
from flatmin.risk.network.layout import ParameterLayout

__all__ = [
    "LOSSES",
    "AnalyticRisk",
    "Audit",
    "DoubleWellRisk",
    "EmpiricalRisk",
    "ExampleLoss",
    "FunctionRisk",
    "LabelDraw",
    "LinearRegressionRisk",
    "LinearizedRisk",
    "ModuleLoss",
    "ParameterLayout",
    "QuadraticRisk",
    "Risk",
    "TwoBasinsRisk",
    "resolve_loss",
]
