"""What a worker's process and its parent both see: since when it does what, in memory that they share.

The parent watches, and no thread of the process itself: compiled code that hangs may hold the interpreter's lock.
"""

import mmap
import socket
import struct
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from sagittal.worker.hosting.rehearsals import Rehearsals

#: Bytes of an activity and of the names of jobs; longer texts are cut.
_ACTIVITY, _JOBS = 1024, 8192

_HEAD = struct.Struct("<ddH")
"""When it began and by when it must have ended, by the monotonic clock of the machine; bytes of the text after it."""


class Activity:
    """Something that must end in time."""

    def __init__(self, page: mmap.mmap, offset: int) -> None:
        self._page = page
        self._offset = offset

    def begin(self, doing: str, *, seconds: float) -> None:
        """Notes that something begins, and how long it may take."""
        text = doing.encode()[: _ACTIVITY - _HEAD.size]
        start, now = self._offset + _HEAD.size, time.monotonic()
        self._page[start : start + len(text)] = text
        _HEAD.pack_into(self._page, self._offset, now, now + seconds, len(text))

    def end(self) -> None:
        """Notes that it has ended."""
        _HEAD.pack_into(self._page, self._offset, 0.0, 0.0, 0)

    @contextmanager
    def during(self, doing: str, *, seconds: float) -> Iterator[None]:
        """Notes that something begins, and that it ends."""
        self.begin(doing, seconds=seconds)
        try:
            yield
        finally:
            self.end()

    @property
    def doing(self) -> str:
        """What is done; empty if nothing."""
        _, _, length = _HEAD.unpack_from(self._page, self._offset)
        start = self._offset + _HEAD.size
        return bytes(self._page[start : start + length]).decode(errors="replace")

    @property
    def seconds(self) -> float:
        """Time since it began; 0 if nothing is done."""
        began, _, _ = _HEAD.unpack_from(self._page, self._offset)
        return time.monotonic() - began if began else 0.0

    @property
    def overdue(self) -> bool:
        """Whether it must have ended."""
        began, until, _ = _HEAD.unpack_from(self._page, self._offset)
        return bool(began) and time.monotonic() > until


class Vitals:
    """What one process does. Written by it alone; kept by its parent when it has died."""

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, 2 * _ACTIVITY + _JOBS)
        self.step = Activity(self._page, 0)
        """A step on the device."""
        self.load = Activity(self._page, _ACTIVITY)
        """Loading a model."""

    @property
    def jobs(self) -> list[str]:
        """The jobs that it runs."""
        names = bytes(self._page[2 * _ACTIVITY :])
        return names[: names.index(b"\0")].decode().split()

    @jobs.setter
    def jobs(self, jobs: Iterable[str]) -> None:
        names = " ".join(jobs).encode()[: _JOBS - 1]
        self._page[2 * _ACTIVITY :] = names.ljust(_JOBS, b"\0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """What a process shares with the parent that watches it."""

    vitals: Vitals = field(default_factory=Vitals)
    rehearsals: Rehearsals = field(default_factory=Rehearsals)
    restarts: dict[str, int] = field(default_factory=dict)
    """Processes before it on its device, by why they ended."""
    listener: socket.socket | None = None
    """Where it answers scrapes and probes, if the parent opened that for it."""
