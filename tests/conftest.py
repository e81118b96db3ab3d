"""Fixtures that every test may use: one embedded Valkey for the session, and a queue of its own for each test."""

import gc
import os
import secrets
import shutil
import signal
from collections.abc import Callable, Iterator

import embedded_queue
import pytest
from peers_support import describe_missing, oldest_valkey

from sagittal.core.jobs import JobKind, Lane, NewJob
from sagittal.process.embedded import EmbeddedValkey
from sagittal.queue.settings import QueueSettings
from sagittal.registry.protocol import WorkerRegistry
from sagittal.registry.redis import RedisWorkerRegistry

#: Files that one process runs, because they share an installation which takes long to start.
TOGETHER = {
    **dict.fromkeys(("tests/e2e/test_explaining.py", "tests/e2e/test_notebook.py"), "the real model"),
    **dict.fromkeys(
        [f"tests/e2e/test_{name}.py" for name in ("bad_input", "outages", "regions", "robustness")], "a known model"
    ),
}


def pytest_collectstart() -> None:
    """Collects no garbage while all tests are imported, which makes a million objects that stay."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Collects garbage from here on, without a look at those objects."""
    gc.freeze()
    gc.enable()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Gives the tests of a file, or of the files of `TOGETHER`, to one process, in their order in the tree."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return TOGETHER.get(file, file)

    return Scheduling(config, log)


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """Programs that tests start hear SIGINT, even where a shell started the tests in its background, deaf to it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def valkey_url() -> str:
    """Where this session's Valkey listens."""
    return embedded_queue.valkey_url()


@pytest.fixture(scope="session")
def redis_binary() -> str:
    """The oldest server that is promised to work and can be had: Redis 7.0, which CI must have, else Valkey 8.1."""
    binary = shutil.which("redis-server")
    if binary is None and os.environ.get("CI") == "true":
        pytest.fail("redis-server is not installed: apt-get install redis-server")
    binary = binary or oldest_valkey()
    if binary is None:
        pytest.skip("redis-server is not installed: apt-get install redis-server, or make peers")
    return binary


@pytest.fixture(scope="session")
def tls_binary(redis_binary: str) -> str:
    """A server that speaks TLS, which those that come as packages do not."""
    if redis_binary == oldest_valkey():
        pytest.skip("redis-server is not installed: apt-get install redis-server")
    return redis_binary


@pytest.fixture(scope="session")
def redis_url(redis_binary: str) -> Iterator[str]:
    """Where this session's Redis listens."""
    with EmbeddedValkey(binary=redis_binary) as server:
        yield server.url


@pytest.fixture
def queue_settings() -> QueueSettings:
    """Settings of a queue that is this test's alone."""
    return embedded_queue.own_settings()


@pytest.fixture
def worker_registry(queue_settings: QueueSettings) -> Iterator[WorkerRegistry]:
    """A worker's side of a registry that is this test's alone."""
    registry = RedisWorkerRegistry(queue_settings)
    yield registry
    registry.close()


@pytest.fixture
def new_job() -> Callable[..., NewJob]:
    """Makes jobs to submit; keyword arguments override what is plain."""

    def make(**changes: object) -> NewJob:
        plain: dict[str, object] = {
            "job_id": secrets.token_hex(16),
            "kind": JobKind.EXPLANATION,
            "model": "model",
            "version": "1",
            "method": "igos++",
            "lane": Lane.INTERACTIVE,
            "request": b"request",
            "images": {"image": b"\x00image\xff"},
        }
        return NewJob(**(plain | changes))  # type: ignore[arg-type]

    return make


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Writes in one line which programs were missing, how many tests were skipped for it, and what adds them."""
    skipped = [report.longrepr for report in terminalreporter.stats.get("skipped", [])]
    reasons = [each[-1] if isinstance(each, (tuple, list)) else str(each) for each in skipped]
    missing = describe_missing(reasons, redis=shutil.which("redis-server") is not None)
    if missing:
        terminalreporter.write_line(f"not tested here: {missing}", yellow=True)
