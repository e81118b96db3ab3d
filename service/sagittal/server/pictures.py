"""Pictures of callers, examined on a few threads so that the event loop stays free."""

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from sagittal.core.identity import content_key
from sagittal.core.images import ImageLimits, check
from sagittal.v1 import tensor_pb2


@dataclass(frozen=True, slots=True)
class Examined:
    """Pictures that are known to be good."""

    images: dict[str, bytes]
    """Serialized `sagittal.v1.Image` messages by name."""
    content_key: str
    """SHA-256 over the pictures and the question; empty where no question was given."""


class Pictures:
    """Examines pictures, `threads` at a time."""

    def __init__(self, limits: ImageLimits, threads: int) -> None:
        self._limits = limits
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="pictures")

    async def examine(
        self, pictures: Mapping[str, tuple[str, tensor_pb2.Image]], input_size: int, question: Mapping[str, Any] | None
    ) -> Examined:
        """Reads the pictures to their end, and returns them serialized, with the key of the question about them.

        Args:
            pictures: By name, each with its path in the request.
            input_size: Side in pixels of the model's input; 0 where it is not known.
            question: What else the answer depends on; None where it is shared with nobody.

        Raises:
            InvalidImage, InvalidRequest: one is damaged, beyond the limits, or a tensor that makes no sense.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, self._examine, pictures, input_size, question)

    def close(self) -> None:
        """Lets the threads end."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _examine(
        self, pictures: Mapping[str, tuple[str, tensor_pb2.Image]], input_size: int, question: Mapping[str, Any] | None
    ) -> Examined:
        images = {}
        for name, (field, picture) in pictures.items():
            check(picture, self._limits, field=field, input_size=input_size)
            images[name] = picture.SerializeToString(deterministic=True)
        return Examined(images, "" if question is None else content_key(question, images))
