"""Fixtures that every test may use: one embedded Valkey for the session, and a queue of its own for each test."""

import os
import secrets
import shutil
import signal
from collections.abc import Callable, Iterator

import embedded_queue
import pytest

from sagittal.core.jobs import JobKind, Lane, NewJob
from sagittal.runtime.embedded import EmbeddedValkey
from sagittal.runtime.redis_queue import connect_worker_registry
from sagittal.runtime.registry import WorkerRegistry
from sagittal.runtime.settings import QueueSettings


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
    """The oldest Redis that is promised to work, where it is installed; CI must have it."""
    binary = shutil.which("redis-server")
    if binary is None:
        if os.environ.get("CI") == "true":
            pytest.fail("redis-server is not installed: apt-get install redis-server")
        pytest.skip("redis-server is not installed: apt-get install redis-server")
    return binary


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
    registry = connect_worker_registry(queue_settings)
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
