"""What the engine costs beside the bare model, and what optimisation gains: every ratio from runs in turn.

On a CPU the clock is the time of the one thread that computes, so that neighbours on the machine disturb little; on
CUDA it is the wall's.
"""

import argparse
import resource
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog
import torch
from reports import table
from subject import arguments, load_model, machine, pictures, report
from torch import Tensor, nn

from sagittal.engine import INTERACTIVE_WEIGHT, Budget, Engine, Task, TorchEvaluator
from sagittal.engine.composition import Part
from sagittal.engine.evaluator import Evaluator
from sagittal.engine.optimise import optimise
from sagittal.engine.timing import Variant
from sagittal.explain import EXPLAINERS, Explainer, Metrics, Question, explain
from sagittal.explain.seam import Evaluate, Inspect, Scores, Subject
from sagittal.models.loading import LoadedModel
from sagittal.models.preprocessing import black
from sagittal.models.sources import load_source

RAW_SIZES = (4, 8, 16, 32)
"""Batch sizes among which the bare model's best is looked for."""

ARCHITECTURES = ("resnet50", "mobilenet_v3_large", "convnext_tiny", "vit_b_16")

ROUNDS = 2
"""Repetitions of comparisons; the fastest of each side counts."""

TIMED = 4
"""Images in a batch of the comparison between optimised and plain."""

Clock = Callable[[], float]

log = structlog.get_logger(__name__)


@dataclass(slots=True, eq=False)
class Bare:
    """The bare model: forward, and forward with backward, on inputs that lie ready."""

    variant: Variant
    image: Tensor
    clock: Clock
    best: dict[bool, int] = field(default_factory=dict)
    """Fastest batch size without and with gradient."""

    def seconds(self, rows: int, *, gradient: bool) -> float:
        """Returns the time for one image in a batch of `rows`."""
        inputs = self.image.repeat(rows, 1, 1, 1)
        started = self.clock()
        if gradient:
            self.variant.backward(inputs)
        else:
            self.variant.forward(inputs)
        return (self.clock() - started) / rows

    def find_best(self) -> None:
        """Finds the batch sizes at which the bare model is fastest."""
        for gradient in (False, True):
            times: dict[int, list[float]] = defaultdict(list)
            for _ in range(ROUNDS):
                for rows in RAW_SIZES:
                    times[rows].append(self.seconds(rows, gradient=gradient))
            self.best[gradient] = min(RAW_SIZES, key=lambda rows: min(times[rows]))


@dataclass(slots=True, eq=False)
class Beside:
    """An evaluator that lets the bare model run as many rows in between, and keeps both times apart."""

    evaluator: TorchEvaluator
    bare: Bare
    supports_gradients: bool = True
    rows: dict[bool, int] = field(default_factory=lambda: {False: 0, True: 0})
    raw: dict[bool, list[float]] = field(default_factory=lambda: {False: [], True: []})
    ahead: dict[bool, int] = field(default_factory=lambda: {False: 0, True: 0})
    """Rows that were evaluated since the bare model ran, or fewer where it ran first."""
    steps: int = 0
    spent: float = 0.0
    """Seconds of the bare model, to be taken off the whole."""

    def evaluate(self, parts: Sequence[Part]) -> list[Scores]:
        """Evaluates, then lets the bare model run where it is its turn."""
        scores = self.evaluator.evaluate(parts)
        gradient = parts[0].request.gradient
        self.steps += 1
        self.rows[gradient] += sum(part.rows for part in parts)
        self.ahead[gradient] += sum(part.rows for part in parts)
        if self.ahead[gradient] > 0:
            self._run_bare(gradient)
        return scores

    def _run_bare(self, gradient: bool) -> None:
        started = self.bare.clock()
        self.raw[gradient].append(self.bare.seconds(self.bare.best[gradient], gradient=gradient))
        self.ahead[gradient] -= self.bare.best[gradient]
        self.spent += self.bare.clock() - started

    def inspect(self, request: Inspect) -> object:
        """Runs a call with the model."""
        return self.evaluator.inspect(request)

    def ideal(self) -> float:
        """Returns the seconds that the bare model needs for the same evaluations."""
        return sum(self.rows[mode] * statistics.mean(times) for mode, times in self.raw.items() if times)


@dataclass(frozen=True, slots=True, eq=False)
class Bench:
    """What every section measures with."""

    loaded: LoadedModel
    question: Question
    bare: Bare
    clock: Clock

    def task(self, explainer: Explainer, *, evaluations: int | None = None, weight: float = 1.0) -> Task:
        """Returns an explanation without metrics, which ends early at its budget."""
        steps = explain(self.question, explainer, Metrics())
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
        "MSE search": (EXPLAINERS["mse"].explainer(), 300),
        "RISE": (EXPLAINERS["rise"].explainer(), 300),
    }
    rows = [_efficiency(bench, name, explainer, most) for name, (explainer, most) in jobs.items()]
    return table(["method", "evaluations", "with gradient", "time / ideal", "over the ideal, us per step"], rows)


def _efficiency(bench: Bench, name: str, explainer: Explainer, evaluations: int | None) -> Sequence[object]:
    seconds, beside = bench.run([bench.task(explainer, evaluations=evaluations)])
    ideal = beside.ideal()
    step = (seconds - ideal) / beside.steps * 1e6
    return [name, sum(beside.rows.values()), beside.rows[True], f"{seconds / ideal:.3f}", f"{step:.0f}"]


def optimisation(bench: Bench) -> str:
    """The optimised model against the plain one."""
    sources = {"EfficientNet-Lite0": bench.loaded.entry.source}
    sources |= {name: {"kind": "torchvision", "model": name} for name in ARCHITECTURES}
    rows = [_optimisation(name, source, bench.loaded.device, bench.clock) for name, source in sources.items()]
    header = ["model", "forward", "forward + backward", "largest difference", "kept"]
    return table(header, rows)


def _optimisation(name: str, source: dict[str, Any], device: torch.device, clock: Clock) -> Sequence[object]:
    plain: nn.Module = load_source(source).eval().requires_grad_(False).to(device)
    probe = torch.randn(TIMED, 3, 224, 224, generator=torch.Generator().manual_seed(0)).to(device)
    fast, channels_last, steps = optimise(plain, probe, lambda outputs: outputs.softmax(-1))
    kept = [step.name for step in steps if step.applied]
    ratios = ["1 (untouched)", "1 (untouched)"]
    if kept:
        variants = (Variant(plain), Variant(fast, channels_last=channels_last))
        ratios = [f"{_ratio(variants, probe, clock, gradient=gradient):.2f}x" for gradient in (False, True)]
    difference = max((step.largest_difference for step in steps if step.applied), default=0.0)
    return [name, *ratios, f"{difference:.1g}", ", ".join(kept) or "nothing"]


def _ratio(variants: Sequence[Variant], probe: Tensor, clock: Clock, *, gradient: bool) -> float:
    bares = [Bare(variant, probe[:1], clock) for variant in variants]
    times: list[list[float]] = [[], []]
    for _ in range(ROUNDS):
        for index, bare in enumerate(bares):
            times[index].append(bare.seconds(len(probe), gradient=gradient))
    return min(times[0]) / min(times[1])


def concurrency(bench: Bench) -> str:
    """Jobs that share the device."""
    methods = ("igos++", "rise", "mse", "occlusion")
    tasks = [bench.task(EXPLAINERS[method].explainer(), evaluations=32) for method in methods * 2]
    seconds, beside = bench.run(tasks)
    shared = seconds / beside.ideal()
    alone = bench.run_until(_interactive(bench))
    batch = [bench.task(EXPLAINERS["rise"].explainer(), evaluations=200) for _ in range(8)]
    among = bench.run_until(_interactive(bench), batch)
    rows = [
        ["eight jobs of four methods: time / ideal", f"{shared:.3f}"],
        ["two interactive jobs among eight batch jobs: time / their time alone", f"{among / alone:.2f}"],
    ]
    return table(["what", "ratio"], rows)


def _interactive(bench: Bench) -> list[Task]:
    explainer = EXPLAINERS["rise"].explainer()
    return [bench.task(explainer, evaluations=48, weight=INTERACTIVE_WEIGHT) for _ in range(2)]


def growth(bench: Bench) -> str:
    """Time for one evaluation, and peak memory, as things grow."""
    rows = [_growth(bench, f"{jobs} jobs of 8 evaluations", jobs=jobs) for jobs in (1, 8, 64)]
    rows += [_growth(bench, f"masks of {cells}x{cells}", cells=cells) for cells in (7, 28, 112)]
    rows += [_growth(bench, f"images of {size}x{size}", size=size) for size in (224, 384, 512)]
    return table(["what", "ms per evaluation with gradient", "ns per evaluation and pixel", "peak memory, MiB"], rows)


def _growth(bench: Bench, name: str, *, jobs: int = 2, cells: int = 28, size: int = 224) -> Sequence[object]:
    def steps() -> Any:
        image = torch.randn(3, size, size).to(bench.loaded.device)
        yield Evaluate(subject=Subject(image, -image, 0), masks=torch.rand(8, cells, cells), gradient=True)

    tasks = [Task(steps=steps()) for _ in range(jobs)]
    seconds = bench.run_until(tasks) / (8 * jobs)
    return [
        name,
        f"{seconds * 1e3:.1f}",
        f"{seconds * 1e9 / size**2:.0f}",
        f"{_peak_mebibytes(bench.loaded.device):.0f}",
    ]


def _peak_mebibytes(device: torch.device) -> float:
    """Returns the most memory so far: of the device, or of the process where that is the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def _clock(device: torch.device) -> Clock:
    if device.type == "cpu":
        return time.thread_time

    def wall() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return wall


def write(options: argparse.Namespace) -> None:
    """Measures everything and writes the report."""
    torch.set_num_threads(1)
    loaded = load_model()
    clock = _clock(loaded.device)
    picture = next(pictures(loaded, ("chelsea",)))
    question = Question(image=picture.image, black=black(loaded.entry.preprocessing), seed=0)
    variant = Variant(loaded.evaluator.module, channels_last=loaded.evaluator.channels_last)
    bare = Bare(variant, picture.image.unsqueeze(0), clock)
    bare.find_best()
    bench = Bench(loaded, question, bare, clock)
    # Memory first: the peak of a process never falls.
    sections = {}
    for section in (growth, efficiency, concurrency, optimisation):
        sections[section.__name__] = section(bench)
        log.info("section-done", section=section.__name__, table=sections[section.__name__])
    report(_text(bench, sections), options, "engine")


def _text(bench: Bench, sections: dict[str, str]) -> str:
    loaded, best = bench.loaded, bench.bare.best
    return f"""## Engine

Written by `make bench-engine`. Model: EfficientNet-Lite0 at 224x224, random inputs where no picture is named. Machine:
{machine()}, device {loaded.device}. {_about_clock(loaded.device)} Both sides of a ratio ran in turn in one process, so
ratios hold on a busy machine where absolute times do not.

Batch size found at load: {loaded.found.batch_size}; batches are padded to multiples of {loaded.evaluator.quantum}. Load
took {loaded.load_seconds:.1f} s of wall time. The bare model is fastest in batches of {best[False]} (forward) and
{best[True]} (forward + backward), among {", ".join(map(str, RAW_SIZES))}. Each figure is of one run: on a machine that
others use, expect a tenth of difference between runs.

### Efficiency

The time of an explanation, composing masks, noise, regularisers and the search included, over the time that the bare
optimised model needs for as many evaluations at its best batch size. The ideal ran between the engine's batches. The
MSE search and RISE end at a budget of 300 evaluations.

{sections["efficiency"]}
### Jobs together

Eight jobs of iGOS++, RISE, MSE and occlusion with 32 evaluations each; then two interactive RISE jobs of 48 evaluations
that arrive while eight batch jobs run, against the same two alone.

{sections["concurrency"]}
### Optimised against plain

Batches of {TIMED}; the fastest of {ROUNDS} runs in turn; random weights but for EfficientNet-Lite0. The difference is
of a probability, on noise.

{sections["optimisation"]}
### Growth

Through the engine, with gradient, in the order of the table; the first line pays for the warm-up. The peak is the
process's so far, on a CPU with what the libraries and the trial of batch sizes took before: only a rise says something.

{sections["growth"]}"""


def _about_clock(device: torch.device) -> str:
    if device.type == "cpu":
        return "Times are of the one thread that computes, not of the wall."
    return "Times are of the wall, the device synchronised."


if __name__ == "__main__":
    write(arguments(__doc__ or ""))
