"""Sets of patches to score, and the scores that a job's events already contain."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sagittal.core.enums import check_enum
from sagittal.core.errors import InvalidRequest
from sagittal.v1 import explanation_pb2, explanation_service_pb2, method_pb2

#: Sets in one request.
MAX_SETS = 1_000

#: Patches per side of the grid.
MIN_GRID, MAX_GRID = 3, 14


@dataclass(frozen=True, slots=True)
class Known:
    """A score of the model for one set of patches."""

    score: float
    """The target's probability."""
    top: explanation_pb2.ClassScore


def check_sets(sets: Sequence[explanation_pb2.PatchSet], input_size: int = 0) -> int:
    """Returns the number of patches per side of the grid that all sets share.

    Args:
        sets: The caller's sets.
        input_size: Side in pixels of the model's input; 0 if unknown.

    Raises:
        InvalidRequest: there are too few or too many sets, the grids differ or are out of bounds, or a patch is outside
            the grid or twice in a set.
    """
    if not 1 <= len(sets) <= MAX_SETS:
        raise InvalidRequest(f"sets has {len(sets):,} sets; give 1 to {MAX_SETS:,}", field="sets")
    grid, largest = sets[0].grid, min(MAX_GRID, input_size or MAX_GRID)
    if not MIN_GRID <= grid <= largest:
        text = f"sets[0].grid is {grid}; give {MIN_GRID} to {largest} patches per side"
        raise InvalidRequest(text, field="sets[0].grid")
    for index, patch_set in enumerate(sets):
        _check_set(patch_set, grid, f"sets[{index}]")
    return grid


def check_patch_shape(shape: int, field: str) -> None:
    """Raises InvalidRequest if this API version does not know the shape."""
    check_enum(method_pb2.PatchShape.DESCRIPTOR, shape, field)


def bits_of(patch_set: explanation_pb2.PatchSet) -> int:
    """Returns a set as an integer with bit `row * grid + column` set for each of its patches."""
    return sum(1 << patch for patch in patch_set.patches)


def known_sets(events: Iterable[explanation_pb2.ExplanationEvent], grid: int, model_digest: str) -> Mapping[int, Known]:
    """Returns the scores that a job's events contain for sets on this grid, by the sets' bits.

    Returns nothing if the events are about a model with another digest.
    """
    known: dict[int, Known] = {}
    for event in events:
        kind = event.WhichOneof("event")
        if kind == "sufficient_set" and event.sufficient_set.certificate.model_digest not in ("", model_digest):
            return {}
        if kind == "sufficient_set":
            _note(known, event.sufficient_set, grid)
        elif kind == "graph_node":
            _note(known, event.graph_node, grid)
    return known


def unmasked_score(events: Iterable[explanation_pb2.ExplanationEvent]) -> explanation_pb2.ClassScore | None:
    """Returns the target with its probability on the unmasked image; None if no event has it."""
    predictions = [event.prediction for event in events if event.HasField("prediction")]
    return predictions[-1].target if predictions else None


def region_score(
    found: Known, unmasked: explanation_pb2.ClassScore, *, cached: bool
) -> explanation_service_pb2.RegionScore:
    """Returns the score of a set as an API message."""
    relative = found.score / unmasked.score if unmasked.score > 0 else 0.0
    return explanation_service_pb2.RegionScore(score=found.score, relative_score=relative, top=found.top, cached=cached)


def _note(known: dict[int, Known], found: explanation_pb2.SufficientSet | explanation_pb2.GraphNode, grid: int) -> None:
    if found.patches.grid != grid:
        return
    shown = bits_of(found.patches)
    if found.HasField("top"):
        known[shown] = Known(found.score, found.top)
    if found.HasField("causal") and found.causal.HasField("top_without"):
        everything = (1 << grid * grid) - 1
        known[everything ^ shown] = Known(found.causal.without, found.causal.top_without)


def _check_set(patch_set: explanation_pb2.PatchSet, grid: int, field: str) -> None:
    if patch_set.grid != grid:
        text = f"{field}.grid is {patch_set.grid}; sets[0].grid is {grid}; use one grid for all sets"
        raise InvalidRequest(text, field=f"{field}.grid")
    seen: set[int] = set()
    for index, patch in enumerate(patch_set.patches):
        place = f"{field}.patches[{index}]"
        if patch >= grid * grid:
            text = f"{place} is {patch}; a grid of {grid} x {grid} has the patches 0 to {grid * grid - 1}"
            raise InvalidRequest(text, field=place)
        if patch in seen:
            raise InvalidRequest(f"{place} is {patch}, which is already in the set; give each patch once", field=place)
        seen.add(patch)
