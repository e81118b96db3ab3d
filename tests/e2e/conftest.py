"""Installations for the end-to-end tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e_stack import BROKEN_MODEL, KNOWN_MODEL, REAL_MODEL, Stack

from sagittal.client import Client
from sagittal.process.embedded import EmbeddedValkey


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """An installation with the real model and one whose reason is known, ready to explain."""
    directory = tmp_path_factory.mktemp("stack")
    with EmbeddedValkey() as valkey:
        installation = Stack(directory, valkey.url)
        try:
            installation.start_service()
            installation.start_worker(models=KNOWN_MODEL + BROKEN_MODEL + REAL_MODEL)
            installation.wait_for_model("efficientnet-lite0")
            yield installation
        finally:
            installation.stop()


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
