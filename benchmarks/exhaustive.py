"""Does the search find as many disjoint reasons as there are? Compares it with all subsets of a coarse grid.

    python benchmarks/exhaustive.py --grid 4 --images 12 --write docs/quality.md

Every subset of the grid is scored: 65,536 on 4x4, about a quarter of an hour of one processor core for an image, and
512 on 3x3. Images are those of SAGITTAL_BENCHMARK_IMAGES in the fixed order of `make bench-quality`; only those of the
reported half are measured. Measurements are kept in .cache/quality, so that a stopped run resumes. Scores do not depend
on the search: a change to it repeats only the search.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import reports
import torch
from numpy.typing import NDArray
from quality import cache
from quality.subjects import subjects
from subject import Picture, machine, table

from sagittal.engine import Task
from sagittal.explain import MinimalSufficientExplanations, Question, explanation_steps
from sagittal.explain.events import Event, SufficientSet
from sagittal.explain.measures.curves import Metrics
from sagittal.explain.problem import Problem, prepare
from sagittal.explain.sets.patches import members
from sagittal.explain.sets.regions import score_regions
from sagittal.explain.steps import Steps
from sagittal.imaging.patch_sets import bits_of, diverse_family
from sagittal.models.loaded import LoadedModel
from sagittal.models.preprocessing import black, pixel_scale

THRESHOLD = 0.9
GOAL = 0.95
"""Share of the disjoint minimal sets that exist which the search should find."""

SLICE = 4096
"""Subsets in one record of scores."""

SCORES = ("sagittal.engine.alterations", "sagittal.explain.baselines", "sagittal.explain.sets.regions")
"""Modules on which the scores of subsets depend ..."""

SEARCH = tuple(f"sagittal.explain.sets.{name}" for name in ("sufficient_sets", "search", "certificates", "scoring"))
"""... and those on which the search depends."""


def main() -> None:
    """Measures what is missing on disk, and reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grid", type=int, default=4, choices=(3, 4), help="side of the grid")
    parser.add_argument("--images", type=int, default=12, help="number of images in the fixed order, both halves")
    parser.add_argument("--write", type=Path, help="file whose section `exhaustive` is written")
    options = parser.parse_args()
    torch.set_num_threads(1)
    chosen = subjects(options.images)
    scores = cache.folder(f"subsets-{options.grid}", {"model": chosen.digest}, SCORES)
    folder = cache.folder(f"exhaustive-{options.grid}", {"model": chosen.digest}, SCORES + SEARCH)

    def compare(picture: Picture) -> Mapping[str, Any]:
        return compared(chosen.model, picture, options.grid, all_scores(chosen.model, picture, options.grid, scores))

    found = [
        cache.recorded(folder, picture.name, lambda picture=picture: compare(picture))
        for picture in chosen.chosen
        if picture.name not in chosen.tuning
    ]
    text = report(found, options.grid)
    print(text)
    if options.write:
        reports.write_section(options.write, "exhaustive", text)


def question_of(loaded: LoadedModel, picture: Picture) -> Question:
    """Returns the question of an image, with 8-bit pixels."""
    preprocessing = loaded.entry.preprocessing
    return Question(image=picture.image, black=black(preprocessing), pixels=pixel_scale(preprocessing))


def all_scores(loaded: LoadedModel, picture: Picture, grid: int, folder: Path) -> NDArray[np.float64]:
    """Returns the score of each subset as a share of the unmasked score; index i stands for bit set i."""
    subsets = range(1 << grid**2)
    slices = [subsets[start : start + SLICE] for start in range(0, len(subsets), SLICE)]
    parts = [
        cache.recorded(folder, f"{picture.name}-{number:02}", lambda sets=sets: _scored(loaded, picture, grid, sets))
        for number, sets in enumerate(slices)
    ]
    return np.concatenate([part["shares"] for part in parts])


def _scored(loaded: LoadedModel, picture: Picture, grid: int, sets: Sequence[int]) -> Mapping[str, Any]:
    shares: list[float] = []

    def steps() -> Steps[None]:
        problem: Problem = yield from prepare(question_of(loaded, picture))
        scored = yield from score_regions(problem, grid, [members(bits) for bits in sets])
        shares.extend(each.score / problem.unmasked_score for each in scored)

    run(loaded, steps())
    return {"shares": np.array(shares)}


def compared(loaded: LoadedModel, picture: Picture, grid: int, shares: NDArray[np.float64]) -> Mapping[str, Any]:
    """Returns how many disjoint sufficient sets there are, and how many the search finds."""
    sufficient = shares >= THRESHOLD
    sufficient[0] = False
    minimal = list(minimal_sets(sufficient))
    search = MinimalSufficientExplanations(grid=grid, max_overlap=0, max_sets=100, certify_after="rounding")
    events, evaluations = run(loaded, explanation_steps(question_of(loaded, picture), search, Metrics(curves=False)))
    scores = {bits_of(each.patches): each.score for each in events if isinstance(each, SufficientSet)}
    return {
        "minimal": len(minimal),
        "smallest": min((bits.bit_count() for bits in minimal), default=0),
        "disjoint": largest_disjoint(minimal, grid),
        "found": len(diverse_family(scores, 0)),
        "found-smallest": min(map(int.bit_count, scores), default=0),
        "wrong": sum(bits not in minimal for bits in scores),
        "evaluations": evaluations,
    }


def run(loaded: LoadedModel, steps: Steps[None]) -> tuple[list[Event], int]:
    """Returns the events of a task, and its number of evaluations."""
    events: list[Event] = []
    ends: list[BaseException | None] = []
    task = Task(steps=steps, on_event=events.append, on_end=ends.append)
    loaded.engine().run(task)
    if ends[0] is not None:
        raise ends[0]
    return events, task.usage.evaluations


def minimal_sets(sufficient: NDArray[np.bool_]) -> Iterator[int]:
    """Yields the sufficient sets without a sufficient proper subset; index i of the array stands for bit set i."""
    below = sufficient.copy()
    for place in range(sufficient.size.bit_length() - 1):
        with_patch = np.flatnonzero(np.arange(sufficient.size) >> place & 1)
        below[with_patch] |= below[with_patch ^ (1 << place)]
    strictly = np.zeros_like(sufficient)
    for place in range(sufficient.size.bit_length() - 1):
        with_patch = np.flatnonzero(np.arange(sufficient.size) >> place & 1)
        strictly[with_patch] |= below[with_patch ^ (1 << place)]
    yield from np.flatnonzero(sufficient & ~strictly).tolist()


def largest_disjoint(sets: list[int], grid: int) -> int:
    """Returns the size of a largest family of disjoint sets; exact, by the unions that families of each size reach."""
    places = np.arange(1 << grid**2)
    reached, count = places == 0, 0
    while True:
        further = np.zeros_like(reached)
        for bits in sets:
            further[places[reached & ((places & bits) == 0)] | bits] = True
        if not further.any():
            return count
        reached, count = further, count + 1


TEXT = """## All reasons of a coarse grid

`python benchmarks/exhaustive.py --grid {grid} --write docs/quality.md` wrote this section ({machine}): on a
{grid}x{grid} grid every subset is scored, so that the largest number of disjoint minimal sets is known.
EfficientNet-Lite0, boxes, a checked blur, threshold 0.9, images of the reported half. The search is that with
`certify_after="rounding"`: no set is replaced by one that survives a file.

{figures}
"""


def report(found: list[cache.Record], grid: int) -> str:
    """Returns the section."""
    there, ours = (sum(int(each[name]) for each in found) for name in ("disjoint", "found"))
    smallest = sum(each["smallest"] == each["found-smallest"] for each in found)
    recall = ours / max(there, 1)
    rows = [
        ["images", len(found)],
        ["minimal sufficient sets that exist, mean", f"{np.mean([each['minimal'] for each in found]):.1f}"],
        ["disjoint minimal sets: largest families that exist, in total", there],
        ["found by the search", f"{ours}, recall {recall:.2f}"],
        [f"goal: recall at least {GOAL} on 4x4", "yes" if recall >= GOAL and grid == 4 else "**not shown**"],
        ["images on which the smallest set found is of minimum size", f"{smallest} of {len(found)}"],
        ["sets found that are not minimal", sum(int(each["wrong"]) for each in found)],
        ["evaluations of the search, mean", f"{np.mean([each['evaluations'] for each in found]):,.0f}"],
        ["evaluations of all subsets", f"{(1 << grid**2) - 1:,}"],
    ]
    return TEXT.format(grid=grid, machine=machine(), figures=table(["figure", "result"], rows))


if __name__ == "__main__":
    main()
