"""Tests that need a card. `SAGITTAL_TEST_DEVICE=cpu` runs those that can run on a CPU, to test the tests.

`SAGITTAL_TEST_PASSED` names a file to which each test that passes is added. Its tests do not run again: minutes on a
card are few.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from e2e_stack import Stack

from sagittal.process.embedded import EmbeddedValkey

WISH = os.environ.get("SAGITTAL_TEST_DEVICE", "cuda")

PASSED = Path(os.environ["SAGITTAL_TEST_PASSED"]) if os.environ.get("SAGITTAL_TEST_PASSED") else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out the tests that an earlier run passed."""
    if PASSED is not None and PASSED.exists():
        passed = set(PASSED.read_text().splitlines())
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid in passed])
        items[:] = [item for item in items if item.nodeid not in passed]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Keeps a test that passed."""
    if PASSED is not None and report.when == "call" and report.passed:
        with PASSED.open("a") as file:
            file.write(f"{report.nodeid}\n")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips tests marked `cuda` where there is no card, all at one place, so that one line says so."""
    needs_card = WISH == "cuda" or item.get_closest_marker("cuda_only") is not None
    if item.get_closest_marker("cuda") is not None and needs_card and not torch.cuda.is_available():
        pytest.skip("there is no CUDA device; `make device` runs these tests on a machine that has one")


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The card, or the device that stands in for it."""
    return torch.device(WISH)


@pytest.fixture
def private_stack(tmp_path: Path) -> Iterator[Stack]:
    """An installation of a test's own, with nothing started yet."""
    with EmbeddedValkey() as valkey:
        installation = Stack(tmp_path, valkey.url)
        try:
            yield installation
        finally:
            installation.stop()
