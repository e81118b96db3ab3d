"""XNN: explanations by a few concepts (x-features) that together predict the model's outputs.

The package works without the service: `fit_concepts(FitQuestion(...))` and `Concepts(fitted=...)` run on the engine
like any other explanation.
"""

from sagittal.explain.concepts.explainer import Concepts
from sagittal.explain.concepts.features import Box, FeatureCache, GivenImages, ImageSet, Read, UnfitImages
from sagittal.explain.concepts.fit import ConceptFit, FitQuestion, fit_concepts
from sagittal.explain.concepts.fitted import FittedConcepts
from sagittal.explain.concepts.quality import Locality, Quality, entropy
from sagittal.explain.concepts.srae import SRAE
from sagittal.explain.concepts.training import FitSettings
from sagittal.explain.concepts.view import Shown, XFeature

__all__ = [
    "SRAE",
    "Box",
    "ConceptFit",
    "Concepts",
    "FeatureCache",
    "FitQuestion",
    "FitSettings",
    "FittedConcepts",
    "GivenImages",
    "ImageSet",
    "Locality",
    "Quality",
    "Read",
    "Shown",
    "UnfitImages",
    "XFeature",
    "entropy",
    "fit_concepts",
]
