"""The client for ordinary code, generated from `sagittal.client.aio`; `concurrency` alone is written by hand."""

from sagittal.client.sync.client import Client
from sagittal.client.sync.streams import EventStream

__all__ = ["Client", "EventStream"]
