"""What is wrong with a request is said at once, with its code and the field's name; odd pictures just work."""

import io
import struct
import zlib

import grpc
import numpy as np
import pytest
from PIL import Image

from sagittal.client import (
    Client,
    FailedPrecondition,
    IGOSPlusPlus,
    InvalidImage,
    InvalidRequest,
    MessageTooLarge,
    Method,
    ModelFailed,
    ModelInput,
    NotServed,
    UnknownModel,
)

QUICK = IGOSPlusPlus(mask_size=7, iterations=1, points=1)


def encoded(image, file_format="PNG", **options):
    data = io.BytesIO()
    image.save(data, file_format, **options)
    return data.getvalue()


def photograph(mode="RGB", size=(90, 60)):
    generator = np.random.default_rng(0)
    return Image.fromarray(generator.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)).convert(mode)


def bomb(width=60_000, height=60_000):
    """A PNG of a few bytes that claims to be of this size."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\0" * 100)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def explain(client, image=None, **options):
    options = {"model": "left", "method": QUICK, "target": 1, **options}
    return client.explain(encoded(photograph()) if image is None else image, **options)


@pytest.mark.parametrize(
    ("options", "error", "field"),
    [
        ({"model": "nope"}, UnknownModel, "model"),
        ({"model_version": "99"}, UnknownModel, "model_version"),
        ({"method": Method(name="nope")}, InvalidRequest, "method"),
        ({"target": "nope"}, InvalidRequest, "target.label"),
        ({"target": 2}, InvalidRequest, "target.index"),
        ({"method": IGOSPlusPlus(mask_size=6)}, InvalidRequest, "mask_size"),
        ({"method": IGOSPlusPlus(mask_size=225)}, InvalidRequest, "mask_size"),
    ],
)
def test_what_is_asked_for_must_exist_and_be_in_range(client: Client, options, error, field):
    with pytest.raises(error) as failure:
        explain(client, **options)
    assert field in (failure.value.field or str(failure.value))


def test_a_method_that_the_model_does_not_admit_says_which_are(client: Client):
    from sagittal.v1 import method_pb2

    with pytest.raises((NotServed, FailedPrecondition)) as failure:
        explain(client, method=method_pb2.Concepts(concept_set="birds"))
    assert "rise" in str(failure.value)


def test_a_model_that_failed_to_load_says_why(client: Client):
    with pytest.raises(ModelFailed, match="no-such-model"):
        explain(client, model="broken")


@pytest.mark.parametrize(
    "image",
    [
        pytest.param(b"this is not an image", id="no-image"),
        pytest.param(encoded(photograph(size=(300, 300)), "JPEG")[:-2000], id="truncated-jpeg"),
        pytest.param(bomb(), id="decompression-bomb"),
        pytest.param(encoded(photograph(), "BMP"), id="another-format"),
    ],
)
def test_pictures_that_cannot_be_read_name_their_field(client: Client, image):
    with pytest.raises(InvalidImage) as failure:
        explain(client, image)
    assert failure.value.field.startswith("spec.image")


def test_nan_in_a_raw_tensor_is_refused(client: Client):
    values = np.zeros((3, 56, 56), np.float32)
    values[0, 1, 2] = np.nan
    with pytest.raises(InvalidRequest, match="NaN") as failure:
        explain(client, ModelInput(values))
    assert failure.value.field.startswith("spec.image")


def test_a_message_over_the_limit_is_refused(client: Client):
    with pytest.raises(MessageTooLarge):
        explain(client, b"\xff\xd8\xff" + b"\0" * (40 * 2**20))


def rotated():
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(photograph(), "JPEG", exif=exif)


@pytest.mark.parametrize(
    "image",
    [
        pytest.param(encoded(photograph("P")), id="palette"),
        pytest.param(encoded(photograph("CMYK"), "JPEG"), id="cmyk"),
        pytest.param(encoded(photograph("L")), id="greyscale"),
        pytest.param(encoded(photograph("RGBA")), id="alpha"),
        pytest.param(encoded(photograph("LA")), id="grey-alpha"),
        pytest.param(rotated(), id="exif-rotated"),
        pytest.param(encoded(photograph(), "WEBP"), id="webp"),
        pytest.param(encoded(photograph(size=(1, 1))), id="one-pixel"),
        pytest.param(encoded(Image.new("RGB", (8000, 8000))), id="8000x8000"),
    ],
)
def test_odd_pictures_simply_work(client: Client, image):
    explanation = explain(client, image)
    assert explanation.state == "completed"
    assert explanation.mask.shape == (7, 7)


def test_nan_that_passes_the_client_is_refused_by_the_service(stack):
    from sagittal.v1 import explanation_pb2, explanation_service_pb2, explanation_service_pb2_grpc, tensor_pb2

    values = np.full((3, 56, 56), np.nan, np.float32)
    tensor = tensor_pb2.Tensor(dtype=tensor_pb2.DATA_TYPE_FLOAT32, shape=values.shape, data=values.tobytes())
    spec = explanation_pb2.ExplanationSpec(model="left", image=tensor_pb2.Image(model_input=tensor))
    with grpc.insecure_channel(stack.address) as channel:
        stub = explanation_service_pb2_grpc.ExplanationServiceStub(channel)
        with pytest.raises(grpc.RpcError) as failure:
            stub.SubmitExplanation(explanation_service_pb2.SubmitExplanationRequest(spec=spec))
    assert failure.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "spec.image.model_input" in failure.value.details()
