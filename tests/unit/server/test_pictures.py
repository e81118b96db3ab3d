"""Pictures are examined apart from the event loop, so many at a time."""

import asyncio
import io
import threading

import pytest
from PIL import Image as Pillow

from sagittal.core.errors import InvalidImage
from sagittal.core.images import ImageLimits
from sagittal.server import pictures as examining
from sagittal.server.pictures import Pictures
from sagittal.v1 import tensor_pb2

#: Far more than anything here takes, in seconds.
PATIENCE = 30.0


def picture() -> tensor_pb2.Image:
    buffer = io.BytesIO()
    Pillow.new("RGB", (8, 8), "red").save(buffer, "PNG")
    return tensor_pb2.Image(encoded=buffer.getvalue())


async def test_a_picture_that_takes_long_holds_the_event_loop_up_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    threads, begun, go_on = [], threading.Semaphore(0), threading.Event()

    def slow(*_: object, **__: object) -> None:
        threads.append(threading.current_thread())
        begun.release()
        assert go_on.wait(PATIENCE), "the event loop was held up"

    monkeypatch.setattr(examining, "check", slow)
    pool = Pictures(ImageLimits(), threads=2)
    examined = [asyncio.create_task(pool.examine({"image": ("image", picture())}, 0, None)) for _ in range(3)]
    for _ in range(2):
        assert await asyncio.to_thread(begun.acquire, timeout=PATIENCE)
    assert not await asyncio.to_thread(begun.acquire, timeout=0.05), "the third waits for its turn"
    go_on.set()
    await asyncio.wait_for(asyncio.gather(*examined), PATIENCE)
    assert threading.main_thread() not in threads
    pool.close()


async def test_a_picture_that_is_refused_names_its_place() -> None:
    pool = Pictures(ImageLimits(max_pixels=63), threads=1)
    with pytest.raises(InvalidImage) as caught:
        await pool.examine({"image": ("spec.image", picture())}, 0, None)
    assert caught.value.field == "spec.image.encoded"
    pool.close()


async def test_the_key_of_an_answer_depends_on_picture_and_question() -> None:
    pool = Pictures(ImageLimits(), threads=1)
    asked = {"image": ("image", picture())}
    keys = [
        (await pool.examine(asked, 0, question)).content_key for question in ({"seed": 1}, {"seed": 1}, {"seed": 2})
    ]
    assert keys[0] == keys[1] != keys[2]
    assert (await pool.examine(asked, 0, None)).content_key == ""
    pool.close()
