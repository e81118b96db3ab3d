"""The cost of the engine compared with the bare model, and its growth, as ratios of alternating runs.

On a CPU the clock is the processor time of the one thread that computes, so that other programs disturb it little. On
CUDA it is wall time.
"""

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import structlog
import torch
from bare import RAW_SIZES, Bare, Beside, Clock, clock_of
from growth import NAMES, measure, plot
from subject import ROOT, arguments, load_model, machine, pictures, report, table

from sagittal.engine import INTERACTIVE_WEIGHT, Budget, Engine, Task
from sagittal.engine.evaluator import Evaluator
from sagittal.engine.timing import Variant
from sagittal.explain import EXPLAINERS, Explainer, Metrics, Question, explanation_steps
from sagittal.models.loaded import LoadedModel
from sagittal.models.preprocessing import black

TURNS = 3
"""Times that each ratio of jobs to what is ideal, or to the same jobs alone, is measured: the median counts."""

PLOT = ROOT / "docs" / "images" / "growth.svg"

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Bench:
    """The model, the question and the clock that all sections share."""

    loaded: LoadedModel
    question: Question
    bare: Bare
    clock: Clock

    def task(self, explainer: Explainer, *, evaluations: int | None = None, weight: float = 1.0) -> Task:
        """Returns an explanation without metrics, which ends early at its budget."""
        steps = explanation_steps(self.question, explainer, Metrics())
        return Task(steps=steps, budget=Budget(evaluations=evaluations), weight=weight)

    def run(self, tasks: Sequence[Task]) -> tuple[float, Beside]:
        """Runs tasks together; returns the seconds that the engine took, and what ran beside it."""
        beside = Beside(self.loaded.evaluator, self.bare)
        started = self.clock()
        seconds = self._finish(self._engine(beside), tasks, started)
        return seconds - beside.spent, beside

    def run_until(self, awaited: Sequence[Task], others: Sequence[Task] = ()) -> float:
        """Returns the seconds until the awaited tasks have ended, others running with them from before."""
        engine = self._engine(self.loaded.evaluator)
        for task in others:
            engine.submit(task)
        for _ in range(len(others)):
            engine.step()
        return self._finish(engine, awaited, self.clock())

    def _engine(self, evaluator: Evaluator) -> Engine:
        return Engine(evaluator, batch_size=self.loaded.found.batch_size, unit=self.loaded.evaluator.unit)

    def _finish(self, engine: Engine, awaited: Sequence[Task], started: float) -> float:
        for task in awaited:
            engine.submit(task)
        while not all(task.ended for task in awaited):
            engine.step()
        return self.clock() - started


def efficiency(bench: Bench) -> str:
    """An explanation's time over what the bare model needs for its evaluations."""
    jobs = {
        "iGOS++ 28x28": (EXPLAINERS["igos++"].explainer(), None),
        "MSE search": (EXPLAINERS["minimal-sufficient-explanations"].explainer(), 300),
        "RISE": (EXPLAINERS["rise"].explainer(), 300),
    }
    rows = [_efficiency(bench, name, explainer, most) for name, (explainer, most) in jobs.items()]
    return table(["method", "evaluations", "with gradient", "time / ideal", "over the ideal, us per step"], rows)


def _efficiency(bench: Bench, name: str, explainer: Explainer, evaluations: int | None) -> Sequence[object]:
    ratios, over = [], []
    for _ in range(TURNS):
        seconds, beside = bench.run([bench.task(explainer, evaluations=evaluations)])
        ideal = beside.ideal()
        ratios.append(seconds / ideal)
        over.append((seconds - ideal) / beside.steps * 1e6)
    figures = [_spread(ratios), f"{statistics.median(over):.0f}"]
    return [name, sum(beside.rows.values()), beside.rows[True], *figures]


def _spread(ratios: Sequence[float]) -> str:
    return f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"


def concurrency(bench: Bench) -> str:
    """Jobs that share the device."""
    methods = ("igos++", "rise", "minimal-sufficient-explanations", "occlusion")
    shared, ratios = [], []
    for _ in range(TURNS):
        tasks = [bench.task(EXPLAINERS[method].explainer(), evaluations=32) for method in methods * 2]
        seconds, beside = bench.run(tasks)
        shared.append(seconds / beside.ideal())
        alone = bench.run_until(_interactive(bench))
        batch = [bench.task(EXPLAINERS["rise"].explainer(), evaluations=200) for _ in range(8)]
        ratios.append(bench.run_until(_interactive(bench), batch) / alone)
    rows = [
        ["eight jobs of four methods: time / ideal", _spread(shared)],
        ["two interactive jobs among eight batch jobs: time / their time alone", _spread(ratios)],
    ]
    return table(["what", "ratio"], rows)


def _interactive(bench: Bench) -> list[Task]:
    explainer = EXPLAINERS["rise"].explainer()
    return [bench.task(explainer, evaluations=48, weight=INTERACTIVE_WEIGHT) for _ in range(2)]


def growth(_bench: Bench) -> str:
    """Time for one evaluation, and peak memory, as things grow."""
    points = list(measure())
    plot(points, PLOT)
    rows = [
        [NAMES[point["axis"]], point["size"], f"{point['milliseconds']:.1f}", f"{point['mebibytes']:.0f}"]
        for point in points
    ]
    return table(["what grows", "size", "ms per evaluation", "peak memory, MiB"], rows)


def write(options: argparse.Namespace) -> None:
    """Measures everything and writes the report."""
    torch.set_num_threads(1)
    loaded = load_model()
    clock = clock_of(loaded.device)
    picture = next(pictures(loaded, ("chelsea",)))
    question = Question(image=picture.image, black=black(loaded.entry.preprocessing), seed=0)
    variant = Variant(loaded.evaluator.module, channels_last=loaded.evaluator.channels_last)
    bare = Bare(variant, picture.image.unsqueeze(0), clock)
    bare.find_best()
    bench = Bench(loaded, question, bare, clock)
    sections = {}
    for section in (efficiency, concurrency, growth):
        sections[section.__name__] = section(bench)
        log.info("section-done", section=section.__name__, table=sections[section.__name__])
    report(_text(bench, sections), options, "engine")


def _text(bench: Bench, sections: dict[str, str]) -> str:
    loaded, best = bench.loaded, bench.bare.best
    return f"""## Engine

Written by `make bench-engine`. Model: EfficientNet-Lite0 at 224x224, random inputs unless an image is named. Machine:
{machine()}, device {loaded.device}. {_about_clock(loaded.device)} Both sides of a ratio ran in turn in one process.
Therefore ratios are valid on a busy machine, and absolute times are not.

Batch size found at load: {loaded.found.batch_size}; batches are padded to multiples of {loaded.evaluator.quantum}. Load
took {loaded.load_seconds:.1f} s of wall time. The bare model is fastest in batches of {best[False]} (forward) and
{best[True]} (forward + backward), among {", ".join(map(str, RAW_SIZES))}. On a machine that
others use, runs differ by about a tenth.

### Efficiency

The time of an explanation divided by the ideal: the time that the bare optimised model needs for as many evaluations at
its best batch size. The time of an explanation includes composed masks, noise, regularisers and the search. The ideal
ran between the engine's batches. The MSE search and RISE end at a budget of 300 evaluations. Each figure is the median
of {TURNS} turns, with the smallest and the largest in brackets.

{sections["efficiency"]}
### Jobs together

First, eight jobs of iGOS++, RISE, MSE and occlusion run with 32 evaluations each. Then two interactive RISE jobs of 48
evaluations arrive while eight batch jobs run; they are compared with the same two alone. Figures are medians of {TURNS}
turns, with the smallest and the largest in brackets.

{sections["concurrency"]}
### Growth

Each point is measured in a process of its own, through the engine. Jobs ask for 16 evaluations with gradient each; the
search for minimal sufficient sets asks for 150. The batch bounds the memory: a job that waits adds only its masks.

![Time and memory as things grow](images/{PLOT.name})

{sections["growth"]}"""


def _about_clock(device: torch.device) -> str:
    if device.type == "cpu":
        return "Times are processor time of the thread that computes."
    return "Times are wall time, with the device synchronised."


if __name__ == "__main__":
    write(arguments(__doc__ or ""))
