"""As much of HTTP/2 as a rude client needs, or one that floods: frames, and headers that are not compressed."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, CONTINUATION = 0, 1, 3, 4, 6, 7, 9
ACK, END_STREAM, END_HEADERS = 1, 1, 4
ENHANCE_YOUR_CALM = 11


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    """Returns a frame."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def header_block(path: str, **more: str) -> bytes:
    """Returns the headers of a gRPC call, as literals."""
    fields = {
        ":method": "POST", ":scheme": "http", ":path": path, ":authority": "localhost",
        "content-type": "application/grpc", "te": "trailers", **more,
    }  # fmt: skip
    return b"".join(b"\0" + _text(name) + _text(value) for name, value in fields.items())


def _text(value: str) -> bytes:
    assert len(value) < 127
    return bytes([len(value)]) + value.encode()


@dataclass(frozen=True, slots=True)
class RudeClient:
    """A connection on which everything may be sent."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def send(self, *parts: bytes) -> None:
        """Sends bytes."""
        self.writer.write(b"".join(parts))

    async def streams(self) -> AsyncIterator[tuple[int, int, int, bytes]]:
        """Yields kind, flags, stream and payload of the server's frames, until it ends the connection."""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await self.reader.readexactly(9)
                payload = await self.reader.readexactly(int.from_bytes(head[:3]))
                yield head[3], head[4], int.from_bytes(head[5:]), payload

    async def frames(self) -> AsyncIterator[tuple[int, int, bytes]]:
        """Yields kind, flags and payload of the server's frames, until it ends the connection."""
        async for kind, flags, _, payload in self.streams():
            yield kind, flags, payload

    async def frames_until(self, wanted: int) -> AsyncIterator[tuple[int, int, bytes]]:
        """Yields frames up to the first of a kind, with it."""
        async for kind, flags, payload in self.frames():
            yield kind, flags, payload
            if kind == wanted:
                return

    async def closed(self) -> None:
        """Returns when the server has ended the connection."""
        async for _ in self.frames():
            pass


@contextlib.asynccontextmanager
async def connect(port: int, *, polite: bool = True) -> AsyncIterator[RudeClient]:
    """A connection that has shaken hands, unless it is not `polite`."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    client = RudeClient(reader, writer)
    if polite:
        client.send(PREFACE, frame(SETTINGS), frame(SETTINGS, ACK))
    try:
        yield client
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def flood(port: int, path: str, message: bytes, *, connections: int, calls: int, streams: int) -> int:
    """Makes calls on each of many connections, some at a time; returns how many were answered by a message."""
    request = struct.pack(">BI", 0, len(message)) + message
    return sum(await asyncio.gather(*(_call(port, path, request, calls, streams) for _ in range(connections))))


async def _call(port: int, path: str, request: bytes, calls: int, streams: int) -> int:
    """Makes the calls of one connection."""
    waiting = iter(range(1, 2 * calls, 2))
    with_message: set[int] = set()
    ended = answered = 0
    async with connect(port) as client:

        def begin() -> None:
            if (stream := next(waiting, None)) is not None:
                client.send(
                    frame(HEADERS, END_HEADERS, stream, header_block(path)), frame(DATA, END_STREAM, stream, request)
                )

        for _ in range(streams):
            begin()
        async for kind, flags, stream, payload in client.streams():
            if kind == PING and not flags & ACK:
                client.send(frame(PING, ACK, payload=payload))
            if kind == DATA and payload:
                with_message.add(stream)
            if kind == RST_STREAM or (kind in (HEADERS, DATA) and flags & END_STREAM):
                ended += 1
                answered += stream in with_message and kind == HEADERS
                begin()
            if ended == calls:
                break
    return answered
