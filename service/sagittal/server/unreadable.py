"""Requests that are refused before they are read: bytes that are no message, and fields that are too long."""

from collections.abc import AsyncGenerator, AsyncIterable, Callable
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError, Message

from sagittal.core.bounds import check_bounds
from sagittal.core.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Stands for a request that could not be read until there is a call to refuse."""

    why: str


def tolerant(parse: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Returns a deserializer that gives `Unreadable` where `parse` finds no message."""

    def read(data: bytes) -> Any:
        try:
            return parse(data)
        except DecodeError as error:
            return Unreadable(str(error))

    return read


def readable(request: Any) -> Any:
    """Returns the one request of a call. Raises InvalidRequest if it could not be read, or a field is too long."""
    if isinstance(parsed(request), Message):
        check_bounds(request)
    return request


def parsed(request: Any) -> Any:
    """Returns the request. Raises InvalidRequest if it could not be read."""
    if isinstance(request, Unreadable):
        raise InvalidRequest(f"the request cannot be read: {request.why}; send the message that this RPC takes")
    return request


async def all_readable(requests: AsyncIterable[Any]) -> AsyncGenerator[Any, None]:
    """Yields the requests of a stream. Raises InvalidRequest at the first that could not be read.

    Their fields are checked by who reads them: ExplainMany refuses a single request and goes on.
    """
    async for request in requests:
        yield parsed(request)
