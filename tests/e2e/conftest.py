"""Installations for the end-to-end tests."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from e2e_stack import BROKEN_MODEL, KNOWN_MODEL, REAL_MODEL, Stack, wait_until

from sagittal.client import Client
from sagittal.process.embedded import EmbeddedValkey


@contextmanager
def running(directory: Path, models: str, ready: str) -> Iterator[Stack]:
    """An installation that has one of these models ready."""
    with EmbeddedValkey() as valkey:
        installation = Stack(directory, valkey.url)
        try:
            installation.start_service()
            installation.start_worker(models=models)
            installation.wait_for_model(ready)
            yield installation
        finally:
            installation.stop()


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """An installation with a model whose reason is known, and a broken one."""
    with running(tmp_path_factory.mktemp("stack"), KNOWN_MODEL + BROKEN_MODEL, "left") as installation:
        with Client(installation.address) as client:
            wait_until(lambda: [each.state for each in client.model("broken").workers] == ["failed"], "one is broken")
        yield installation


@pytest.fixture(scope="session")
def real_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """An installation with the real model, which takes a while to load."""
    with running(tmp_path_factory.mktemp("real"), REAL_MODEL, "efficientnet-lite0") as installation:
        yield installation


@pytest.fixture
def client(stack: Stack) -> Iterator[Client]:
    """A client of that installation."""
    with Client(stack.address) as connected:
        yield connected


@pytest.fixture
def private_stack(tmp_path: Path) -> Iterator[Stack]:
    """An installation of a test's own, with nothing started yet."""
    with EmbeddedValkey() as valkey:
        installation = Stack(tmp_path, valkey.url)
        try:
            yield installation
        finally:
            installation.stop()
