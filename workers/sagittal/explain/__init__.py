"""Methods that explain image classifiers, and measures of the quality of an explanation.

The package works without the service: `explain(model, image, IGOSPlusPlus())` explains an image of any PyTorch
classifier.
"""

from sagittal.engine.alterations import PixelScale
from sagittal.explain.attribution.evaluate_mask import EvaluateMask
from sagittal.explain.attribution.excitation_backprop import ExcitationBackprop
from sagittal.explain.attribution.grad_cam import GradCAM
from sagittal.explain.attribution.integrated_gradients import IntegratedGradients
from sagittal.explain.attribution.layers import Unsupported
from sagittal.explain.attribution.occlusion import Occlusion
from sagittal.explain.attribution.occlusion_surrogate import OcclusionSurrogate
from sagittal.explain.attribution.rise import RISE
from sagittal.explain.attribution.score_cam import ScoreCAM
from sagittal.explain.backgrounds import RobustnessTest
from sagittal.explain.baselines import Black, Blur, Given, MeanColour, Noise
from sagittal.explain.concepts.explainer import Concepts
from sagittal.explain.explainer import Explainer, Needs
from sagittal.explain.explanation import explanation_steps
from sagittal.explain.library import explain
from sagittal.explain.masks.igos import IGOS, IGOSPlus, IGOSPlusPlus
from sagittal.explain.masks.meaningful_perturbation import MeaningfulPerturbation
from sagittal.explain.masks.region_search import OrderedRegionSearch
from sagittal.explain.measures.curves import CurveProtocol, Metrics
from sagittal.explain.methods import EXPLAINERS, Row, find_method
from sagittal.explain.parameters import InvalidParameter, parameter, parameters
from sagittal.explain.problem import Problem, Question
from sagittal.explain.sets.attention_graph import StructuredAttentionGraph
from sagittal.explain.sets.regions import RegionScore, score_regions
from sagittal.explain.sets.sufficient_sets import MinimalSufficientExplanations

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
    "OcclusionSurrogate",
    "OrderedRegionSearch",
    "PixelScale",
    "Problem",
    "Question",
    "RegionScore",
    "RobustnessTest",
    "Row",
    "ScoreCAM",
    "StructuredAttentionGraph",
    "Unsupported",
    "explain",
    "explanation_steps",
    "find_method",
    "parameter",
    "parameters",
    "score_regions",
]
