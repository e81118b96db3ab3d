"""Pictures are examined apart from the event loop, so many at a time."""

import asyncio
import io
import threading

import pytest
from PIL import Image as Pillow

from sagittal.core.errors import InvalidImage
from sagittal.core.images import ImageLimits
from sagittal.server import images as examining
from sagittal.server.images import Pictures
from sagittal.v1 import tensor_pb2

#: Far more than anything here takes, in seconds.
PATIENCE = 30.0


def picture(width: int = 8, height: int = 8) -> tensor_pb2.Image:
    buffer = io.BytesIO()
    Pillow.new("RGB", (width, height), "red").save(buffer, "PNG")
    return tensor_pb2.Image(encoded=buffer.getvalue())


class Slow:
    """A decoder whose images take until they may end."""

    def __init__(self) -> None:
        self.begun, self.go_on = threading.Semaphore(0), threading.Event()
        self.threads: list[threading.Thread] = []
        self.fields: list[str] = []

    def check(self, _image: tensor_pb2.Image, *, field: str, input_size: int) -> None:
        self.threads.append(threading.current_thread())
        self.fields.append(field)
        self.begun.release()
        assert field == "quick" or self.go_on.wait(PATIENCE), "the event loop was held up"


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Slow:
    slow = Slow()
    monkeypatch.setattr(examining, "decoders", lambda _limits, count: [slow] * count)
    return slow


async def test_a_picture_that_takes_long_holds_the_event_loop_up_for_nobody(slow: Slow) -> None:
    pool = Pictures(ImageLimits(), 2)
    examined = [asyncio.create_task(pool.examine({"image": ("image", picture())}, 0, None, "ann")) for _ in range(3)]
    for _ in range(2):
        assert await asyncio.to_thread(slow.begun.acquire, timeout=PATIENCE)
    assert not await asyncio.to_thread(slow.begun.acquire, timeout=0.05), "the third waits for its turn"
    slow.go_on.set()
    await asyncio.wait_for(asyncio.gather(*examined), PATIENCE)
    assert threading.main_thread() not in slow.threads
    pool.close()


async def test_sixty_large_pictures_of_a_tenant_hold_up_no_small_one_of_another(slow: Slow) -> None:
    pool = Pictures(ImageLimits(), 2)
    large = picture(4_000, 4_000)
    flood = [asyncio.create_task(pool.examine({"image": ("slow", large)}, 0, None, "flood")) for _ in range(60)]
    assert await asyncio.to_thread(slow.begun.acquire, timeout=PATIENCE)
    for _ in range(3):
        await asyncio.wait_for(pool.examine({"image": ("quick", picture())}, 0, None, "ann"), PATIENCE)
    assert slow.fields == ["slow", "quick", "quick", "quick"]
    slow.go_on.set()
    await asyncio.wait_for(asyncio.gather(*flood), PATIENCE)
    pool.close()


async def test_a_caller_that_went_away_frees_its_process_when_its_picture_is_read(slow: Slow) -> None:
    pool = Pictures(ImageLimits(), 1)
    gone = asyncio.create_task(pool.examine({"image": ("slow", picture())}, 0, None, "ann"))
    assert await asyncio.to_thread(slow.begun.acquire, timeout=PATIENCE)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    waiting = asyncio.create_task(pool.examine({"image": ("quick", picture())}, 0, None, "ann"))
    assert not (await asyncio.wait({waiting}, timeout=0.05))[0]
    slow.go_on.set()
    await asyncio.wait_for(waiting, PATIENCE)
    pool.close()


async def test_a_picture_that_is_refused_names_its_place() -> None:
    pool = Pictures(ImageLimits(max_pixels=63), 1)
    with pytest.raises(InvalidImage) as caught:
        await pool.examine({"image": ("spec.image", picture())}, 0, None, "ann")
    assert caught.value.field == "spec.image.encoded"
    pool.close()


async def test_the_key_of_an_answer_depends_on_picture_and_question() -> None:
    pool = Pictures(ImageLimits(), 1)
    asked = {"image": ("image", picture())}
    questions = ({"seed": 1}, {"seed": 1}, {"seed": 2})
    keys = [(await pool.examine(asked, 0, question, "ann")).content_key for question in questions]
    assert keys[0] == keys[1] != keys[2]
    assert (await pool.examine(asked, 0, None, "ann")).content_key == ""
    pool.close()


async def test_large_images_are_read_in_the_background_and_small_ones_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Slow(), Slow()
    monkeypatch.setattr(examining, "decoders", lambda _limits, _count: [first, second])
    for each in (first, second):
        each.go_on.set()
    pool = Pictures(ImageLimits(), 2)
    for width, chosen in ((3000, second), (8, first), (3000, second)):
        await pool.examine({"image": ("image", picture(width, width))}, 0, None, "ann")
        assert chosen.fields.pop() == "image"
    assert not first.fields
    assert not second.fields
    pool.close()
