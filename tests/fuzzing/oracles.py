"""What an input may cost, and how that is measured: memory, time of the event loop, memory and time of Redis.

A crash is not the only fault: one small request that takes a gigabyte, or holds up everybody for a second, is one too.
Times are processor times, so that a busy machine finds nothing that is not there.
"""

import asyncio
import ctypes
import gc
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis

MEBI = 2**20

#: Memory that a call may add to the program's peak, beside `COPIES` of its request, in bytes.
CALL_BYTES = 64 * MEBI
#: How often a request may be in memory at the same time, at the caller's and at the service's side together.
COPIES = 12
#: Memory that a process which reads images may take: its budget, and what the interpreter and its libraries take.
DECODER_BYTES = (256 + 96) * MEBI
#: Memory that a call may add in Redis, beside `STORED` of its request, in bytes.
REDIS_BYTES = 4 * MEBI
#: How often a request may be stored, or be on its way, in Redis.
STORED = 6
#: Processor time that the event loop may take between two of its turns, in seconds: nobody else is served meanwhile.
LOOP_SECONDS = 0.5
#: Processor time that Redis may take for a call, in seconds.
REDIS_SECONDS = 1.0
#: Time between two looks at the event loop, in seconds.
_TICK = 0.005


class TooDear(AssertionError):
    """An input took more than an input may."""


class LoopMeter:
    """The longest processor time between two turns of an event loop, which it measures from within."""

    def __init__(self) -> None:
        self._worst = 0.0

    async def run(self) -> None:
        """Measures until it is cancelled."""
        before = time.thread_time()
        while True:
            await asyncio.sleep(_TICK)
            now = time.thread_time()
            self._worst = max(self._worst, now - before)
            before = now

    def take(self) -> float:
        """Returns the longest since the last call, in seconds."""
        worst, self._worst = self._worst, 0.0
        return worst


@dataclass
class Oracles:
    """Measures each call to a service in this process, on a Redis of its own."""

    loop: LoopMeter
    redis: "redis.Redis"
    process: int = field(default_factory=os.getpid)
    start: int = field(default_factory=lambda: reset_peak(os.getpid()))
    """Memory at the start, in bytes."""

    def held(self) -> int:
        """Returns how much more memory this process has now than at the start, in bytes.

        What is garbage, or free and kept by the allocator (glibc), does not count.
        """
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        return reset_peak(self.process) - self.start

    @contextmanager
    def watch(self, what: str, size: int) -> Iterator[None]:
        """Raises TooDear if what happens within costs more than a request of so many bytes may.

        Children of this process that are Python programs read its images.
        """
        before = redis_costs(self.redis)
        base, children = reset_peak(self.process), children_of(self.process)
        for child in children:
            reset_peak(child)
        self.loop.take()
        yield
        after = redis_costs(self.redis)
        _hold(f"{what}: peak of memory", peak(self.process) - base, CALL_BYTES + COPIES * size, "bytes")
        _hold(f"{what}: the event loop was held", self.loop.take(), LOOP_SECONDS, "s")
        _hold(f"{what}: memory of Redis", after[0] - before[0], REDIS_BYTES + STORED * size, "bytes")
        _hold(f"{what}: processor time of Redis", after[1] - before[1], REDIS_SECONDS, "s")
        for child in children_of(self.process):
            _hold(f"{what}: memory of a process that reads images", peak(child), DECODER_BYTES, "bytes")


def redis_costs(client: "redis.Redis") -> tuple[float, float]:
    """Returns the memory that Redis has in use, in bytes, and the processor time that it has taken, in seconds."""
    memory: Any = client.info("memory")
    cpu: Any = client.info("cpu")
    return memory["used_memory"], cpu["used_cpu_user"] + cpu["used_cpu_sys"]


@contextmanager
def bounded(what: str, *, memory: int, seconds: float) -> Iterator[None]:
    """Raises TooDear if what this thread does within takes more memory, in bytes, or processor time."""
    base, began = reset_peak(os.getpid()), time.thread_time()
    yield
    took = time.thread_time() - began
    _hold(f"{what}: peak of memory", peak(os.getpid()) - base, memory, "bytes")
    _hold(f"{what}: processor time", took, seconds, "s")


def _hold(what: str, measured: float, most: float, unit: str) -> None:
    if measured > most:
        raise TooDear(f"{what} {measured:,.3g} {unit}; at most {most:,.3g}")


def reset_peak(process: int) -> int:
    """Sets the peak of a process's memory to what it has now, and returns that in bytes; 0 if it has ended."""
    try:
        Path(f"/proc/{process}/clear_refs").write_text("5")
        return peak(process)
    except (FileNotFoundError, ProcessLookupError):
        return 0


def peak(process: int) -> int:
    """Returns the most memory that a process had since `reset_peak`, in bytes; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


def children_of(process: int) -> list[int]:
    """Returns the processes that read images: children of a process, whichever of its threads started them."""
    found: list[int] = []
    for thread in Path(f"/proc/{process}/task").iterdir():
        try:
            numbers = (thread / "children").read_text().split()
            found += [int(each) for each in numbers if b"sagittal.core.decoding" in _command(each)]
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def _command(process: str) -> bytes:
    return Path(f"/proc/{process}/cmdline").read_bytes()
