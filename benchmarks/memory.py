"""The saving when jobs on one image share their scores: the second job alone, and after the first.

Both sides run alternately on one model: an engine without a memo, and one that has run the first job.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog
import torch
from bare import Clock, clock_of
from subject import arguments, load_model, machine, pictures, report, table

from sagittal.engine import Engine, Task
from sagittal.explain import EXPLAINERS, Metrics, Question, explanation_steps
from sagittal.explain.events import GraphEdge, GraphNode, SufficientSet
from sagittal.explain.steps import Steps
from sagittal.models.loaded import LoadedModel
from sagittal.models.preprocessing import black

MEMO_BYTES = 64 * 2**20
"""Memory of the memo, as on a worker."""

FOUND = (SufficientSet, GraphNode, GraphEdge)
"""Events that must be the same on both sides."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Ran:
    """A job, measured."""

    seconds: float
    evaluations: int
    remembered: int
    found: Sequence[object]


def run(engine: Engine, steps: Steps, clock: Clock) -> Ran:
    """Runs a job to its end."""
    events: list[object] = []
    task, started = Task(steps=steps, on_event=events.append), clock()
    engine.run(task)
    found = [event for event in events if isinstance(event, FOUND)]
    return Ran(clock() - started, task.usage.evaluations, task.usage.remembered, found)


def compare(loaded: LoadedModel, first: Callable[[], Steps], second: Callable[[], Steps]) -> list[object]:
    """Returns a row: evaluations and time of the second job after the first, relative to the job alone."""
    clock, remembering = clock_of(loaded.device), loaded.engine(memo_bytes=MEMO_BYTES)
    alone = run(loaded.engine(), second(), clock)
    before = run(remembering, first(), clock)
    after = run(remembering, second(), clock)
    plain = run(loaded.engine(), first(), clock)
    same = [repr(event) for event in after.found] == [repr(event) for event in alone.found]
    evaluated = after.evaluations - after.remembered
    shares = [f"{after.seconds / alone.seconds:.2f}", f"{before.seconds / plain.seconds:.3f}"]
    return [alone.evaluations, evaluated, *shares, "yes" if same else "NO"]


def write(options: argparse.Namespace) -> None:
    """Measures, and writes the section of the report."""
    torch.set_num_threads(1)
    loaded = load_model()
    picture = next(pictures(loaded, ("chelsea",)))

    def job(method: str, target: int | None = None) -> Callable[[], Steps]:
        question = Question(image=picture.image, target=target, black=black(loaded.entry.preprocessing))
        return lambda: explanation_steps(question, EXPLAINERS[method].explainer(), Metrics())

    pairs = {
        "attention graph after sufficient sets": (
            job("minimal-sufficient-explanations"),
            job("structured-attention-graph"),
        ),
        "occlusion of another class": (job("occlusion"), job("occlusion", target=282)),
    }
    rows = []
    for name, (first, second) in pairs.items():
        rows.append([name, *compare(loaded, first, second)])
        log.info("compared", row=rows[-1])
    text = f"""## Scores that jobs share

Written by `make bench-engine` on {machine()}, device {loaded.device}: two jobs on one image (chelsea) and baseline,
EfficientNet-Lite0. The second job runs alone, and after the first. The time of the first job is relative to an engine
without a memo, in one run each.

{table(["second job", "evaluations", "of them run", "time / alone", "first job's time", "same findings"], rows)}"""
    report(text, options, "memo")


if __name__ == "__main__":
    write(arguments(__doc__ or ""))
