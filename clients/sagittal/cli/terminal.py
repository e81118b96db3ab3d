"""Progress of a job on standard error: a live bar on a terminal, plain lines elsewhere."""

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from sagittal.client import (
    Accepted,
    Completed,
    Event,
    GraphNode,
    Prediction,
    Started,
    SufficientSet,
    Warning,
)
from sagittal.client import Progress as Progressed
from sagittal.core.text import printable

#: Minimum progress between two plain lines.
PLAIN_STEP = 0.25


def make_reporter(
    model: str, *, to_the_end: bool = True, console: Console | None = None
) -> "LiveReporter | PlainReporter":
    """Returns the reporter that suits standard error.

    Args:
        model: Name of the model, for messages.
        to_the_end: Whether it also prints the result and its warnings; otherwise the caller does.
        console: The output; None for standard error.
    """
    console = console or Console(stderr=True, highlight=False)
    left_out = () if to_the_end else (Warning, Completed)
    kind = LiveReporter if console.is_terminal else PlainReporter
    return kind(console, model, left_out)


class PlainReporter:
    """Prints plain lines, few enough for a log."""

    def __init__(self, console: Console, model: str, left_out: tuple[type[Event], ...] = ()) -> None:
        self._console = console
        self._model = model
        self._left_out = left_out
        self._told = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def say(self, text: str) -> None:
        """Prints what the program waits for."""
        self._line(text)

    def take(self, event: Event) -> None:
        """Prints an event."""
        if isinstance(event, Progressed):
            if event.fraction >= self._told + PLAIN_STEP:
                self._told = event.fraction
                self._line(f"{event.fraction:.0%} {describe_progress(event)}")
            return
        for line in () if isinstance(event, self._left_out) else describe(event, self._model):
            self._line(line)

    def _line(self, text: str) -> None:
        self._console.print(printable(text), markup=False, soft_wrap=True)


class LiveReporter:
    """A progress bar with the current objective, and lines above it."""

    def __init__(self, console: Console, model: str, left_out: tuple[type[Event], ...] = ()) -> None:
        self._console = console
        self._model = model
        self._left_out = left_out
        self._progress = Progress(
            TextColumn("  "),
            BarColumn(bar_width=36),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.description}", markup=False),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self._task = self._progress.add_task("", total=1.0)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        """Prints what the program waits for."""
        self._progress.update(self._task, description=printable(text))

    def take(self, event: Event) -> None:
        """Prints an event."""
        if isinstance(event, Progressed):
            self._progress.update(self._task, completed=event.fraction, description=describe_progress(event))
            return
        for line in () if isinstance(event, self._left_out) else describe(event, self._model):
            self._console.print(printable(line), markup=False, soft_wrap=True)


def describe(event: Event, model: str) -> list[str]:
    """Returns the lines that describe an event; empty for events that are not shown."""
    if isinstance(event, Accepted):
        return _accepted(event, model)
    teller = _TELLERS.get(type(event))
    return [teller(event)] if teller else []


def describe_progress(event: Progressed) -> str:
    """Returns the progress of a job."""
    objective = f"  objective {event.objective:.4f}" if event.objective is not None else ""
    return printable(f"{event.phase}  {event.evaluations:,} evaluations{objective}")


def _accepted(event: Accepted, model: str) -> list[str]:
    lines = []
    if event.ready_workers == 0:
        lines.append(f"waiting for a worker for model {model}" if model else "waiting for a worker")
    if event.queue_position:
        lines.append(f"{event.queue_position} ahead in the queue")
    return lines


def _prediction(event: Prediction) -> str:
    name = event.target.label or f"class {event.target.index}"
    hidden = f"  (on the {event.baseline} baseline {event.baseline_score:.1%})" if event.baseline else ""
    return f"{name}  {event.target.score:.1%}{hidden}"


def _started(event: Started) -> str:
    again = f" (attempt {event.attempt}: the worker before it was lost)" if event.attempt > 1 else ""
    return f"started on {event.worker}{again}"


def _set_found(event: SufficientSet) -> str:
    count = len(event.patches.patches)
    robust = f": {event.certificate.robust.text}" if event.certificate.robust is not None else ""
    return f"sufficient set of {count} patches keeps {event.score:.1%} ({event.certificate.level}){robust}"


def _node_found(event: GraphNode) -> str:
    kind = "root" if event.root else "node"
    return f"graph {kind} of {len(event.patches.patches)} patches keeps {event.score:.1%}"


def _completed(event: Completed) -> str:
    scores = [
        f"{name} {value:.3f}"
        for name, value in (("insertion", event.insertion), ("deletion", event.deletion))
        if value is not None
    ]
    return "   ".join([*scores, effort(event)])


def effort(event: Completed) -> str:
    """Returns the cost of a result, and why it may be incomplete."""
    early = f", ended early by its budget of {event.truncated_by}" if event.truncated else ""
    cached = (
        f", answered from the cache ({event.cache_age_seconds:.0f} s old)"
        if event.cache_age_seconds is not None
        else ""
    )
    return f"{event.evaluations:,} evaluations in {event.run_seconds:.1f} s{early}{cached}"


_TELLERS: Mapping[type[Event], Callable[..., str]] = {
    Started: _started,
    Prediction: _prediction,
    SufficientSet: _set_found,
    GraphNode: _node_found,
    Warning: lambda event: f"warning: {event.message} ({event.reason})",
    Completed: _completed,
}
