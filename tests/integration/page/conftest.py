"""The page's program over a real service, on free ports."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest
import uvicorn

from sagittal.page.app import make_app
from sagittal.page.main import open_channel
from sagittal.page.settings import PageSettings

from ..service.support import Stack, eventually, running

Serve = Callable[..., AbstractAsyncContextManager[tuple[str, Stack]]]


@asynccontextmanager
async def page_over(stack: Stack, port: int = 0, **changes: object) -> AsyncIterator[str]:
    """The page on a port, 0 for a free one; yields its address."""
    settings = PageSettings(address=f"127.0.0.1:{stack.port}", **changes)  # type: ignore[arg-type]
    async with open_channel(settings) as channel:
        config = uvicorn.Config(make_app(channel, settings), port=port, lifespan="off", log_config=None)
        server = uvicorn.Server(config)
        server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign]
        serving = asyncio.create_task(server.serve())
        await eventually(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            server.should_exit = server.force_exit = True
            await serving


@pytest.fixture
def serve() -> Serve:
    """Starts a service and the page over it; keyword arguments are settings of the page."""

    @asynccontextmanager
    async def start(stack_settings=None, **changes: object) -> AsyncIterator[tuple[str, Stack]]:
        async with running(stack_settings) as stack, page_over(stack, **changes) as address:
            yield address, stack

    return start
