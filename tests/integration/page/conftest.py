"""The page's program over a real service, on free ports."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

from sagittal.page.app import make_app
from sagittal.page.http import HttpServer
from sagittal.page.main import open_channel
from sagittal.page.settings import PageSettings

from ..service.support import Stack, running

Serve = Callable[..., AbstractAsyncContextManager[tuple[str, Stack]]]


@asynccontextmanager
async def page_over(stack: Stack, port: int = 0, *, inside: bool = False, **changes: object) -> AsyncIterator[str]:
    """The page on a port, 0 for a free one, over a connection to the service or inside it; yields its address."""
    settings = PageSettings(
        **{"address": f"127.0.0.1:{stack.port}", "listen_port": port, "drain": 0} | changes  # type: ignore[arg-type]
    )
    async with open_channel(settings) as connection:
        server = HttpServer(make_app(stack.service.channel if inside else connection, settings), settings)
        try:
            yield f"http://127.0.0.1:{await server.start()}"
        finally:
            await server.stop()


@pytest.fixture
def serve() -> Serve:
    """Starts a service and the page over it; keyword arguments are settings of the page."""

    @asynccontextmanager
    async def start(stack_settings=None, **changes: object) -> AsyncIterator[tuple[str, Stack]]:
        async with running(stack_settings) as stack, page_over(stack, **changes) as address:
            yield address, stack

    return start
