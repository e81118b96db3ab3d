"""What stands between programs: a proxy that delays, holds and resets connections, and a network that can be cut."""

import asyncio
import os
import secrets
import shutil
import subprocess
import threading
from collections.abc import Coroutine
from typing import Any

from e2e_stack import free_port


class Proxy:
    """Passes TCP connections to a port of this machine, on a thread of its own."""

    def __init__(self, target: int) -> None:
        self.port = free_port()
        self._target = target
        self._delay = 0.0
        self._pipes: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._passing = self._do(_set_event())
        self._server = self._do(asyncio.start_server(self._connect, "127.0.0.1", self.port))

    def delay(self, seconds: float) -> None:
        """Holds up every piece of data for so long."""
        self._delay = seconds

    def hold(self) -> None:
        """Passes nothing and breaks nothing, until `release`."""
        self._loop.call_soon_threadsafe(self._passing.clear)

    def release(self) -> None:
        """Passes what was held."""
        self._loop.call_soon_threadsafe(self._passing.set)

    def reset(self) -> None:
        """Breaks all connections without a word of farewell."""
        self._loop.call_soon_threadsafe(self._reset)

    def close(self) -> None:
        """Ends the proxy and its connections."""
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    def _reset(self) -> None:
        for pipe in tuple(self._pipes):
            pipe.transport.abort()

    async def _close(self) -> None:
        self._server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        self._reset()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._pipes.add(writer)
        try:
            there_reader, there = await asyncio.open_connection("127.0.0.1", self._target)
            self._pipes.add(there)
            try:
                async with asyncio.TaskGroup() as both:
                    both.create_task(self._pump(reader, there))
                    both.create_task(self._pump(there_reader, writer))
            finally:
                self._end(there)
        except* OSError:
            pass  # either side broke, which is what this is for
        finally:
            self._end(writer)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            await self._passing.wait()
            if self._delay:
                await asyncio.sleep(self._delay)
            writer.write(data)
            await writer.drain()
        raise ConnectionResetError("one side ended, and so does the other")

    def _end(self, writer: asyncio.StreamWriter) -> None:
        self._pipes.discard(writer)
        writer.transport.abort()


async def _set_event() -> asyncio.Event:
    event = asyncio.Event()
    event.set()
    return event


class Segment:
    """A network namespace with one cable to this machine, which can be pulled without either side knowing."""

    def __init__(self) -> None:
        self.namespace = f"sagittal-{secrets.token_hex(3)}"
        number = secrets.randbelow(16_000)
        network = f"10.231.{number // 64}.{number % 64 * 4}".rsplit(".", 1)
        self.here, there = (f"{network[0]}.{int(network[1]) + offset}" for offset in (1, 2))
        self._cable, far = f"sgh{secrets.token_hex(3)}", f"sgn{secrets.token_hex(3)}"
        _ip("netns", "add", self.namespace)
        _ip("link", "add", self._cable, "type", "veth", "peer", "name", far)
        _ip("link", "set", far, "netns", self.namespace)
        _ip("addr", "add", f"{self.here}/30", "dev", self._cable)
        _ip("link", "set", self._cable, "up")
        _ip("-n", self.namespace, "addr", "add", f"{there}/30", "dev", far)
        _ip("-n", self.namespace, "link", "set", far, "up")
        _ip("-n", self.namespace, "link", "set", "lo", "up")

    @staticmethod
    def why_not() -> str:
        """Returns why there can be none here; empty where there can."""
        if shutil.which("ip") is None:
            return "iproute2 is not installed"
        if os.geteuid() != 0:
            return "network namespaces need root"
        name = f"sagittal-{secrets.token_hex(3)}"
        try:
            _ip("netns", "add", name)
            _ip("netns", "del", name)
        except subprocess.CalledProcessError as error:
            return f"network namespaces cannot be made: {error.stderr.strip()}"
        return ""

    def cut(self) -> None:
        """Pulls the cable: packets vanish."""
        _ip("link", "set", self._cable, "down")

    def mend(self) -> None:
        """Plugs it in again."""
        _ip("link", "set", self._cable, "up")

    def close(self) -> None:
        """Takes everything away."""
        _ip("link", "del", self._cable)
        _ip("netns", "del", self.namespace)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
