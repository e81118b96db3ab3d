"""Answers to "what if only these patches were shown"."""

from dataclasses import dataclass
from typing import TypedDict

from sagittal.client.events import ClassScore
from sagittal.client.images import ImageLike
from sagittal.client.parsing import parse
from sagittal.client.requests import Baseline, BaselineName
from sagittal.v1 import explanation_service_pb2 as service_pb


class RegionOptions(TypedDict, total=False):
    """What the patches belong to: a job, or an image with its model."""

    job_id: str
    image: ImageLike | None
    model: str
    model_version: str
    target: int | str | None
    baseline: Baseline | BaselineName
    hide: bool
    """Hides the sets instead of showing only them."""


@dataclass(frozen=True, slots=True)
class RegionScore:
    """The score of one set of patches."""

    score: float
    """The target's probability."""
    relative_score: float
    """That probability over the full image's."""
    top: ClassScore
    """The top class then."""
    cached: bool
    """True where the job had scored the set already."""


@dataclass(frozen=True, slots=True)
class RegionScores:
    """The scores of sets of patches, in their order."""

    full: ClassScore
    """The target's probability on the full image."""
    scores: tuple[RegionScore, ...]


def parse_regions(message: service_pb.ScoreRegionsResponse) -> RegionScores:
    """Returns the answer as a dataclass."""
    return parse(RegionScores, message)
