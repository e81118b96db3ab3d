"""Bodies of `:explain`: instances in the forms that clients send, and bare images."""

import base64
import json

import numpy as np
import pytest

from sagittal.client import InvalidRequest, Method, Metrics
from sagittal.inference.v2 import inference_pb2 as pb
from sagittal.kserve import open_inference as oip
from sagittal.kserve.requests import StoredJob, read_body

JPEG = b"\xff\xd8\xff\xe0" + bytes(range(256))
B64 = base64.b64encode(JPEG).decode()
PIXELS = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)


def read(document, kind="application/json"):
    return read_body(json.dumps(document).encode(), kind, {})


@pytest.mark.parametrize(
    "instance",
    [
        B64,
        f"data:image/jpeg;base64,{B64}",
        {"b64": B64},
        {"image_bytes": {"b64": B64}},
        {"image": {"b64": B64}},
        {"data": B64},
    ],
)
def test_an_encoded_image_is_read_in_every_usual_form(instance):
    assert read({"instances": [instance]}).instances == [JPEG]


def test_pixels_are_an_image():
    for instance in (PIXELS.tolist(), {"image": PIXELS.tolist()}):
        (found,) = read({"instances": [instance]}).instances
        np.testing.assert_array_equal(found, PIXELS)


@pytest.mark.parametrize("kind", ["image/jpeg", "application/octet-stream", "application/x-www-form-urlencoded", ""])
def test_a_body_that_is_not_json_is_an_image(kind):
    found = read_body(JPEG, kind, {"method": "rise", "target": "3", "curves": "false"})
    assert found.instances == [JPEG]
    assert found.options == {"method": "rise", "target": 3, "metrics": Metrics(curves=False)}


def test_json_without_its_type_is_json_as_kserves_client_sends_it():
    for kind in ("", "application/octet-stream"):
        assert read({"instances": [B64]}, kind).instances == [JPEG]


def test_what_a_response_said_of_a_job_asks_for_it_again():
    waiting = {"job_id": "abc", "state": "running", "progress": 0.5}
    assert read({"instances": [waiting, B64]}).instances == [StoredJob("abc"), JPEG]


def test_parameters_are_options_of_the_job():
    found = read({
        "instances": [B64],
        "parameters": {
            "method": "rise", "method_parameters": {"masks": 5}, "target": "cat", "wait": 2, "overlay": 64, "seed": 4,
        },
    })  # fmt: skip
    method = found.options["method"]
    assert isinstance(method, Method)
    assert (method.name, method.parameters) == ("rise", {"masks": 5})
    assert (found.options["target"], found.options["seed"], found.wait, found.overlay) == ("cat", 4, 2.0, 64)


@pytest.mark.parametrize(
    ("document", "field"),
    [
        ([], "instances"),
        ({"instances": []}, "instances"),
        ({"inputs": []}, "instances"),
        ({"instances": ["?"]}, "instances[0]"),
        ({"instances": [{"b64": ""}]}, "instances[0].b64"),
        ({"instances": [{"picture": B64}]}, "instances[0]"),
        ({"instances": [[[[0.5, 0.5, 0.5]]]]}, "instances[0]"),
        ({"instances": [[[[256, 0, 0]]]]}, "instances[0]"),
        ({"instances": [[[1, 2], [3]]]}, "instances[0]"),
        ({"instances": [{"job_id": 3}]}, "instances[0].job_id"),
        ({"instances": [B64], "parameters": []}, "parameters"),
        ({"instances": [B64], "parameters": {"methods": "rise"}}, "parameters"),
        ({"instances": [B64], "parameters": {"seed": "x"}}, "parameters.seed"),
        ({"instances": [B64], "parameters": {"wait": -1}}, "parameters.wait"),
        ({"instances": [B64], "parameters": {"curves": 3}}, "parameters.curves"),
        ({"instances": [B64], "parameters": {"overlay": -1}}, "parameters.overlay"),
        ({"instances": [B64], "parameters": {"method_parameters": {}}}, "parameters.method"),
        ({"instances": [B64, B64], "parameters": {"request_id": "x"}}, "parameters.request_id"),
    ],
)
def test_a_wrong_body_is_refused_with_its_field(document, field):
    with pytest.raises(InvalidRequest) as found:
        read(document)
    assert found.value.field == field


def test_a_body_that_is_neither_is_refused():
    for body, kind in ((b"{", "application/json"), (b"", "image/jpeg"), (b"[" * 100_000, "")):
        with pytest.raises(InvalidRequest):
            read_body(body, kind, {})


def message(**changes):
    request = pb.ModelInferRequest(model_name="lamp", id="7")
    request.inputs.add(**({"name": "image", "datatype": "BYTES", "shape": [1]} | changes))
    return request


def test_a_message_has_files_pixels_or_jobs():
    raw = message(shape=[2])
    raw.raw_input_contents.append(oip.pack([JPEG, b"x"]))
    assert oip.read_message(raw).instances == [JPEG, b"x"]
    contained = message()
    contained.inputs[0].contents.bytes_contents.append(JPEG)
    assert oip.read_message(contained).instances == [JPEG]
    jobs = message(name="job_id")
    jobs.inputs[0].contents.bytes_contents.append(b"abc")
    assert oip.read_message(jobs).instances == [StoredJob("abc")]
    for shape in ([2, 3, 3], [1, 2, 3, 3]):
        pixels = message(datatype="UINT8", shape=shape)
        pixels.raw_input_contents.append(PIXELS.tobytes())
        np.testing.assert_array_equal(oip.read_message(pixels).instances[0], PIXELS)


def test_parameters_of_a_message_are_options():
    request = message()
    request.raw_input_contents.append(oip.pack([JPEG]))
    request.parameters["method"].string_param = "rise"
    request.parameters["method_parameters"].string_param = '{"masks": 5}'
    request.parameters["target"].int64_param = 3
    found = oip.read_message(request)
    assert found.options["method"].parameters == {"masks": 5}
    assert found.options["target"] == 3


def test_json_of_the_protocol_is_read_with_and_without_binary_tensors():
    inputs = [{"name": "image", "datatype": "BYTES", "shape": [1], "data": [B64]}]
    found, identifier = oip.read_json(json.dumps({"id": "7", "inputs": inputs}).encode(), "")
    assert (found.instances, identifier) == ([JPEG], "7")
    packed = oip.pack([JPEG])
    inputs = [{"name": "image", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(packed)}}]
    head = json.dumps({"id": "7", "inputs": inputs}).encode()
    found, identifier = oip.read_json(head + packed, str(len(head)))
    assert (found.instances, identifier) == ([JPEG], "7")
    inputs = [{"name": "image", "datatype": "UINT8", "shape": [2, 3, 3], "data": PIXELS.tolist()}]
    found, _ = oip.read_json(json.dumps({"inputs": inputs}).encode(), "")
    np.testing.assert_array_equal(found.instances[0], PIXELS)


@pytest.mark.parametrize(
    "told",
    [
        {"name": "images"},
        {"datatype": "FP32"},
        {"datatype": "UINT8", "shape": [2, 2, 3]},
        {"shape": [3]},
        {"name": "job_id", "datatype": "UINT8", "shape": [2, 3, 3]},
    ],
)
def test_a_wrong_tensor_is_refused_with_its_field(told):
    request = message(**told)
    request.raw_input_contents.append(PIXELS.tobytes() if "UINT8" in told.values() else oip.pack([JPEG]))
    with pytest.raises(InvalidRequest) as found:
        oip.read_message(request)
    assert found.value.field.startswith("inputs")


def test_a_tensor_whose_elements_are_cut_is_refused():
    request = message()
    request.raw_input_contents.append(oip.pack([JPEG])[:-1])
    with pytest.raises(InvalidRequest, match="longer than the content"):
        oip.read_message(request)
