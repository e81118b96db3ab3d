from collections.abc import AsyncIterator

import pytest

from .support import Stack, running


@pytest.fixture
async def stack() -> AsyncIterator[Stack]:
    """A service on a free port with the model `lamp`, ready on a worker."""
    async with running() as stack:
        yield stack
