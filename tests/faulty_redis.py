"""A proxy in front of a real Redis that answers chosen operations with an error of our choice, and passes the rest."""

import asyncio
import hashlib
import threading
from collections import Counter
from collections.abc import Collection, Coroutine
from typing import Any

from sagittal.queue.scripts import load_script, script_names

#: Every plain command that the programs send beside scripts.
COMMANDS = frozenset({"BLPOP", "EXISTS", "GET", "INFO", "PING", "SET", "SUBSCRIBE", "TTL"})

#: Every operation on Redis: what a reply can be the answer to.
OPERATIONS = frozenset(script_names()) | COMMANDS


class FaultyRedis:
    """Listens on a port of its own, in a thread of its own. Safe from any thread."""

    def __init__(self, target: int) -> None:
        """Passes everything on to the port `target` of this machine."""
        self._target = target
        self._names = {load_script(name).digest: name for name in script_names()}
        self._armed: Counter[str] = Counter()
        self._reply = b""
        self._lock = threading.Lock()
        self.hits: Counter[str] = Counter()
        """Operations that were answered with an error since `arm`."""
        self.connections = 0
        """Connections that were made to it."""
        self._writers: set[asyncio.StreamWriter] = set()
        self._listening: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server: asyncio.Server = self._do(asyncio.start_server(self._connect, "127.0.0.1", 0))
        self.port = int(self._server.sockets[0].getsockname()[1])

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"redis://127.0.0.1:{self.port}/0"

    def arm(self, reply: str, operations: Collection[str], *, times: int = 1) -> None:
        """Answers the next calls of these operations with an error, each as many times."""
        with self._lock:
            self._reply = reply.encode()
            self._armed = Counter(dict.fromkeys(operations, times))
            self.hits = Counter()

    def disarm(self) -> None:
        """Passes everything on."""
        with self._lock:
            self._armed = Counter()

    def end_subscriptions(self) -> None:
        """Breaks the connections that listen, so that they are made again."""
        self._loop.call_soon_threadsafe(self._end_subscriptions)

    def close(self) -> None:
        """Ends the proxy and its connections."""
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    def _end_subscriptions(self) -> None:
        for writer in tuple(self._listening):
            writer.transport.abort()

    async def _close(self) -> None:
        self._server.close()
        for writer in tuple(self._writers):
            writer.transport.abort()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        there_reader, there = await asyncio.open_connection("127.0.0.1", self._target)
        self._writers |= {writer, there}
        passing = asyncio.create_task(self._pass(there_reader, writer))
        try:
            while True:
                raw, words = await _read_command(reader)
                if words[0].upper() == b"SUBSCRIBE":
                    self._listening.add(writer)
                fault = self._fault(words)
                (there if fault is None else writer).write(raw if fault is None else fault)
                await (there if fault is None else writer).drain()
        except (asyncio.IncompleteReadError, OSError):
            pass  # the client has gone
        finally:
            passing.cancel()
            for each in (writer, there):
                self._writers.discard(each)
                self._listening.discard(each)
                each.transport.abort()

    @staticmethod
    async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        writer.transport.abort()

    def _fault(self, words: list[bytes]) -> bytes | None:
        operation = self._operation(words)
        with self._lock:
            if self._armed[operation] <= 0:
                return None
            self._armed[operation] -= 1
            self.hits[operation] += 1
            return b"-" + self._reply + b"\r\n"

    def _operation(self, words: list[bytes]) -> str:
        command = words[0].decode().upper()
        if command == "EVALSHA":
            return self._names.get(words[1].decode(), "unknown script")
        if command == "EVAL":
            return self._names.get(hashlib.sha1(words[1], usedforsecurity=False).hexdigest(), "unknown script")
        return command


async def _read_command(reader: asyncio.StreamReader) -> tuple[bytes, list[bytes]]:
    """Returns a command as it came, and its words."""
    raw = await reader.readuntil(b"\r\n")
    words = []
    for _ in range(int(raw[1:])):
        head = await reader.readuntil(b"\r\n")
        body = await reader.readexactly(int(head[1:]) + 2)
        raw += head + body
        words.append(body[:-2])
    return raw, words
