"""As much of HTTP/2 as a rude client needs: a preface, frames, and headers that are not compressed."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, CONTINUATION = 1, 3, 4, 6, 7, 9
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

    async def frames(self) -> AsyncIterator[tuple[int, int, bytes]]:
        """Yields kind, flags and payload of what the server sends, until it ends the connection."""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await self.reader.readexactly(9)
                length, kind, flags = int.from_bytes(head[:3]), head[3], head[4]
                yield kind, flags, await self.reader.readexactly(length)

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
