"""The table of methods. One row is enough to serve, batch, cancel, meter and draw a method."""

from collections.abc import Mapping
from dataclasses import dataclass

from sagittal.explain.attribution.evaluate_mask import EvaluateMask
from sagittal.explain.attribution.excitation_backprop import ExcitationBackprop
from sagittal.explain.attribution.grad_cam import GradCAM
from sagittal.explain.attribution.integrated_gradients import IntegratedGradients
from sagittal.explain.attribution.occlusion import Occlusion
from sagittal.explain.attribution.occlusion_surrogate import OcclusionSurrogate
from sagittal.explain.attribution.rise import RISE
from sagittal.explain.attribution.score_cam import ScoreCAM
from sagittal.explain.concepts.explainer import Concepts
from sagittal.explain.explainer import Explainer
from sagittal.explain.masks.igos import IGOS, IGOSPlus, IGOSPlusPlus
from sagittal.explain.masks.meaningful_perturbation import MeaningfulPerturbation
from sagittal.explain.masks.region_search import OrderedRegionSearch
from sagittal.explain.sets.attention_graph import StructuredAttentionGraph
from sagittal.explain.sets.sufficient_sets import MinimalSufficientExplanations


@dataclass(frozen=True, slots=True)
class Row:
    """A method with its public names."""

    name: str
    """The listed name, such as `igos++`."""
    field: str
    """Field of `sagittal.v1.Method` that carries its parameters; `custom` if it has none."""
    explainer: type[Explainer]
    aliases: tuple[str, ...] = ()
    """Further names that are accepted, such as `mse`."""


ROWS = (
    Row("igos", "igos", IGOS),
    Row("igos+", "igos_plus", IGOSPlus),
    Row("igos++", "igos_plus_plus", IGOSPlusPlus),
    Row("meaningful-perturbation", "meaningful_perturbation", MeaningfulPerturbation),
    Row("ordered-region-search", "ordered_region_search", OrderedRegionSearch, ("ors",)),
    Row("rise", "rise", RISE),
    Row("grad-cam", "grad_cam", GradCAM),
    Row("score-cam", "custom", ScoreCAM),
    Row("integrated-gradients", "integrated_gradients", IntegratedGradients),
    Row("excitation-bp", "excitation_backprop", ExcitationBackprop),
    Row("occlusion", "occlusion", Occlusion),
    Row("occlusion-surrogate", "occlusion_surrogate", OcclusionSurrogate),
    Row("minimal-sufficient-explanations", "minimal_sufficient_explanations", MinimalSufficientExplanations, ("mse",)),
    Row("structured-attention-graph", "structured_attention_graph", StructuredAttentionGraph, ("sag",)),
    Row("concepts", "concepts", Concepts),
    Row("evaluate-mask", "evaluate_mask", EvaluateMask),
)

EXPLAINERS: Mapping[str, Row] = {row.name: row for row in ROWS}
"""Methods by listed name."""

_BY_ANY_NAME: Mapping[str, Row] = {name: row for row in ROWS for name in (row.name, *row.aliases)}


def find_method(name: str) -> Row:
    """Returns the method with a listed name or an alias. Raises KeyError if there is none."""
    return _BY_ANY_NAME[name]
