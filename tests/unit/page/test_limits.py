"""The page's limits: requests at the same time, bytes of bodies, and the time to end after SIGTERM."""

import asyncio

import pytest
from connectrpc.errors import ConnectError

from sagittal.page.http import Limits

SCOPE = {"type": "http", "path": "/", "method": "POST", "headers": []}


def limits(app, calls=10, body_bytes=100) -> Limits:
    return Limits(app, calls=calls, body_bytes=body_bytes)


async def answered(app, body: bytes = b"") -> int:
    """Returns the status of a request; 0 if it was not answered."""
    sent = []

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message):
        sent.append(message)

    await app(SCOPE, receive, send)
    return sent[0]["status"] if sent else 0


async def test_a_request_beyond_the_limit_is_told_to_come_back() -> None:
    go = asyncio.Event()

    async def waits(_scope, _receive, send):
        await go.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})

    app = limits(waits, calls=1)
    first = asyncio.create_task(answered(app))
    await asyncio.sleep(0)
    assert await answered(app) == 503
    go.set()
    assert await first == 200
    assert await answered(app) == 200


async def test_bodies_of_open_requests_are_limited_together() -> None:
    go = asyncio.Event()

    async def reads(_scope, receive, _send):
        await receive()
        await go.wait()

    app = limits(reads)
    first = asyncio.create_task(answered(app, b"x" * 60))
    await asyncio.sleep(0)
    refused = []

    async def reads_too_much(_scope, receive, _send):
        with pytest.raises(ConnectError, match="try again") as error:
            await receive()
        refused.append(error.value.code.value)

    app._app = reads_too_much
    await answered(app, b"x" * 60)
    assert refused == ["resource_exhausted"]
    go.set()
    await first
    app._app = reads
    await answered(app, b"x" * 60)  # there is room again


async def test_a_failure_is_answered_without_its_reason() -> None:
    async def fails(_scope, _receive, _send):
        raise RuntimeError("secret")

    assert await answered(limits(fails)) == 500


async def test_a_drain_refuses_what_is_new_and_ends_what_stays() -> None:
    async def stays(_scope, _receive, _send):
        await asyncio.sleep(3600)

    app = limits(stays)
    open_request = asyncio.create_task(answered(app))
    await asyncio.sleep(0)
    draining = asyncio.create_task(app.drain(0.05))
    await asyncio.sleep(0)
    assert await answered(app) == 503
    await draining
    assert open_request.cancelled()
