"""Background work never ends silently: it starts again after a logged failure, or ends its process."""

import ast
import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

import sagittal.process
import sagittal.worker.process
from sagittal.process import supervision
from sagittal.process.supervision import HOPELESS_FAILURES, Supervised, SupervisionMetrics, Supervisor

#: Longest wait for anything here, in seconds.
PATIENCE = 30.0

#: Functions that start a task or a thread without the supervisor, and who reports its failure.
UNSUPERVISED = {
    "page/http.py": "the process waits for its end, and ends with it",
    "process/embedded_guard.py": "the guard is a process of its own, which ends with its thread's work",
    "process/parent.py": "does nothing but end the process",
    "process/supervision.py": "the supervisor itself",
    "queue/shards.py": "awaited by the call, which raises what they raise",
    "queue/watch.py": "its reader is awaited by the task `log-notifications`",
    "server/rpc/local_channel.py": "awaited by the call, which raises its failure",
    "server/rpc/layers.py": "awaited by the call",
    "server/batch_items.py": "awaited by the call, which raises what they put into its outbox",
    "server/intake.py": "awaited by the call, or by `server/relay.py` if the caller has left",
    "server/explain_many.py": "awaited by the call, which raises what they raise",
    "server/relay.py": "awaited by the call; what outlives it reports every failure to the supervisor",
    "server/service.py": "awaited by `stop`",
    "worker/concepts/images.py": "hands every failure to the job that takes the images",
}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(supervision, "LONGEST_PAUSE", 0.01)


def soon(condition: Callable[[], object]) -> None:
    until = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < until, "it never came to pass"
        time.sleep(0.002)


async def soon_on_the_loop(condition: Callable[[], object]) -> None:
    until = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < until, "it never came to pass"
        await asyncio.sleep(0.002)


def sample(registry: CollectorRegistry, name: str) -> float | None:
    return registry.get_sample_value(name, {"name": "work"})


async def test_a_task_that_fails_is_logged_counted_and_started_again() -> None:
    registry = CollectorRegistry()
    supervisor = Supervisor(SupervisionMetrics(registry))
    starts = 0

    async def work() -> None:
        nonlocal starts
        starts += 1
        if starts < 3:
            raise ZeroDivisionError("a bug by construction")
        await asyncio.Event().wait()

    with capture_logs() as logged:
        one = supervisor.start_task("work", work)
        await soon_on_the_loop(lambda: starts == 3)
    assert [entry["failures"] for entry in logged if entry["event"] == "background-work-failed"] == [1, 2]
    assert sample(registry, "sagittal_background_failures_total") == 2
    assert sample(registry, "sagittal_background_running") == 1
    assert supervisor.ailing() == ""
    await supervisor.stop_task(one)
    assert not supervisor.work
    assert sample(registry, "sagittal_background_running") == 0


@pytest.mark.parametrize("how", ["returns", "is cancelled"])
async def test_a_task_that_ends_unasked_starts_again(how: str) -> None:
    supervisor, starts = Supervisor(), []

    async def work() -> None:
        starts.append(asyncio.current_task())
        if len(starts) == 1 and how == "returns":
            return
        await asyncio.Event().wait()

    one = supervisor.start_task("work", work)
    await soon_on_the_loop(lambda: starts)
    if how == "is cancelled":
        starts[0].cancel()
    await soon_on_the_loop(lambda: len(starts) == 2)
    assert "although nothing asked it to end" in one.error
    await supervisor.stop_task(one)


async def test_a_task_that_keeps_failing_is_reported_and_still_started_again() -> None:
    supervisor, starts = Supervisor(), []

    async def work() -> None:
        starts.append(1)
        raise ZeroDivisionError("a bug by construction")

    one = supervisor.start_task("work", work)
    await soon_on_the_loop(lambda: one.failures >= HOPELESS_FAILURES)
    assert "'work' failed" in supervisor.failed()
    assert "ZeroDivisionError: a bug by construction" in supervisor.ailing()
    seen = len(starts)
    await soon_on_the_loop(lambda: len(starts) > seen)
    await supervisor.stop_task(one)


async def test_a_task_that_loses_a_cancellation_is_cancelled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "CANCEL_AGAIN", 0.01)
    supervisor, lost = Supervisor(), []

    async def work() -> None:
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                lost.append(1)
                if len(lost) > 1:
                    raise

    one = supervisor.start_task("work", work)
    await asyncio.sleep(0)
    async with asyncio.timeout(PATIENCE):
        await supervisor.stop_task(one)
    assert len(lost) == 2


def test_a_loop_that_ends_takes_its_tasks_along() -> None:
    async def work() -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        Supervisor().start_task("work", work)
        await asyncio.sleep(0)

    running = threading.Thread(target=asyncio.run, args=(main(),), daemon=True)
    running.start()
    running.join(PATIENCE)
    assert not running.is_alive()


def test_a_thread_that_fails_starts_again_and_ends_when_it_may() -> None:
    stopped, starts = threading.Event(), []

    def work() -> None:
        starts.append(1)
        if len(starts) == 1:
            raise ZeroDivisionError("a bug by construction")
        if len(starts) > 2:
            stopped.wait()

    supervisor = Supervisor()
    one = supervisor.start_thread("work", work, may_end=stopped.is_set)
    soon(lambda: len(starts) == 3)  # it failed once, and returned once
    assert one.failures == 2
    assert supervisor.ailing() == ""
    stopped.set()
    assert one.thread is not None
    one.thread.join(PATIENCE)
    assert not supervisor.work


@pytest.mark.parametrize("allowed", [0, 2])
def test_a_thread_that_fails_too_often_is_given_up_and_the_process_ended(allowed: int) -> None:
    given_up: list[Supervised] = []
    starts = []

    def work() -> None:
        starts.append(1)
        raise SystemExit(3)  # which Python would swallow

    supervisor = Supervisor(on_given_up=given_up.append)
    one = supervisor.start_thread("work", work, may_end=lambda: False, failures_allowed=allowed)
    soon(lambda: given_up)
    assert (given_up, len(starts)) == ([one], allowed + 1)
    assert "SystemExit: 3" in supervisor.failed()
    assert supervisor.ailing()


def test_old_failures_do_not_count_once_the_work_has_run_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "HEALTHY_SECONDS", 0.0)
    given_up: list[Supervised] = []
    starts = []

    def work() -> None:
        starts.append(1)
        raise ZeroDivisionError("a bug by construction")

    supervisor = Supervisor(on_given_up=given_up.append)
    supervisor.start_thread("work", work, may_end=lambda: len(starts) > 5, failures_allowed=2)
    soon(lambda: not supervisor.work)
    assert not given_up


def test_a_name_belongs_to_one_piece_of_work() -> None:
    supervisor, stopped = Supervisor(), threading.Event()
    supervisor.start_thread("work", stopped.wait, may_end=stopped.is_set)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'work' is already running"):
        supervisor.start_thread("work", stopped.wait, may_end=stopped.is_set)  # type: ignore[arg-type]
    stopped.set()


async def test_a_callback_that_fails_on_the_loop_is_logged_and_counted() -> None:
    registry = CollectorRegistry()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(Supervisor(SupervisionMetrics(registry)).note_loop_failure)
    with capture_logs() as logged:
        loop.call_soon(lambda: 1 / 0)
        await asyncio.sleep(0.01)
    assert [entry["name"] for entry in logged] == ["event-loop"]
    assert registry.get_sample_value("sagittal_background_failures_total", {"name": "event-loop"}) == 1


def test_nothing_starts_tasks_or_threads_but_the_supervisor() -> None:
    """A new place either uses the supervisor, or says here who reports its failure."""
    service, worker = Path(next(iter(sagittal.process.__path__))).parent, Path(next(iter(sagittal.worker.__path__)))
    found = {
        str(file.relative_to(folder.parent if folder is worker else folder))
        for folder in (service, worker)
        for file in folder.rglob("*.py")
        if _starts_something(file)
    }
    assert found == set(UNSUPERVISED)


def _starts_something(file: Path) -> bool:
    calls = (node.func for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call))
    names = {call.attr if isinstance(call, ast.Attribute) else getattr(call, "id", "") for call in calls}
    return bool(names & {"Thread", "Timer", "create_task", "ensure_future", "start_new_thread"})
