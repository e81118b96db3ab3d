"""Memory that a worker's process shares with its parent: the current activities and when they began.

The parent watches, not a thread of the process: compiled code that hangs may hold the interpreter's lock.
"""

import mmap
import socket
import struct
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from sagittal.worker.hosting.rehearsals import Rehearsals

#: Bytes of an activity's text and of the names of jobs; longer texts are cut.
_ACTIVITY, _JOBS = 1024, 8192

_HEAD = struct.Struct("<ddH")
"""Start and deadline by the machine's monotonic clock; then the length of the text in bytes."""


class Activity:
    """An activity with a deadline."""

    def __init__(self, page: mmap.mmap, offset: int) -> None:
        self._page = page
        self._offset = offset

    def begin(self, doing: str, *, seconds: float) -> None:
        """Records the start of an activity, and its maximum duration."""
        text = doing.encode()[: _ACTIVITY - _HEAD.size]
        start, now = self._offset + _HEAD.size, time.monotonic()
        self._page[start : start + len(text)] = text
        _HEAD.pack_into(self._page, self._offset, now, now + seconds, len(text))

    def end(self) -> None:
        """Records its end."""
        _HEAD.pack_into(self._page, self._offset, 0.0, 0.0, 0)

    @contextmanager
    def during(self, doing: str, *, seconds: float) -> Iterator[None]:
        """Records the start and the end of an activity around a block."""
        self.begin(doing, seconds=seconds)
        try:
            yield
        finally:
            self.end()

    @property
    def doing(self) -> str:
        """Description of the activity; empty if there is none."""
        _, _, length = _HEAD.unpack_from(self._page, self._offset)
        start = self._offset + _HEAD.size
        return bytes(self._page[start : start + length]).decode(errors="replace")

    @property
    def seconds(self) -> float:
        """Time since it began; 0 if there is none."""
        began, _, _ = _HEAD.unpack_from(self._page, self._offset)
        return time.monotonic() - began if began else 0.0

    @property
    def overdue(self) -> bool:
        """Whether its deadline has passed."""
        began, until, _ = _HEAD.unpack_from(self._page, self._offset)
        return bool(began) and time.monotonic() > until


class Vitals:
    """The activities of one process. Only the process writes; the parent keeps them after its death."""

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, 2 * _ACTIVITY + _JOBS)
        self.step = Activity(self._page, 0)
        """A step on the device."""
        self.load = Activity(self._page, _ACTIVITY)
        """Loading a model."""

    @property
    def jobs(self) -> list[str]:
        """The running jobs."""
        names = bytes(self._page[2 * _ACTIVITY :])
        return names[: names.index(b"\0")].decode().split()

    @jobs.setter
    def jobs(self, jobs: Iterable[str]) -> None:
        names = " ".join(jobs).encode()[: _JOBS - 1]
        self._page[2 * _ACTIVITY :] = names.ljust(_JOBS, b"\0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """State that a process shares with its watching parent."""

    vitals: Vitals = field(default_factory=Vitals)
    rehearsals: Rehearsals = field(default_factory=Rehearsals)
    restarts: dict[str, int] = field(default_factory=dict)
    """Earlier processes of its device, by the reason they ended."""
    listener: socket.socket | None = None
    """Its address for scrapes and probes, if the parent opened one."""
