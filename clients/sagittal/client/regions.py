"""Answers to "what if only these patches were shown"."""

from dataclasses import dataclass

from sagittal.client.events import ClassScore
from sagittal.client.parsing import parse
from sagittal.v1 import explanation_service_pb2 as service_pb


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
