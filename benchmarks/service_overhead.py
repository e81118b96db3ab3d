"""Explanations of about a second through the whole service, each beside the same one by the library alone."""

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from reports import table
from service_stack import Stack, running_stack
from subject import MODELS, SHIPPED, load_model, pictures, run

from sagittal import client as sdk
from sagittal.explain import EXPLAINERS, Metrics
from sagittal.models.loaded import LoadedModel

MODEL = "efficientnet-lite0"

#: Explanations on each side.
PAIRS = 12

#: Number of loads by the library until its optimisations equal the worker's.
LOADS = 5

#: Masks of each, whose evaluations take about a second on one thread.
MASKS = 64


@dataclass(slots=True)
class Side:
    """The explanations of one side."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def time(self, explain: Callable[[], int], used: Callable[[], float]) -> int:
        """Runs one explanation; returns its evaluations."""
        cpu, started = used(), time.perf_counter()
        evaluations = explain()
        self.wall.append(time.perf_counter() - started)
        self.cpu.append(used() - cpu)
        return evaluations


@contextlib.contextmanager
def running_model() -> Iterator[tuple[Stack, LoadedModel]]:
    """Runs an installation with a real worker; yields it with the same model in this process, on one thread each."""
    torch.set_num_threads(1)
    loaded = load_model()
    batch_size = str(loaded.found.batch_size)
    environment = {"SAGITTAL_MODELS_FILE": str(MODELS), "SAGITTAL_THREADS": "1", "SAGITTAL_BATCH_SIZE": batch_size}
    with running_stack(["-m", "sagittal.worker.main"], model=MODEL, environment=environment) as stack:
        yield stack, _load_as(stack, loaded)


def report(stack: Stack, loaded: LoadedModel, pairs: int) -> str:
    """Measures, and returns the section about it."""
    batch_size = loaded.found.batch_size
    sides, shares = _measure(stack, loaded, pairs)
    direct, service = sides["the library"], sides["the service"]
    ratios = sorted(mine / its for mine, its in zip(service.wall, direct.wall, strict=True))
    where = ", ".join(f"{name} {1e3 * seconds / pairs:.0f}" for name, seconds in shares.items())
    rows = [[name, f"{_median(side.wall):.2f}", f"{_median(side.cpu):.2f}"] for name, side in sides.items()]
    return f"""## Overhead

Written by `make bench-service`. RISE with {MASKS} masks on EfficientNet-Lite0 on one thread, without curves:
from an image file to its saliency. Explanations through the service (caller, service, Redis and a worker, each a
process) and by the library alternate, {pairs} of each. Both sides use batches of {batch_size} and the same
optimisations of the model ({", ".join(sorted(_applied(loaded)))}).
Processor time is that of all these processes.

{table(["through", "wall time, s (median)", "processor time, s (median)"], rows)}
Processor time of the service's side by process, in ms for each explanation, waiting included: {where}.

Through the service over the library: **{_median(service.cpu) / _median(direct.cpu):.3f}** in processor time,
**{_median(ratios):.3f}** in wall time (median of the pairs; quartiles {_quartile(ratios, 1):.3f} and
{_quartile(ratios, 3):.3f}, which show what else ran on the machine).
"""


def _load_as(stack: Stack, loaded: LoadedModel) -> LoadedModel:
    """Returns a model with the worker's optimisations: they are selected by measurements, and may differ."""
    with sdk.Client(stack.address) as client:
        theirs = {step.name for step in client.model(MODEL).optimizations if step.applied}
    for _ in range(LOADS):
        if _applied(loaded) == theirs:
            return loaded
        loaded = load_model()
    raise SystemExit(f"the library chose {_applied(loaded)} in {LOADS} loads, and the worker {theirs}: try again")


def _applied(loaded: LoadedModel) -> set[str]:
    return {step.name for step in loaded.found.steps if step.applied}


def _measure(stack: Stack, loaded: LoadedModel, pairs: int) -> tuple[Mapping[str, Side], Mapping[str, float]]:
    explainer = EXPLAINERS["rise"].explainer(masks=MASKS)
    sides = {"the library": Side(), "the service": Side()}
    path = next(SHIPPED.glob("chelsea.*"))
    seeds = iter(range(10**6))

    def by_library() -> int:
        picture = next(pictures(loaded, ("chelsea",)))
        return run(loaded, picture, explainer, seed=next(seeds), metrics=Metrics(curves=False)).evaluations

    def by_service() -> int:
        found = client.explain(
            path,
            model=MODEL,
            method=sdk.RISE(masks=MASKS),
            metrics=sdk.Metrics(curves=False),
            seed=next(seeds),
        )
        return found.evaluations - (found.completed.metric_evaluations if found.completed else 0)

    def everyone() -> float:
        return time.process_time() + sum(stack.cpu_seconds().values())

    with sdk.Client(stack.address) as client:
        by_library()
        by_service()
        shares = dict.fromkeys(stack.cpu_seconds(), 0.0)
        for _ in range(pairs):
            spent = {sides["the library"].time(by_library, time.process_time)}
            before = stack.cpu_seconds()
            spent.add(sides["the service"].time(by_service, everyone))
            shares = {name: shares[name] + used - before[name] for name, used in stack.cpu_seconds().items()}
            if len(spent) != 1:
                raise SystemExit(f"the two sides did not evaluate as often: {spent}")
    return sides, shares


def _median(values: list[float]) -> float:
    return statistics.median(values)


def _quartile(values: list[float], number: int) -> float:
    return statistics.quantiles(values, n=4, method="inclusive")[number - 1]
