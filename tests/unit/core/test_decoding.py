"""Images are decoded in processes with bounded memory and time, which may die."""

import io
import os
import re
import signal
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow
from prometheus_client import CollectorRegistry

from sagittal.core import images
from sagittal.core.decoding import BACKGROUND, Decoder, decoders
from sagittal.core.errors import InvalidImage, InvalidRequest
from sagittal.core.images import ImageLimits, decode
from sagittal.core.tensors import tensor_of
from sagittal.process.decoder_metrics import DecoderMetrics
from sagittal.v1 import tensor_pb2

MEBI = 2**20


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    decoder = Decoder(ImageLimits())
    yield decoder
    decoder.close()


def noise(width: int = 64, height: int = 48) -> Pillow.Image:
    return Pillow.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def encoded(picture: Pillow.Image, kind: str, **options: object) -> tensor_pb2.Image:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return tensor_pb2.Image(encoded=buffer.getvalue())


def number_of(decoder: Decoder) -> int:
    """Returns the number of a decoder's process, which answers one image first."""
    decoder.check(encoded(noise(), "PNG"))
    assert decoder._process is not None
    return decoder._process._process.pid


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_an_image_is_decoded_as_it_is_in_this_process(decoder: Decoder, kind: str, orientation: int) -> None:
    exif = Pillow.Exif()
    exif[0x0112] = orientation
    image = encoded(noise(), kind, exif=exif)
    decoder.check(image)
    assert np.array_equal(decoder.decode(image), decode(image, ImageLimits()))


def test_what_is_wrong_with_an_image_is_said_as_it_is_in_this_process(decoder: Decoder) -> None:
    whole = encoded(noise(), "PNG").encoded
    for data in (b"", b"hello", whole[:200], whole.replace(b"IDAT", b"IDAX")):
        image = tensor_pb2.Image(encoded=data)
        with pytest.raises(InvalidImage) as expected:
            decode(image, ImageLimits(), field="spec.image")
        for ask in (decoder.check, decoder.decode):
            with pytest.raises(InvalidImage) as caught:
                ask(image, field="spec.image")
            assert (str(caught.value), caught.value.field) == (str(expected.value), "spec.image.encoded")


def test_tensors_need_no_process(decoder: Decoder) -> None:
    pixels = tensor_of(np.zeros((4, 4, 3), np.uint8), tensor_pb2.DATA_TYPE_UINT8)
    assert decoder.decode(tensor_pb2.Image(pixels=pixels)).shape == (4, 4, 3)
    with pytest.raises(InvalidRequest):
        decoder.check(tensor_pb2.Image(model_input=pixels))


def test_a_process_that_was_killed_is_replaced(decoder: Decoder) -> None:
    killed = number_of(decoder)
    os.kill(killed, signal.SIGKILL)
    assert decoder.decode(encoded(noise(), "PNG")).shape == (48, 64, 3)
    assert number_of(decoder) != killed


def test_a_process_that_takes_too_long_is_killed_and_its_image_refused() -> None:
    decoder = Decoder(ImageLimits(seconds=0.2))
    stopped = number_of(decoder)
    os.kill(stopped, signal.SIGSTOP)
    with pytest.raises(InvalidImage, match="longer than"):
        decoder.check(encoded(noise(), "PNG"), field="spec.image")
    assert not Path(f"/proc/{stopped}").exists()
    assert number_of(decoder) != stopped
    decoder.close()


def test_a_process_that_ends_is_counted_by_its_reason(decoder: Decoder) -> None:
    registry = CollectorRegistry()
    DecoderMetrics(registry)

    def ended(reason: str) -> float:
        return registry.get_sample_value("sagittal_image_decoders_ended_total", {"reason": reason}) or 0.0

    killed, died = ended("killed"), ended("died")
    os.kill(number_of(decoder), signal.SIGKILL)
    decoder.check(encoded(noise(), "PNG"))
    assert (ended("killed"), ended("died")) == (killed, died + 1)
    slow = Decoder(ImageLimits(seconds=0.2))
    os.kill(number_of(slow), signal.SIGSTOP)
    with pytest.raises(InvalidImage):
        slow.check(encoded(noise(), "PNG"))
    assert (ended("killed"), ended("died")) == (killed + 1, died + 1)
    slow.close()


def test_all_decoders_but_the_first_run_in_the_background() -> None:
    own = os.getpriority(os.PRIO_PROCESS, 0)
    first, second = made = decoders(ImageLimits(seconds=29.0), 2)
    priorities = [os.getpriority(os.PRIO_PROCESS, number_of(each)) for each in (first, second)]
    assert priorities == [own, min(19, own + BACKGROUND)]
    for each in made:
        each.close()


def test_a_process_ends_with_its_decoder() -> None:
    decoder = Decoder(ImageLimits())
    number = number_of(decoder)
    decoder.close()
    assert not Path(f"/proc/{number}").exists()


def test_the_address_space_of_a_process_is_bounded(decoder: Decoder) -> None:
    number, limits = number_of(decoder), ImageLimits()
    (bound,) = re.findall(r"Max address space +(\d+)", Path(f"/proc/{number}/limits").read_text())
    assert limits.memory < int(bound) < 2 * limits.memory + 4 * limits.max_bytes


def bomb_of_webp(width: int, height: int) -> bytes:
    """A WebP of a few bytes with a large canvas."""
    tiny = encoded(Pillow.new("RGB", (1, 1)), "WEBP", lossless=True).encoded
    canvas = struct.pack("<II", 0, 0)[:4] + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"VP8X" + struct.pack("<I", 10) + canvas + tiny[12:]
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def test_a_webp_of_few_bytes_and_64_megapixels_is_refused_from_its_header(decoder: Decoder) -> None:
    image = tensor_pb2.Image(encoded=bomb_of_webp(8000, 8000))
    assert len(image.encoded) < 150
    before = peak(decoder)
    with pytest.raises(InvalidImage, match="17 bytes a pixel") as caught:
        decoder.check(image, field="spec.image")
    assert caught.value.field == "spec.image.encoded"
    assert peak(decoder) - before < 4 * MEBI


@pytest.mark.parametrize(
    ("kind", "options", "admitted"),
    [("PNG", {}, 60_000), ("JPEG", {}, 60_000), ("JPEG", {"progressive": True}, 24_000), ("WEBP", {}, 14_000)],
)
def test_pixels_are_bounded_by_the_memory_that_the_format_takes(
    kind: str, options: dict[str, object], admitted: int
) -> None:
    limits = ImageLimits(memory=images._DECODING_BYTES + 256_000)
    decode(encoded(noise(200, admitted // 200), kind, **options), limits)
    with pytest.raises(InvalidImage, match="bytes a pixel"):
        decode(encoded(noise(200, admitted // 200 * 6 // 5), kind, **options), limits)


def peak(decoder: Decoder) -> int:
    """Returns the most memory that a decoder's process has had since `forget_peak`."""
    number = number_of(decoder)
    (found,) = re.findall(r"VmHWM:\s+(\d+)", Path(f"/proc/{number}/status").read_text())
    return int(found) * 1024


def forget_peak(decoder: Decoder) -> None:
    Path(f"/proc/{number_of(decoder)}/clear_refs").write_text("5")


def rgba_16_bit(side: int) -> tensor_pb2.Image:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = np.full((side, 1 + side * 8), 5, np.uint8)
    rows[:, 0] = 0
    header = struct.pack(">IIBBBBB", side, side, 16, 6, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows.tobytes(), 1)) + chunk(b"IEND", b"")
    return tensor_pb2.Image(encoded=b"\x89PNG\r\n\x1a\n" + parts)


def of_format(kind: str, side: int) -> tensor_pb2.Image:
    tile = np.random.default_rng(0).integers(0, 256, (side // 20, side // 20, 3), dtype=np.uint8)
    picture = Pillow.fromarray(np.kron(tile, np.ones((20, 20, 1), np.uint8)))
    name, *options = kind.split()
    if "16-bit" in options:
        return rgba_16_bit(side)
    if options and options[0] in ("RGBA", "L", "P", "CMYK"):
        picture = picture.convert(options[0])
    chosen: dict[str, object] = {"WEBP": {"method": 0}, "PNG": {"compress_level": 1}}.get(name, {})
    if "progressive" in options:
        chosen |= {"progressive": True, "subsampling": 0}
    if "lossless" in options:
        chosen |= {"lossless": True}
    return encoded(picture, name, **chosen)


@pytest.mark.parametrize(
    ("kind", "bytes_a_pixel"),
    [
        ("JPEG", 4),
        ("JPEG CMYK", 4),
        ("JPEG progressive", 10),
        ("JPEG CMYK progressive", 12),
        ("PNG", 4),
        ("PNG RGBA", 4),
        ("PNG L", 4),
        ("PNG P", 4),
        ("PNG 16-bit", 4),
        ("WEBP", 17),
        ("WEBP lossless", 17),
        ("WEBP RGBA lossless", 17),
    ],
)
def test_a_decoded_image_takes_no_more_than_its_estimate(decoder: Decoder, kind: str, bytes_a_pixel: int) -> None:
    side = 2_000
    image = of_format(kind, side)
    forget_peak(decoder)
    before = peak(decoder)
    decoder.decode(image)
    taken = peak(decoder) - before - 2 * len(image.encoded)  # the file, as it is received and as it is read
    assert taken <= bytes_a_pixel * side**2 + images._DECODING_BYTES, f"{taken / side**2:.1f} bytes a pixel"


@pytest.mark.parametrize(("kind", "pixels"), [("PNG", 640 * 480), ("WEBP", 640 * 480)])
def test_the_time_of_a_check_is_known_from_the_header(kind: str, pixels: int) -> None:
    image = encoded(Pillow.new("RGB", (640, 480)), kind)
    assert images.pixels_to_read(image) == pixels
    assert images.pixels_to_read(tensor_pb2.Image(encoded=image.encoded[:30])) == pixels
    assert images.pixels_to_read(tensor_pb2.Image(encoded=image.encoded[:13])) == 0
    assert images.pixels_to_read(tensor_pb2.Image()) == 0
