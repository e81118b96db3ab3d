"""Explainers of image classifiers and the measures of how good an explanation is.

Useful alone: `run(model, image, IGOSPlusPlus())` in `sagittal.engine` explains without any service.
"""

from sagittal.explain.baseline import Black, Blur, Given, MeanColour, Noise
from sagittal.explain.curves import CurveProtocol, Metrics
from sagittal.explain.explainer import Explainer, Needs
from sagittal.explain.explanation import explain
from sagittal.explain.igos import IGOS
from sagittal.explain.igos_plus import IGOSPlus, IGOSPlusPlus
from sagittal.explain.parameters import InvalidParameter, parameter, parameters
from sagittal.explain.preparation import Question
from sagittal.explain.problem import Problem
from sagittal.explain.table import EXPLAINERS, Row

__all__ = [
    "EXPLAINERS",
    "IGOS",
    "Black",
    "Blur",
    "CurveProtocol",
    "Explainer",
    "Given",
    "IGOSPlus",
    "IGOSPlusPlus",
    "InvalidParameter",
    "MeanColour",
    "Metrics",
    "Needs",
    "Noise",
    "Problem",
    "Question",
    "Row",
    "explain",
    "parameter",
    "parameters",
]
