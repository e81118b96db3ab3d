"""Sets of patches to score, checked field by field, and what a job's events say of sets already."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sagittal.core.errors import InvalidRequest
from sagittal.v1 import explanation_pb2, explanation_service_pb2, method_pb2

#: Sets in one request.
MAX_SETS = 1_000

#: Patches a side of the grid.
MIN_GRID, MAX_GRID = 3, 14


@dataclass(frozen=True, slots=True)
class Known:
    """What the model says of a set of patches."""

    score: float
    """The target's probability."""
    top: explanation_pb2.ClassScore


def check_sets(sets: Sequence[explanation_pb2.PatchSet], input_size: int = 0) -> int:
    """Returns the grid that all sets are on.

    Args:
        sets: As they came from a caller.
        input_size: Side in pixels of the model's input; 0 where it is not known.

    Raises:
        InvalidRequest: there are too few or too many, the grids differ or are out of bounds, or a patch is outside the
            grid or twice in a set.
    """
    if not 1 <= len(sets) <= MAX_SETS:
        raise InvalidRequest(f"sets has {len(sets):,} sets; give 1 to {MAX_SETS:,}", field="sets")
    grid, largest = sets[0].grid, min(MAX_GRID, input_size or MAX_GRID)
    if not MIN_GRID <= grid <= largest:
        text = f"sets[0].grid is {grid}; give {MIN_GRID} to {largest} patches a side"
        raise InvalidRequest(text, field="sets[0].grid")
    for index, patch_set in enumerate(sets):
        _check_set(patch_set, grid, f"sets[{index}]")
    return grid


def check_patch_shape(shape: int, field: str) -> None:
    """Raises InvalidRequest for a shape that this version of the API does not know."""
    if shape not in method_pb2.PatchShape.DESCRIPTOR.values_by_number:
        raise InvalidRequest(f"{field} is {shape}; give PATCH_SHAPE_BOX or PATCH_SHAPE_TENT", field=field)


def bits_of(patch_set: explanation_pb2.PatchSet) -> int:
    """Returns a set as an integer: bit `row * grid + column` for each of its patches."""
    return sum(1 << patch for patch in patch_set.patches)


def known_sets(events: Iterable[explanation_pb2.ExplanationEvent], grid: int, model_digest: str) -> Mapping[int, Known]:
    """Returns what a job's events say of sets on a grid that are shown alone, by their bits.

    Nothing is known where the events are about another model than the one with this digest.
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


def full_score(events: Iterable[explanation_pb2.ExplanationEvent]) -> explanation_pb2.ClassScore | None:
    """Returns the target with its probability on the full image; None where no event says it."""
    predictions = [event.prediction for event in events if event.HasField("prediction")]
    return predictions[-1].target if predictions else None


def region_score(
    found: Known, full: explanation_pb2.ClassScore, *, cached: bool
) -> explanation_service_pb2.RegionScore:
    """Returns the score of a set as the API says it."""
    relative = found.score / full.score if full.score > 0 else 0.0
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
        text = f"{field}.grid is {patch_set.grid}; sets[0].grid is {grid}: give all sets on one grid"
        raise InvalidRequest(text, field=f"{field}.grid")
    seen: set[int] = set()
    for index, patch in enumerate(patch_set.patches):
        place = f"{field}.patches[{index}]"
        if patch >= grid * grid:
            text = f"{place} is {patch}; a grid of {grid} x {grid} has the patches 0 to {grid * grid - 1}"
            raise InvalidRequest(text, field=place)
        if patch in seen:
            raise InvalidRequest(f"{place} is {patch}, which is in the set already; give each patch once", field=place)
        seen.add(patch)
