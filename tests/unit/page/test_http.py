"""The page's HTTP server: a process whose server ended must end too, and not stay there without a page."""

import asyncio

import pytest

from sagittal.page.http import HttpServer, ServerEnded
from sagittal.page.settings import PageSettings


async def nothing(*_arguments: object) -> None:
    """An application that answers nothing."""


async def test_a_server_that_ends_unasked_ends_its_process_and_one_that_is_stopped_does_not() -> None:
    server = HttpServer(nothing, PageSettings(listen_port=0, drain=0))
    await server.start()
    stop = asyncio.Event()
    stop.set()
    await server.serve_until(stop)
    serving = asyncio.create_task(server.serve_until(asyncio.Event()))
    await server.stop()
    with pytest.raises(ServerEnded):
        await serving
