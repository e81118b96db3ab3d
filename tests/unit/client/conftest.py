from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
from google.rpc import status_pb2
from scripted_service import JOB, OPTIONS, Script, failure, served

from sagittal.client import Client, Options


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def address(script: Script) -> Iterator[str]:
    with served(script) as where:
        yield where


@pytest.fixture
def client(address: str) -> Iterator[Client]:
    with Client(address, options=OPTIONS) as connected:
        yield connected


@pytest.fixture
def make_failure() -> Callable[..., status_pb2.Status]:
    return failure


@pytest.fixture
def picture() -> Sequence:
    return np.zeros((4, 5, 3), np.uint8)


@pytest.fixture
def options() -> Options:
    return OPTIONS


@pytest.fixture
def job_id() -> str:
    return JOB
