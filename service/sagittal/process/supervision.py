"""Supervision of background work: a task or thread that fails is restarted or ends its process, never silently.

A program has one `Supervisor`. It starts all background work by name: asyncio tasks with `start_task`, threads with
`start_thread`. A failure is logged with its stack trace and counted, and the work is restarted after a pause that
doubles. Readiness reports work that is not running (`ailing`); liveness reports work that fails repeatedly (`failed`).
Work that must not restart, or that failed too often, calls `on_given_up`, which ends the process.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge

log = structlog.get_logger(__name__)

#: First and longest pause before failed work is restarted, in seconds; it doubles.
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 30.0

#: Time for which work must run until its earlier failures no longer count, in seconds.
HEALTHY_SECONDS = 60.0

#: Consecutive failures after which liveness reports a task, about 25 s after the first.
HOPELESS_FAILURES = 8

#: Consecutive failures after which a restartable thread is given up.
THREAD_FAILURES = 5

#: Time between two cancellations of a task, in seconds: a cancellation is lost if it meets an error inside the task.
CANCEL_AGAIN = 1.0


class SupervisionObserver:
    """Is notified about background work. This one ignores everything."""

    def running(self, name: str, *, running: bool) -> None:
        """The work started or stopped running."""

    def failed(self, name: str) -> None:
        """The work failed."""


class SupervisionMetrics(SupervisionObserver):
    """A `SupervisionObserver` that exports Prometheus metrics."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._running = Gauge(
            "sagittal_background_running",
            "1 while a background task or thread runs, 0 between a failure and its restart.",
            ["name"],
            registry=registry,
        )
        self._failures = Counter(
            "sagittal_background_failures",
            "Failures of background tasks and threads; each restarted the work or ended the process.",
            ["name"],
            registry=registry,
        )

    def running(self, name: str, *, running: bool) -> None:
        """Shows whether the work runs."""
        self._running.labels(name).set(int(running))
        self._failures.labels(name)  # starts at 0

    def failed(self, name: str) -> None:
        """Counts a failure."""
        self._failures.labels(name).inc()


class EndedUnasked(RuntimeError):
    """Background work returned or was cancelled although nothing asked it to end."""


@dataclass(slots=True, eq=False)
class Supervised:
    """One piece of background work."""

    name: str
    failures_allowed: int | None = None
    """Consecutive failures before it is given up; None: it is always restarted."""
    failures: int = 0
    """Consecutive failures."""
    error: str = ""
    """The last failure, until the work has run for HEALTHY_SECONDS again."""
    given_up: bool = False
    ending: bool = False
    """True if it was asked to end."""
    began: float = 0.0
    """Time of its last start on the monotonic clock, in seconds."""
    task: "asyncio.Task[None] | None" = None
    thread: threading.Thread | None = None
    restart: asyncio.TimerHandle | None = None
    """Timer that restarts a failed task."""
    is_running: bool = False

    @property
    def healthy(self) -> bool:
        """True if it has run for so long that earlier failures no longer count."""
        return self.is_running and time.monotonic() - self.began >= HEALTHY_SECONDS


class Supervisor:
    """Starts background work, and restarts it if it fails."""

    def __init__(
        self,
        observer: SupervisionObserver | None = None,
        *,
        on_given_up: Callable[[Supervised], None] = lambda _: None,
    ) -> None:
        """Starts nothing yet.

        Args:
            observer: Is notified of starts and failures.
            on_given_up: Ends the process; called from the thread whose work is given up.
        """
        self._observer = observer or SupervisionObserver()
        self._on_given_up = on_given_up
        self._work: dict[str, Supervised] = {}
        self._lock = threading.Lock()

    @property
    def work(self) -> Mapping[str, Supervised]:
        """All background work by name."""
        with self._lock:
            return dict(self._work)

    def ailing(self) -> str:
        """Describes work that has failed and is not running; empty if there is none. Thread-safe."""
        for one in self.work.values():
            if one.given_up or (one.failures and not one.is_running):
                return f"the background work {one.name!r} failed {one.failures} times: {one.error}"
        return ""

    def failed(self) -> str:
        """Describes work that fails repeatedly, which requires a restart; empty if there is none. Thread-safe."""
        for one in self.work.values():
            if one.given_up or (one.failures >= HOPELESS_FAILURES and not one.healthy):
                return f"the background work {one.name!r} failed {one.failures} times in a row: {one.error}"
        return ""

    def note(self, name: str, error: BaseException) -> None:
        """Logs and counts a failure of work that is not restarted."""
        self._observer.failed(name)
        log.error("background-work-failed", name=name, doing="continuing without it", exc_info=error)

    def note_loop_failure(self, loop: asyncio.AbstractEventLoop, context: Mapping[str, Any]) -> None:
        """Exception handler for event loops: failures of callbacks, and of tasks that nobody awaited."""
        self.note("event-loop", context.get("exception") or RuntimeError(str(context.get("message"))))

    def start_task(self, name: str, run: Callable[[], Coroutine[Any, Any, None]]) -> Supervised:
        """Runs a coroutine function on the running loop until `stop_task`; restarts it whenever it ends."""
        one = self._add(Supervised(name))
        self._start_task(one, run)
        return one

    async def stop_task(self, one: Supervised) -> None:
        """Ends a task and returns when it has ended."""
        one.ending = True
        if one.restart is not None:
            one.restart.cancel()
        while one.task is not None and not one.task.done():
            one.task.cancel()
            await asyncio.wait([one.task], timeout=CANCEL_AGAIN)
        self._remove(one)

    def start_thread(
        self,
        name: str,
        run: Callable[[], None],
        *,
        may_end: Callable[[], bool],
        failures_allowed: int = THREAD_FAILURES,
    ) -> Supervised:
        """Runs a function on a daemon thread; restarts it if it fails.

        Args:
            name: Name of the thread, in logs and metrics.
            run: The work; it returns only if `may_end` returns True.
            may_end: Returns whether the work was asked to end; must not block.
            failures_allowed: Consecutive failures before it is given up; 0 gives it up at the first.
        """
        one = self._add(Supervised(name, failures_allowed))
        one.thread = threading.Thread(target=self._keep_thread, args=(one, run, may_end), name=name, daemon=True)
        one.thread.start()
        return one

    def _add(self, one: Supervised) -> Supervised:
        with self._lock:
            if one.name in self._work:
                raise ValueError(f"the background work {one.name!r} is already running: give each its own name")
            self._work[one.name] = one
        return one

    def _remove(self, one: Supervised) -> None:
        self._set_running(one, running=False)
        with self._lock:
            if self._work.get(one.name) is one:
                del self._work[one.name]

    def _set_running(self, one: Supervised, *, running: bool) -> None:
        one.is_running = running
        if running:
            one.began = time.monotonic()
        self._observer.running(one.name, running=running)

    def _start_task(self, one: Supervised, run: Callable[[], Coroutine[Any, Any, None]]) -> None:
        # A new task for each start instead of a loop inside one task, so that a loop shutdown can cancel it reliably.
        self._set_running(one, running=True)
        one.task = asyncio.get_running_loop().create_task(run(), name=one.name)
        one.task.add_done_callback(lambda ended: self._task_ended(one, ended, run))

    def _task_ended(
        self, one: Supervised, ended: "asyncio.Task[None]", run: Callable[[], Coroutine[Any, Any, None]]
    ) -> None:
        error = None if ended.cancelled() else ended.exception()
        if one.ending:
            return
        how = "was cancelled" if ended.cancelled() else "returned"
        pause = self._note_failure(one, error or EndedUnasked(f"it {how} although nothing asked it to end"))
        if pause is not None:
            one.restart = ended.get_loop().call_later(pause, self._start_task, one, run)

    def _keep_thread(self, one: Supervised, run: Callable[[], None], may_end: Callable[[], bool]) -> None:
        while True:
            self._set_running(one, running=True)
            error: BaseException = EndedUnasked("it returned although nothing asked it to end")
            try:
                run()
            except BaseException as failure:  # noqa: BLE001 - whatever ends a thread is reported
                error = failure
            else:
                if may_end():
                    break
            pause = self._note_failure(one, error)
            if pause is None:
                return
            if _wait_until(may_end, pause):
                break
        self._remove(one)

    def _note_failure(self, one: Supervised, error: BaseException) -> float | None:
        """Returns the seconds until the restart; None if the work is given up."""
        one.failures = 1 if one.healthy else one.failures + 1
        one.error = f"{type(error).__name__}: {error}"
        pause = float(min(FIRST_PAUSE * 2 ** (min(one.failures, 16) - 1), LONGEST_PAUSE))
        one.given_up = one.failures_allowed is not None and one.failures > one.failures_allowed
        self._set_running(one, running=False)
        self._observer.failed(one.name)
        doing = "ending the process" if one.given_up else f"restarting it in {pause:g} s"
        log.error("background-work-failed", name=one.name, failures=one.failures, doing=doing, exc_info=error)
        if one.given_up:
            self._on_given_up(one)
            return None
        return pause


def _wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Waits up to `seconds` for a condition; returns whether it holds."""
    until = time.monotonic() + seconds
    while not (held := condition()) and (left := until - time.monotonic()) > 0:
        time.sleep(min(left, 0.05))
    return held
