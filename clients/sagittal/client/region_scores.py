"""Scores of sets of patches of an image."""

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
    """That probability over the unmasked score."""
    top: ClassScore
    """The top class for that set."""
    cached: bool
    """True if the job had scored the set before."""


@dataclass(frozen=True, slots=True)
class RegionScores:
    """The scores of sets of patches, in their order."""

    full: ClassScore
    """The target's probability on the unmasked image."""
    scores: tuple[RegionScore, ...]


def parse_regions(message: service_pb.ScoreRegionsResponse) -> RegionScores:
    """Returns the response as a dataclass."""
    return parse(RegionScores, message)
