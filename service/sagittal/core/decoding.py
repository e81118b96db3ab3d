"""Decodes images in child processes with bounded memory and a time limit, so that a bad image cannot stop the caller.

The parent sends a file over a socket. The child answers that the file can be decoded, with its pixels, or with an
error. The parent kills a child that exceeds the time limit and replaces one that exits. A child exits if its parent
does.
"""

import json
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray

from sagittal.core.errors import InvalidImage, Unavailable
from sagittal.core.images import ImageLimits, check, check_encoded, decode, opened
from sagittal.imaging.reading import upright
from sagittal.v1 import tensor_pb2

#: Bytes of address space beyond an image's limit: two copies of the file, and what the allocator rounds up.
_SLACK = 64 * 2**20

#: Extra time for the first answer of a new process, in seconds.
_START_SECONDS = 60.0

#: One thread per process. glibc returns the memory of large images to the system when they are freed.
_ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": str(2**20), "MALLOC_ARENA_MAX": "1"}

_LENGTH = struct.Struct("<Q")

#: Niceness of a process that decodes in the background.
BACKGROUND = 10

#: Why a process of this program ended while it decoded: it took too long and was killed, or it died.
KILLED, DIED = ENDINGS = ("killed", "died")

_log = structlog.get_logger(__name__)


_ended: Counter[str] = Counter()
_counting = Lock()


def ended_decoders() -> Mapping[str, int]:
    """Returns how many processes ended while they decoded for this program, by each of `ENDINGS`."""
    with _counting:
        return {ending: _ended[ending] for ending in ENDINGS}


def _count(ending: str) -> None:
    with _counting:
        _ended[ending] += 1


class Decoder:
    """Decodes one image at a time in a child process. Thread-safe."""

    def __init__(self, limits: ImageLimits, *, background: bool = False) -> None:
        """Stores the limits; the process starts with the first image.

        Args:
            limits: Limits of each image.
            background: Whether the process has a low priority, and so leaves the processors to other processes.
        """
        self._limits = limits
        self._background = background
        self._lock = Lock()
        self._process: _Process | None = None

    def check(self, image: tensor_pb2.Image, *, field: str = "image", input_size: int = 0) -> None:
        """Checks an image as `core.images.check` does, and raises the same errors."""
        if image.WhichOneof("source") != "encoded":
            check(image, self._limits, field=field, input_size=input_size)
            return
        with self._lock:
            self._ask("check", image.encoded, f"{field}.encoded")

    def decode(self, image: tensor_pb2.Image, *, field: str = "image") -> NDArray[np.uint8]:
        """Returns the pixels as `core.images.decode` does: uint8 RGB of shape (height, width, 3)."""
        if image.WhichOneof("source") != "encoded":
            return decode(image, self._limits, field=field)
        with self._lock:
            found = self._ask("decode", image.encoded, f"{field}.encoded")
        return upright(found["pixels"], found["orientation"])

    def close(self) -> None:
        """Ends the process; the next image starts a new one."""
        with self._lock:
            self._end()

    def _ask(self, task: str, data: bytes, path: str) -> Mapping[str, Any]:
        """Returns the answer; retries once in a new process, since the first may have ended for an unrelated reason."""
        if len(data) > self._limits.max_bytes:  # fails here, without sending the file
            check_encoded(data, self._limits, path)
        for again in (True, False):
            process = self._running()
            try:
                return process.ask(task, data, path, self._limits.seconds)
            except TimeoutError as error:
                self._end()
                _count(KILLED)
                _log.warning("image-decoder-killed", seconds=self._limits.seconds, bytes=len(data), field=path)
                text = f"{path} takes longer than {self._limits.seconds:g} s to decode: send a smaller image"
                raise InvalidImage(text, field=path) from error
            except (OSError, EOFError):
                why = self._end()
                _count(DIED)
                _log.warning("image-decoder-ended", why=why, bytes=len(data), field=path)
                if not again:
                    break
        raise InvalidImage(f"{path} ended the process that decoded it ({why}): send another image", field=path)

    def _running(self) -> "_Process":
        if self._process is None:
            try:
                self._process = _Process(self._limits, BACKGROUND if self._background else 0)
            except OSError as error:
                raise Unavailable(f"images cannot be decoded: {error.strerror}", retry_after=1.0) from error
        return self._process

    def _end(self) -> str:
        process, self._process = self._process, None
        return process.end() if process is not None else ""


@cache
def decoders(limits: ImageLimits, count: int) -> Sequence[Decoder]:
    """Returns the decoders of this process for these limits; every caller shares the same ones.

    All except the first run in the background: large images use these, and small ones prefer the first.
    """
    return tuple(Decoder(limits, background=number > 0) for number in range(count))


class _Process:
    """A running child process and the socket to it."""

    def __init__(self, limits: ImageLimits, niceness: int) -> None:
        self._socket, theirs = socket.socketpair()
        command = [sys.executable, "-m", "sagittal.core.decoding", json.dumps(asdict(limits)), str(niceness)]
        with theirs:
            environment = {**os.environ, **_ENVIRONMENT}
            self._process = subprocess.Popen(command, stdin=theirs.fileno(), env=environment)  # noqa: S603 - ours
        self._answered = False

    def ask(self, task: str, data: bytes, path: str, seconds: float) -> Mapping[str, Any]:
        """Returns the answer; it includes the pixels if the task is `decode`.

        Raises:
            InvalidImage: the image is damaged or exceeds the limits.
            TimeoutError: no answer arrived within the time limit.
            OSError, EOFError: the process has exited.
        """
        until = time.monotonic() + seconds + (0.0 if self._answered else _START_SECONDS)
        self._send(json.dumps({"task": task, "path": path}).encode(), until)
        self._send(data, until)
        answer: dict[str, Any] = json.loads(self._receive_framed(until))
        self._answered = True
        if "error" in answer:
            raise InvalidImage(answer["error"], field=path)
        if task == "decode":
            pixels = np.empty((answer["height"], answer["width"], 3), np.uint8)
            self._receive_into(pixels.data.cast("B"), until)
            answer["pixels"] = pixels
        return answer

    def end(self) -> str:
        """Kills the process if it is running; returns how it ended."""
        self._socket.close()
        self._process.kill()
        status = self._process.wait()
        return f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"

    def _send(self, part: bytes, until: float) -> None:
        self._socket.settimeout(max(0.001, until - time.monotonic()))
        self._socket.sendall(_LENGTH.pack(len(part)))
        self._socket.sendall(part)

    def _receive_framed(self, until: float) -> bytes:
        head = bytearray(_LENGTH.size)
        self._receive_into(memoryview(head), until)
        body = bytearray(_LENGTH.unpack(head)[0])
        self._receive_into(memoryview(body), until)
        return bytes(body)

    def _receive_into(self, buffer: memoryview, until: float) -> None:
        while buffer:
            self._socket.settimeout(max(0.001, until - time.monotonic()))
            received = self._socket.recv_into(buffer)
            if not received:
                raise EOFError("the process closed its end of the socket")
            buffer = buffer[received:]


def main() -> None:
    """Answers requests on standard input, which is a socket, until its other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C and closes the socket
    limits = ImageLimits(**json.loads(sys.argv[1]))
    os.nice(int(sys.argv[2]))
    _bound_memory(limits)
    with socket.socket(fileno=0) as link, link.makefile("rwb") as stream:
        while head := stream.read(_LENGTH.size):
            asked = json.loads(stream.read(_LENGTH.unpack(head)[0]))
            data = stream.read(_LENGTH.unpack(stream.read(_LENGTH.size))[0])
            for part in _answers(asked["task"], data, limits, asked["path"]):
                stream.write(part)
            stream.flush()
            del data


def _answers(task: str, data: bytes, limits: ImageLimits, path: str) -> Iterator[bytes | memoryview]:
    try:
        if task == "check":
            check_encoded(data, limits, path)
            yield _framed({})
            return
        with opened(data, limits, path) as image:
            yield _framed({"width": image.width, "height": image.height, "orientation": image.orientation})
            for strip in image.strips():
                yield np.ascontiguousarray(strip).data.cast("B")
    except InvalidImage as error:
        yield _framed({"error": error.message})


def _framed(answer: Mapping[str, Any]) -> bytes:
    body = json.dumps(answer).encode()
    return _LENGTH.pack(len(body)) + body


def _bound_memory(limits: ImageLimits) -> None:
    """Limits the address space to its present size plus what an image within the limits needs."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    most = now + limits.memory + 2 * limits.max_bytes + _SLACK
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    main()
