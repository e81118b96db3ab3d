"""The asyncio client. `sagittal.client.sync` is generated from it: `scripts/sync_client.py`."""

from sagittal.client.aio.client import AsyncClient
from sagittal.client.aio.streams import AsyncEventStream

__all__ = ["AsyncClient", "AsyncEventStream"]
