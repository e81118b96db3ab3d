import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image as Pillow

from sagittal.core.errors import InvalidImage, InvalidRequest
from sagittal.core.images import ImageLimits, check, decode, model_input
from sagittal.v1 import tensor_pb2

LIMITS = ImageLimits()
RED, WHITE = (255, 0, 0), (255, 255, 255)


def encoded(picture: Pillow.Image, kind: str = "PNG", **options: object) -> tensor_pb2.Image:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return tensor_pb2.Image(encoded=buffer.getvalue())


def noise(width: int = 64, height: int = 48) -> Pillow.Image:
    return Pillow.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def decoded(image: tensor_pb2.Image) -> np.ndarray:
    check(image, LIMITS)
    return decode(image, LIMITS)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_every_format_gives_rgb_of_the_pictures_size(kind: str) -> None:
    array = decoded(encoded(noise(), kind))
    assert array.shape == (48, 64, 3)
    assert array.dtype == np.uint8
    assert array.flags.writeable


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_lossless_pictures_come_back_as_they_were(kind: str) -> None:
    array = decoded(encoded(noise(), kind, lossless=True))
    assert np.array_equal(array, np.asarray(noise()))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_one_pixel_is_a_picture(kind: str) -> None:
    assert decoded(encoded(Pillow.new("RGB", (1, 1), "white"), kind)).shape == (1, 1, 3)


def test_8000_by_8000_is_just_admitted() -> None:
    image = encoded(Pillow.new("L", (8000, 8000), 77), "PNG", compress_level=1)
    assert decoded(image).shape == (8000, 8000, 3)


def test_grey_has_three_equal_channels() -> None:
    assert decoded(encoded(Pillow.new("L", (2, 2), 77)))[0, 0].tolist() == [77, 77, 77]


def test_one_bit_pictures_are_black_and_white() -> None:
    assert decoded(encoded(Pillow.new("1", (2, 2), 1)))[0, 0].tolist() == [255, 255, 255]


def test_grey_jpeg_is_read() -> None:
    assert abs(int(decoded(encoded(Pillow.new("L", (9, 9), 77), "JPEG"))[4, 4, 0]) - 77) <= 1


def test_16_bit_grey_keeps_its_brightness() -> None:
    levels = Pillow.fromarray(np.full((2, 2), 0x8000, dtype=np.uint16))
    assert decoded(encoded(levels))[0, 0].tolist() == [128, 128, 128]


def test_palette_becomes_its_colours() -> None:
    assert decoded(encoded(Pillow.new("RGB", (2, 2), RED).convert("P")))[0, 0].tolist() == list(RED)


def test_palette_with_a_transparent_entry_is_white_there() -> None:
    picture = Pillow.new("P", (2, 2), 0)
    picture.putpalette([*RED, 0, 0, 255])
    assert decoded(encoded(picture, transparency=0))[0, 0].tolist() == list(WHITE)


def test_a_transparent_colour_of_rgb_is_white() -> None:
    assert decoded(encoded(Pillow.new("RGB", (2, 2), RED), transparency=RED))[0, 0].tolist() == list(WHITE)


def test_a_transparent_level_of_16_bit_grey_is_white() -> None:
    levels = Pillow.fromarray(np.full((2, 2), 500, dtype=np.uint16))
    assert decoded(encoded(levels, transparency=500))[0, 0].tolist() == list(WHITE)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_alpha_is_composed_over_white(kind: str) -> None:
    picture = Pillow.new("RGBA", (2, 1), (255, 0, 0, 255))
    picture.putpixel((1, 0), (255, 0, 0, 0))
    array = decoded(encoded(picture, kind, lossless=True))
    assert array[0].tolist() == [list(RED), list(WHITE)]


def test_half_transparent_black_is_grey() -> None:
    level = decoded(encoded(Pillow.new("LA", (1, 1), (0, 128))))[0, 0, 0]
    assert abs(int(level) - 127) <= 1


def test_cmyk_becomes_rgb() -> None:
    red = decoded(encoded(Pillow.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"))[4, 4]
    assert red[0] > 200
    assert max(red[1], red[2]) < 60


@pytest.mark.parametrize(("orientation", "corner"), [(1, (0, 0)), (2, (0, 3)), (3, (1, 3)), (4, (1, 0))])
@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_exif_mirrors_and_turns(kind: str, orientation: int, corner: tuple[int, int]) -> None:
    assert bright_corner(kind, orientation, (2, 4)) == corner


@pytest.mark.parametrize(("orientation", "corner"), [(5, (0, 0)), (6, (0, 1)), (7, (3, 1)), (8, (3, 0))])
@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_exif_quarter_turns_swap_the_sides(kind: str, orientation: int, corner: tuple[int, int]) -> None:
    assert bright_corner(kind, orientation, (4, 2)) == corner


def bright_corner(kind: str, orientation: int, shape: tuple[int, int]) -> tuple[int, int]:
    picture = Pillow.new("RGB", (4, 2), "black")
    picture.putpixel((0, 0), WHITE)
    exif = Pillow.Exif()
    exif[0x0112] = orientation
    array = decoded(encoded(picture, kind, exif=exif, lossless=True))
    assert array.shape == (*shape, 3)
    row, column = np.argwhere(array[:, :, 0] == 255)[0]
    return int(row), int(column)


def test_a_jpeg_is_turned_as_its_exif_says() -> None:
    exif = Pillow.Exif()
    exif[0x0112] = 6
    assert decoded(encoded(noise(64, 48), "JPEG", exif=exif)).shape == (64, 48, 3)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_does_not_spoil_the_picture() -> None:
    image = encoded(noise(), "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff")
    assert decoded(image).shape == (48, 64, 3)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_the_first_frame_of_an_animation_counts(kind: str) -> None:
    frames = [Pillow.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    image = encoded(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
    assert decoded(image)[0, 0].tolist() == list(RED)


def refused(image: tensor_pb2.Image, limits: ImageLimits = LIMITS) -> InvalidImage:
    with pytest.raises(InvalidImage) as checked:
        check(image, limits, field="spec.image")
    with pytest.raises(InvalidImage) as read:
        decode(image, limits, field="spec.image")
    assert checked.value.field == read.value.field == "spec.image.encoded"
    return read.value


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9])
def test_a_file_cut_short_is_refused(kind: str, kept: float) -> None:
    whole = encoded(noise(), kind).encoded
    error = refused(tensor_pb2.Image(encoded=whole[: int(len(whole) * kept)]))
    assert "damaged or cut short" in error.message


@pytest.mark.parametrize("data", [b"\x00", b"hello, I am no picture", b"GIF89a" + bytes(40), b"\xff\xd8\xff"])
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    refused(tensor_pb2.Image(encoded=data))


def test_a_png_whose_data_is_damaged_is_refused_though_its_checksums_are_right() -> None:
    file = encoded(noise()).encoded
    (length,) = struct.unpack_from(">I", file, 33)
    data = file[41 : 41 + length]
    chunk = b"IDAT" + data[:80] + data[100:]
    damaged = file[:33] + struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) + file[-12:]
    with pytest.raises(InvalidImage, match="damaged or cut short"):
        decode(tensor_pb2.Image(encoded=damaged), LIMITS)


def test_an_empty_file_is_refused() -> None:
    assert "empty" in refused(tensor_pb2.Image(encoded=b"")).message


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "BMP"])
def test_other_formats_are_refused_and_the_admitted_ones_named(kind: str) -> None:
    assert "JPEG, PNG or WebP" in refused(encoded(noise(), kind)).message


def bomb_png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def bomb_webp(width: int, height: int) -> bytes:
    canvas = bytes(4) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + canvas
    return b"RIFF" + struct.pack("<I", len(body)) + body


def bomb_jpeg(width: int, height: int) -> bytes:
    whole = encoded(noise(16, 16), "JPEG").encoded
    start = whole.index(b"\xff\xc0") + 5
    return whole[:start] + struct.pack(">HH", height, width) + whole[start + 4 :]


@pytest.mark.parametrize("side", [8001, 10_000, 16_000, 60_000])
@pytest.mark.parametrize("bomb", [bomb_png, bomb_webp, bomb_jpeg])
def test_a_decompression_bomb_is_refused_from_its_header(bomb: object, side: int) -> None:
    error = refused(tensor_pb2.Image(encoded=bomb(side, side)))  # type: ignore[operator]
    assert "at most 64,000,000 are allowed" in error.message
    assert f"{side:,} x {side:,}" in error.message


def test_too_many_bytes_are_refused() -> None:
    error = refused(encoded(noise()), ImageLimits(max_bytes=100))
    assert "give at most 100" in error.message


def test_too_many_frames_are_refused() -> None:
    frames = [Pillow.new("RGB", (4, 4), (50 * value, 0, 0)) for value in range(5)]
    image = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    assert "5 frames" in refused(image, ImageLimits(max_frames=4)).message


def test_pixels_are_taken_as_they_are() -> None:
    array = np.asarray(noise())
    image = tensor_pb2.Image(pixels=tensor(array))
    assert np.array_equal(decoded(image), array)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_pixels_between_0_and_1_become_bytes(dtype: type) -> None:
    array = np.array([[[0.0, 0.5, 1.0]]], dtype=dtype)
    assert decoded(tensor_pb2.Image(pixels=tensor(array)))[0, 0].tolist() == [0, 128, 255]


def test_a_model_input_becomes_float32() -> None:
    array = np.linspace(-2, 2, 3 * 4 * 4, dtype=np.float16).reshape(3, 4, 4)
    image = tensor_pb2.Image(model_input=tensor(array))
    check(image, LIMITS, input_size=4)
    result = model_input(image, LIMITS, input_size=4)
    assert result.dtype == np.float32
    assert np.array_equal(result, array.astype(np.float32))


def tensor(array: np.ndarray) -> tensor_pb2.Tensor:
    kinds = {"float16": tensor_pb2.DATA_TYPE_FLOAT16, "float32": tensor_pb2.DATA_TYPE_FLOAT32}
    dtype = kinds.get(array.dtype.name, tensor_pb2.DATA_TYPE_UINT8)
    return tensor_pb2.Tensor(dtype=dtype, shape=array.shape, data=array.tobytes())


def picture_of(**changes: object) -> tensor_pb2.Tensor:
    good = {"dtype": tensor_pb2.DATA_TYPE_UINT8, "shape": (2, 2, 3), "data": bytes(12)}
    return tensor_pb2.Tensor(**good | changes)


FLOATS = {"dtype": tensor_pb2.DATA_TYPE_FLOAT32, "shape": (1, 1, 3)}


@pytest.mark.parametrize(
    ("changes", "part", "says"),
    [
        ({"dtype": 0}, "dtype", "UINT8 or FLOAT32 or FLOAT16"),
        ({"dtype": 99}, "dtype", "not set"),
        ({"shape": (2, 2)}, "data", "12 bytes"),
        ({"shape": (2, 6)}, "shape", "(height, width, 3)"),
        ({"shape": (3, 2, 2)}, "shape", "(height, width, 3)"),
        ({"shape": (0, 2, 3), "data": b""}, "shape", "(height, width, 3)"),
        ({"shape": (0, 2**32 - 1, 2**32 - 1), "data": b""}, "shape", "which is too large for an array"),
        ({"shape": (1,) * 100_000}, "shape", "100,000 dimensions"),
        ({"data": bytes(11)}, "data", "takes 12"),
        (FLOATS | {"data": np.array([0, np.nan, 0], np.float32).tobytes()}, "data", "NaN"),
        (FLOATS | {"data": np.array([0, np.inf, 0], np.float32).tobytes()}, "data", "infinite"),
        (FLOATS | {"data": np.array([0, 2, 0], np.float32).tobytes()}, "data", "0 to 1"),
    ],
)
def test_pixels_that_make_no_sense_name_their_part(changes: dict[str, object], part: str, says: str) -> None:
    image = tensor_pb2.Image(pixels=picture_of(**changes))
    with pytest.raises(InvalidRequest) as caught:
        check(image, LIMITS, field="spec.image")
    assert caught.value.field == f"spec.image.pixels.{part}"
    assert says in caught.value.message


@pytest.mark.parametrize(
    ("array", "part"),
    [
        (np.full((3, 4, 4), np.nan, np.float32), "data"),
        (np.zeros((4, 4, 3), np.float32), "shape"),
        (np.zeros((3, 5, 5), np.float32), "shape"),
        (np.zeros((3, 4, 4), np.uint8), "dtype"),
    ],
)
def test_a_model_input_that_makes_no_sense_names_its_part(array: np.ndarray, part: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check(tensor_pb2.Image(model_input=tensor(array)), LIMITS, field="image", input_size=4)
    assert caught.value.field == f"image.model_input.{part}"


def test_an_image_without_a_source_says_what_to_give() -> None:
    with pytest.raises(InvalidRequest, match="encoded"):
        decode(tensor_pb2.Image(), LIMITS)


def test_raw_pixels_beyond_the_limit_are_refused() -> None:
    with pytest.raises(InvalidImage, match="at most 3"):
        check(tensor_pb2.Image(pixels=picture_of()), ImageLimits(max_pixels=3))


def test_a_picture_without_its_palette_is_refused() -> None:
    whole = encoded(noise().convert("P")).encoded
    start = whole.index(b"PLTE") - 4
    (length,) = struct.unpack_from(">I", whole, start)
    image = tensor_pb2.Image(encoded=whole[:start] + whole[start + 12 + length :])
    for read in (check, decode):
        with pytest.raises(InvalidImage, match="has palette colours but no palette") as caught:
            read(image, LIMITS)
        assert caught.value.field == "image.encoded"
