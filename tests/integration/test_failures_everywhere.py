"""Every promise holds after each error of Redis to every task and thread, and after the end of each of these."""

import time
import urllib.request
from collections.abc import Iterator

import pytest
import redis
import torch
from e2e_stack import free_port
from faulty_redis import OPERATIONS, FaultyRedis
from redis_replies import SAMPLES
from redis_states import OPTIONS, STATES
from whole_stack import LONG, PICTURE, SHORT, Stack, eventually

from sagittal.client import Client, Options, Overloaded, Retry
from sagittal.process.embedded import EmbeddedValkey
from sagittal.queue.failures import REPLIES, UNKNOWN, Reply
from sagittal.worker import process
from sagittal.worker.execution import writer
from sagittal.worker.hosting import reconciler, registry

#: Changes to models that administrators ask for.
CHANGES = ("declare", "wish", "remove")

#: What `Stack.use` asks of Redis, whatever else happens, by the task or thread that asks; a call is a task. The other
#: operations are in test_redis_replies.py.
OF_SERVICE = {
    "calls": {"submit", "get", "read", "cancel", "delete", "list", *(f"registry_{do}" for do in CHANGES)},
    "readiness": {"PING", "backlog", "stored", "registry_read", "registry_canaries", "SET", "GET"},
    "sweeper": {"sweep"},
    "log-notifications": {"SUBSCRIBE"},
}
OF_WORKER = {
    "leasing": {"lease", "BLPOP", "sweep"},
    "heartbeat": {"heartbeat", "registry_announce", "registry_outcomes"},
    "cancellations": {"SUBSCRIBE"},
    "event-writer": {"append", "checkpoint", "settle"},
    "models": {"registry_changes", "registry_read"},
}
#: Background work that asks Redis for nothing.
SILENT = {"engine", "metrics"}


@pytest.fixture(scope="module")
def direct() -> Iterator[str]:
    """Where the Redis of these tests listens."""
    port = free_port()
    with EmbeddedValkey(port=port, options=OPTIONS):
        yield f"redis://127.0.0.1:{port}/0"


@pytest.fixture(scope="module")
def faulty(direct: str) -> Iterator[tuple[FaultyRedis, FaultyRedis]]:
    """What stands before Redis: for the service, and for the worker."""
    port = int(direct.rsplit(":", maxsplit=1)[-1].removesuffix("/0"))
    proxies = FaultyRedis(port), FaultyRedis(port)
    yield proxies
    for proxy in proxies:
        proxy.close()


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patched:
        for module in (process, registry, reconciler):
            patched.setattr(module, "AWAY_PAUSE", 0.05)
        patched.setattr(reconciler, "LOOK", 0.1)
        patched.setattr(reconciler, "READ", 0.1)
        patched.setattr(writer, "PAUSE", 0.02)
        yield


@pytest.fixture(scope="module")
def stack(
    faulty: tuple[FaultyRedis, FaultyRedis], direct: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    of_service, of_worker = (proxy.url for proxy in faulty)
    running = Stack(tmp_path_factory.mktemp("stack"), of_service=of_service, of_worker=of_worker, direct=direct)
    running.use()  # starts what is started when it is first needed
    yield running
    running.close()


@pytest.mark.parametrize("reply", [*REPLIES, UNKNOWN], ids=lambda reply: reply.name)
def test_every_promise_holds_after_a_reply_to_every_operation(
    reply: Reply, faulty: tuple[FaultyRedis, FaultyRedis], stack: Stack, direct: str
) -> None:
    """Each operation is answered with the reply once on either side, whichever task or thread asks for it."""
    for proxy in faulty:
        proxy.arm(SAMPLES[reply.name][0], OPERATIONS)
        proxy.end_subscriptions()  # which last, so that none would be asked for
    stack.use()
    for proxy, table in zip(faulty, (OF_SERVICE, OF_WORKER), strict=True):
        used = set().union(*table.values())

        def all_are_hit() -> bool:
            with redis.Redis.from_url(direct) as client:  # so that it is not always the same side that sweeps
                client.delete(*client.keys("*:sweeper"), "nothing")
            return set(proxy.hits) >= used  # noqa: B023

        eventually(all_are_hit, f"each of {used} was answered with it")
        proxy.disarm()
    stack.check_health()
    for _, one in stack.background_work():
        assert one.failures == 0, f"{one.name} failed instead of going on: {one.error}"


def test_every_task_and_thread_is_in_a_table(stack: Stack) -> None:
    assert {one.name for _, one in stack.background_work()} == (OF_SERVICE.keys() | OF_WORKER.keys() | SILENT) - {
        "calls"
    }


def ready_over_http(stack: Stack) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{stack.worker.metrics.port}/readyz", timeout=10) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def test_every_task_and_thread_may_end_and_everything_goes_on(stack: Stack) -> None:
    """The table is the supervisors' own: what is supervised later is ended here too."""
    names = [one.name for _, one in stack.background_work()]
    assert len(names) == len(set(names))
    assert {"sweeper", "readiness", "log-notifications", "leasing", "heartbeat", "event-writer", "metrics"} <= set(
        names
    )
    for name in sorted(set(names) - {"engine"}):
        supervisor, one = next(each for each in stack.background_work() if each[1].name == name)
        before = one.failures
        (stack.service if supervisor is stack.service.supervisor else stack.worker).kill(name)
        stack.use()
        eventually(lambda: one.failures > before, f"{name} was ended")  # noqa: B023
        stack.check_health()
        eventually(lambda: ready_over_http(stack), "the worker says over HTTP that it is ready")
        registry = stack.registry if supervisor is stack.service.supervisor else stack.worker.registry
        assert registry.get_sample_value("sagittal_background_failures_total", {"name": name}) == one.failures
        assert registry.get_sample_value("sagittal_background_running", {"name": name}) == 1


def test_a_worker_whose_engine_ends_ends_too_and_its_job_runs_again(stack: Stack) -> None:
    """A failed step may have left jobs half done: no thread steps them on."""
    job_id = stack.submit(**LONG)
    eventually(lambda: stack.state(job_id).attempt == 1, "the job runs")
    stack.worker.kill("engine")
    eventually(lambda: stack.worker.ended, "the worker ends")
    assert stack.worker.worker.crashed == "engine"
    assert "engine" in stack.worker.worker.live()
    stack.restart_worker()
    eventually(lambda: stack.state(job_id).attempt == 2, "the job runs again")
    stack.insist(lambda: stack.client.cancel(job_id))
    assert stack.await_end(job_id)[-1].HasField("cancelled")
    stack.use()
    stack.check_health()


def refusal_of_a_submission(stack: Stack) -> Overloaded:
    """Returns how the service refuses a caller that tries once."""
    once = Options(retry=Retry(call_seconds=0.0))
    with Client(f"127.0.0.1:{stack.service.port}", options=once) as client, pytest.raises(Overloaded) as refused:
        client.submit(PICTURE, model="left", target=1, cache="bypass", **SHORT)
    return refused.value


@pytest.mark.parametrize("name", STATES)
def test_a_server_in_a_state_that_passes_ends_nothing(name: str, stack: Stack, direct: str) -> None:
    """The server itself refuses, for longer than an operation is tried."""

    def replies() -> float:
        labels = {"reply": name, "meaning": {reply.name: reply.meaning.value for reply in REPLIES}[name]}
        return stack.registry.get_sample_value("sagittal_redis_error_replies_total", labels) or 0.0

    running, before = stack.submit(**LONG), replies()
    with redis.Redis.from_url(direct) as operator, STATES[name](operator):
        if name == "OOM":
            assert refusal_of_a_submission(stack).retry_after
        else:
            eventually(lambda: stack.service.service.ready() != "", "the service is not ready")
            eventually(lambda: replies() > before, f"{name} is counted")
        until = time.monotonic() + stack.settings.operation_timeout
        while time.monotonic() < until:
            assert not stack.worker.ended
            time.sleep(0.1)
    stack.insist(lambda: stack.client.cancel(running))
    assert stack.await_end(running)[-1].HasField("cancelled")
    stack.use()
    stack.check_health()
