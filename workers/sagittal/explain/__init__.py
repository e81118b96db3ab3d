"""Explainers of image classifiers and the measures of how good an explanation is.

Useful alone: `run(model, image, IGOSPlusPlus())` in `sagittal.engine` explains without any service.
"""

from sagittal.explain.attention_graph import StructuredAttentionGraph
from sagittal.explain.baseline import Black, Blur, Given, MeanColour, Noise
from sagittal.explain.concepts.explaining import Concepts
from sagittal.explain.curves import CurveProtocol, Metrics
from sagittal.explain.evaluate_mask import EvaluateMask
from sagittal.explain.excitation_backprop import ExcitationBackprop
from sagittal.explain.explainer import Explainer, Needs
from sagittal.explain.explanation import explain
from sagittal.explain.grad_cam import GradCAM
from sagittal.explain.igos import IGOS
from sagittal.explain.igos_plus import IGOSPlus, IGOSPlusPlus
from sagittal.explain.integrated_gradients import IntegratedGradients
from sagittal.explain.layers import Unsupported
from sagittal.explain.meaningful_perturbation import MeaningfulPerturbation
from sagittal.explain.occlusion import Occlusion
from sagittal.explain.parameters import InvalidParameter, parameter, parameters
from sagittal.explain.preparation import Question
from sagittal.explain.problem import Problem
from sagittal.explain.regions import RegionScore, score_regions
from sagittal.explain.rise import RISE
from sagittal.explain.score_cam import ScoreCAM
from sagittal.explain.sufficient_sets import MinimalSufficientExplanations
from sagittal.explain.table import EXPLAINERS, Row

__all__ = [
    "EXPLAINERS",
    "IGOS",
    "RISE",
    "Black",
    "Blur",
    "Concepts",
    "CurveProtocol",
    "EvaluateMask",
    "ExcitationBackprop",
    "Explainer",
    "Given",
    "GradCAM",
    "IGOSPlus",
    "IGOSPlusPlus",
    "IntegratedGradients",
    "InvalidParameter",
    "MeanColour",
    "MeaningfulPerturbation",
    "Metrics",
    "MinimalSufficientExplanations",
    "Needs",
    "Noise",
    "Occlusion",
    "Problem",
    "Question",
    "RegionScore",
    "Row",
    "ScoreCAM",
    "StructuredAttentionGraph",
    "Unsupported",
    "explain",
    "parameter",
    "parameters",
    "score_regions",
]
