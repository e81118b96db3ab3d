from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from .support import Stack, quick_settings, running


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    """A service on a free port with the model `lamp`, ready on a worker, and a place for concept sets."""
    async with running(quick_settings(concepts={"directory": tmp_path})) as stack:
        yield stack
