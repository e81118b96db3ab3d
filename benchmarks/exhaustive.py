"""Does the search find as many disjoint reasons as there are? Compares it with all subsets of a coarse grid.

    python benchmarks/exhaustive.py --grid 4 --images 12 --write docs/quality.md

Every subset of the grid is scored: 65,536 on 4x4, about a quarter of an hour of one processor core for an image, and
512 on 3x3. Images are those of SAGITTAL_BENCHMARK_IMAGES in the fixed order of `make bench-quality`; only those of the
reported half are measured. Measurements are kept in .cache/quality, so that a stopped run resumes.
"""

import argparse
from collections.abc import Iterator, Mapping
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
from sagittal.explain.sets.patches import bits_of
from sagittal.explain.sets.regions import score_regions
from sagittal.explain.sets.sufficient_sets import diverse_family
from sagittal.explain.steps import Steps
from sagittal.models.loaded import LoadedModel
from sagittal.models.preprocessing import black, pixel_scale

THRESHOLD = 0.9
GOAL = 0.95
"""Share of the disjoint minimal sets that exist which the search should find."""

MODULES = tuple(f"sagittal.explain.sets.{name}" for name in ("sufficient_sets", "search", "certificates", "scoring"))


def main() -> None:
    """Measures what is missing on disk, and reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grid", type=int, default=4, choices=(3, 4), help="side of the grid")
    parser.add_argument("--images", type=int, default=12, help="number of images in the fixed order, both halves")
    parser.add_argument("--write", type=Path, help="file whose section `exhaustive` is written")
    options = parser.parse_args()
    torch.set_num_threads(1)
    chosen = subjects(options.images)
    folder = cache.folder(f"exhaustive-{options.grid}", {"model": chosen.digest}, MODULES)
    found = [
        cache.recorded(folder, picture.name, lambda picture=picture: measured(chosen.model, picture, options.grid))
        for picture in chosen.chosen
        if picture.name not in chosen.tuning
    ]
    text = report(found, options.grid)
    print(text)
    if options.write:
        reports.write_section(options.write, "exhaustive", text)


def measured(loaded: LoadedModel, picture: Picture, grid: int) -> Mapping[str, Any]:
    """Returns how many disjoint sufficient sets there are, and how many the search finds."""
    preprocessing = loaded.entry.preprocessing
    question = Question(image=picture.image, black=black(preprocessing), pixels=pixel_scale(preprocessing))
    sufficient = np.zeros(1 << grid**2, np.bool_)
    run(loaded, _score_all(question, grid, sufficient))
    minimal = list(minimal_sets(sufficient))
    search = MinimalSufficientExplanations(grid=grid, max_overlap=0, max_sets=100)
    events, evaluations = run(loaded, explanation_steps(question, search, Metrics(curves=False)))
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


def _score_all(question: Question, grid: int, sufficient: NDArray[np.bool_]) -> Steps[None]:
    """Scores every subset but the empty one; the array says whether each is sufficient."""
    problem: Problem = yield from prepare(question)
    sets = range(1, 1 << grid**2)
    patches = [[place for place in range(grid**2) if bits >> place & 1] for bits in sets]
    scored = yield from score_regions(problem, grid, patches)
    required = THRESHOLD * problem.unmasked_score
    sufficient[1:] = [each.score >= required for each in scored]


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
EfficientNet-Lite0, boxes, a checked blur, threshold 0.9, images of the reported half.

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
