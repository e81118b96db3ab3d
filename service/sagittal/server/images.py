"""Checks callers' images in a few child processes, which the tenants share fairly."""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from sagittal.core.decoding import Decoder, decoders
from sagittal.core.images import ImageLimits, pixels_to_read
from sagittal.core.jobs import content_key
from sagittal.v1 import tensor_pb2


class Turns:
    """Grants free processes to waiting tenants in rotation.

    Large work never takes the last process, so one is always free for work that takes milliseconds.
    """

    def __init__(self, processes: int) -> None:
        self._free = processes
        self._free_for_large = max(1, processes - 1)
        self._waiting: OrderedDict[tuple[str, bool], deque[asyncio.Future[None]]] = OrderedDict()
        """Waiting turns by tenant and size; the next tenant comes first."""

    async def take(self, tenant: str, *, large: bool) -> None:
        """Waits for a process; `release` returns it."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault((tenant, large), deque()).append(turn)
        self._grant()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.release(large=large)  # the turn was granted at the same moment
            raise

    def release(self, *, large: bool) -> None:
        """Returns a process."""
        self._free += 1
        self._free_for_large += large
        self._grant()

    def _grant(self) -> None:
        while self._free and (chosen := self._next()) is not None:
            turn, large = chosen
            if not turn.done():  # otherwise its caller disconnected
                self._free -= 1
                self._free_for_large -= large
                turn.set_result(None)

    def _next(self) -> tuple[asyncio.Future[None], bool] | None:
        """Removes and returns the oldest turn of the next tenant, and moves that tenant to the end."""
        key = next((key for key in self._waiting if self._free_for_large or not key[1]), None)
        if key is None:
            return None
        waiting = self._waiting[key]
        turn = waiting.popleft()
        self._waiting.move_to_end(key)
        if not waiting:
            del self._waiting[key]
        return turn, key[1]


T = TypeVar("T")

#: Pixels above which a request's images count as large; reading that many takes about 50 ms.
LARGE_PIXELS = 4_000_000


@dataclass(frozen=True, slots=True)
class Examined:
    """Images that passed all checks."""

    images: dict[str, bytes]
    """Serialized `sagittal.v1.Image` messages by name."""
    content_key: str
    """SHA-256 over images and question; empty if there is no question."""


class Pictures:
    """Checks callers' images, at most `processes` at a time."""

    def __init__(self, limits: ImageLimits, processes: int) -> None:
        self._turns = Turns(processes)
        self._decoders = decoders(limits, processes)
        self._free = set(range(processes))
        self._choosing = Lock()
        self._pool = ThreadPoolExecutor(processes, thread_name_prefix="pictures")

    async def examine(
        self,
        pictures: Mapping[str, tuple[str, tensor_pb2.Image]],
        input_size: int,
        question: Mapping[str, Any] | None,
        tenant: str,
    ) -> Examined:
        """Reads the images to their end and returns them serialized, with the content key of the question.

        Args:
            pictures: Images by name, each with its path in the request.
            input_size: Side in pixels of the model's input; 0 if unknown.
            question: Everything else that the answer depends on; None if the answer is never shared.
            tenant: Tenant that sent them.

        Raises:
            InvalidImage, InvalidRequest: an image is damaged or exceeds the limits, or a tensor is invalid.
            Unavailable: no decoding process could be started.
        """
        large = sum(pixels_to_read(picture) for _, picture in pictures.values()) > LARGE_PIXELS
        return await self._in_turn(tenant, large, lambda: self._examine(pictures, input_size, question, large=large))

    async def draw(self, source: tensor_pb2.Image, draw: Callable[[NDArray[np.uint8]], T], tenant: str) -> T:
        """Decodes an image that was admitted before, and returns what is drawn from it.

        Args:
            source: The image, not as a `model_input`.
            draw: Takes uint8 RGB of shape (height, width, 3), in a thread.
            tenant: Whose image it is.

        Raises:
            InvalidImage: the image is beyond limits that were higher when it was admitted.
            Unavailable: there is no process that could decode it.
        """
        large = pixels_to_read(source) > LARGE_PIXELS
        return await self._in_turn(tenant, large, lambda: draw(self._decode(source, large=large)))

    async def _in_turn(self, tenant: str, large: bool, work: Callable[[], T]) -> T:
        await self._turns.take(tenant, large=large)
        working = asyncio.get_running_loop().run_in_executor(self._pool, work)

        def end_turn(ended: asyncio.Future[T]) -> None:
            self._turns.release(large=large)
            if not ended.cancelled():
                ended.exception()  # marks it as retrieved, in case the caller disconnected

        working.add_done_callback(end_turn)
        return await asyncio.shield(working)  # the turn ends with the work, even if the caller disconnects

    def close(self) -> None:
        """Stops the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    @contextmanager
    def _decoder(self, *, large: bool) -> Iterator[Decoder]:
        """Takes a free decoder, for a large image rather one that runs in the background."""
        with self._choosing:
            number = (max if large else min)(self._free)
            self._free.remove(number)
        try:
            yield self._decoders[number]
        finally:
            with self._choosing:
                self._free.add(number)

    def _decode(self, source: tensor_pb2.Image, *, large: bool) -> NDArray[np.uint8]:
        with self._decoder(large=large) as decoder:
            return decoder.decode(source)

    def _examine(
        self,
        pictures: Mapping[str, tuple[str, tensor_pb2.Image]],
        input_size: int,
        question: Mapping[str, Any] | None,
        *,
        large: bool,
    ) -> Examined:
        images = {}
        with self._decoder(large=large) as decoder:
            for name, (field, picture) in pictures.items():
                decoder.check(picture, field=field, input_size=input_size)
                images[name] = picture.SerializeToString(deterministic=True)
        return Examined(images, "" if question is None else content_key(question, images))
