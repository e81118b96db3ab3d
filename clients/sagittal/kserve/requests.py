"""Requests to `:explain`: images or earlier jobs, and options, read from JSON or from a bare image."""

import base64
import binascii
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sagittal.client import InvalidRequest, Method, Metrics

#: Types of bodies that are JSON. Others, and bodies of these types that do not begin like JSON, are images.
JSON_TYPES = frozenset({"application/json", "application/cloudevents+json", "application/ld+json"})

#: What a JSON object or list begins with; no image file does.
_JSON_START = re.compile(rb"[\s\xef\xbb\xbf]*[{\[]")

#: Keys under which clients send an encoded image; the value is base64, or `{"b64": ...}` as in TensorFlow Serving.
IMAGE_KEYS = ("b64", "image_bytes", "image", "data")

#: Options whose text in a query or a parameter is parsed as a number or a truth value.
_TRUTHS: Mapping[str, bool] = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


@dataclass(frozen=True, slots=True)
class StoredJob:
    """A job that an earlier response named."""

    job_id: str


Image = bytes | NDArray[np.uint8]
"""An image: the bytes of a file, or RGB pixels (height, width, 3)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainRequest:
    """Images and earlier jobs to explain, with the options of new jobs."""

    instances: Sequence[Image | StoredJob]
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of `AsyncClient.submit`."""
    wait: float | None = None
    """Maximum time until the response, in seconds; None for the setting."""
    overlay: int = 0
    """Longer side of the heatmap on the image, in pixels; 0 returns none."""


def read_body(body: bytes, content_type: str, query: Mapping[str, str]) -> ExplainRequest:
    """Returns the request of a body: JSON with `instances`, or the bytes of one image with options in the query.

    Raises:
        InvalidRequest: the body is neither; the error names the field.
    """
    kind = content_type.partition(";")[0].strip().lower()
    parameters: dict[str, Any] = dict(query)
    if not (kind in JSON_TYPES or _JSON_START.match(body)):
        return make_request([_checked_file(body, "body")], parameters)
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        text = f"the body is not JSON: {error}; for a bare image, set its Content-Type, such as image/jpeg"
        raise InvalidRequest(text, field="body") from error
    if not isinstance(document, dict) or not isinstance(document.get("instances"), list):
        raise InvalidRequest('give {"instances": [...]}, with an image each', field="instances")
    given = document.get("parameters", {})
    if not isinstance(given, dict):
        raise InvalidRequest('give an object, such as {"method": "rise"}', field="parameters")
    instances = [_instance(each, f"instances[{number}]") for number, each in enumerate(document["instances"])]
    return make_request(instances, parameters | given)


def make_request(instances: Sequence[Image | StoredJob], parameters: Mapping[str, Any]) -> ExplainRequest:
    """Returns a request with checked parameters. Raises InvalidRequest for an unknown one, or an invalid value."""
    if not instances:
        raise InvalidRequest("give at least one image", field="instances")
    if unknown := sorted(set(parameters) - PARAMETERS.keys()):
        known = ", ".join(PARAMETERS)
        raise InvalidRequest(f"there is no parameter {unknown[0]!r}; there are: {known}", field="parameters")
    read = {name: PARAMETERS[name](value, f"parameters.{name}") for name, value in parameters.items()}
    wait, overlay = read.pop("wait", None), read.pop("overlay", 0)
    if (curves := read.pop("curves", None)) is not None:
        read["metrics"] = Metrics(curves=curves)
    if (named := read.pop("method_parameters", None)) is not None:
        if "method" not in read:
            raise InvalidRequest("name the method too", field="parameters.method")
        read["method"] = Method(read["method"], **named)
    if "request_id" in read and len(instances) > 1:
        raise InvalidRequest("send one image with a request_id", field="parameters.request_id")
    return ExplainRequest(instances=instances, options=read, wait=wait, overlay=overlay)


def _instance(value: Any, field: str) -> Image | StoredJob:
    if isinstance(value, dict) and "job_id" in value:
        return StoredJob(_text(value["job_id"], f"{field}.job_id"))
    if isinstance(value, list):
        return _pixels(value, field)
    return _encoded(value, field)


def _encoded(value: Any, field: str) -> Image:
    """Returns the file of a base64 text, or of an object that has one under a known key."""
    if isinstance(value, str):
        try:
            return _checked_file(base64.b64decode(value.partition("base64,")[2] or value, validate=True), field)
        except (binascii.Error, ValueError) as error:
            raise InvalidRequest("the text is not base64; give the base64 of an image file", field=field) from error
    if isinstance(value, dict):
        keys = [key for key in IMAGE_KEYS if key in value]
        if len(keys) == 1:
            return _encoded(value[keys[0]], f"{field}.{keys[0]}")
    if isinstance(value, list):
        return _pixels(value, field)
    text = f"give the base64 of an image file, an object with one of {', '.join(IMAGE_KEYS)} or job_id, or pixels"
    raise InvalidRequest(text, field=field)


def _checked_file(data: bytes, field: str) -> bytes:
    if not data:
        raise InvalidRequest("it is empty; give the bytes of a JPEG, PNG or WebP file", field=field)
    return data


def _pixels(value: Sequence[Any], field: str) -> NDArray[np.uint8]:
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise InvalidRequest("the rows of pixels have different lengths", field=field) from error
    return checked_pixels(array, field)


def checked_pixels(array: NDArray[Any], field: str) -> NDArray[np.uint8]:
    """Returns pixels (height, width, 3) of integers 0 to 255. Raises InvalidRequest for others."""
    integers = np.issubdtype(array.dtype, np.integer)
    if array.ndim != 3 or array.shape[2] != 3 or not array.size or not integers or array.min() < 0 or array.max() > 255:
        got = f"got {array.dtype} of shape {array.shape}" if array.dtype != object else "got other values"
        expected = "RGB pixels (height, width, 3), integers 0 to 255: send the image, not the model's input"
        raise InvalidRequest(f"{got}; expected {expected}", field=field)
    return array.astype(np.uint8)


def _text(value: Any, field: str) -> str:
    if isinstance(value, str) and value:
        return value
    raise InvalidRequest(f"got {value!r:.80}; expected a text", field=field)


def _whole(value: Any, field: str) -> int:
    if isinstance(value, str) and re.fullmatch(r"-?\d{1,18}", value):
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise InvalidRequest(f"got {value!r:.80}; expected an integer", field=field)


def _size(value: Any, field: str) -> int:
    if 0 <= (size := _whole(value, field)) < 2**31:
        return size
    raise InvalidRequest(f"got {value!r:.80}; expected a number of pixels, or 0", field=field)


def _seconds(value: Any, field: str) -> float:
    try:
        seconds = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else -1.0
    except (ValueError, OverflowError):
        seconds = -1.0
    if 0 <= seconds < 1e9:
        return seconds
    raise InvalidRequest(f"got {value!r:.80}; expected seconds, at least 0", field=field)


def _truth(value: Any, field: str) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in _TRUTHS:
        return _TRUTHS[value.lower()]
    raise InvalidRequest(f"got {value!r:.80}; expected true or false", field=field)


def _target(value: Any, field: str) -> int | str:
    """Returns a class: an integer, or a text of digits, is an index; another text is a label."""
    if isinstance(value, str) and not re.fullmatch(r"\d{1,9}", value):
        return _text(value, field)
    return _whole(value, field)


def _object(value: Any, field: str) -> Mapping[str, Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise InvalidRequest(f"the text is not JSON: {error}", field=field) from error
    if isinstance(value, dict):
        return value
    raise InvalidRequest(f"got {value!r:.80}; expected an object", field=field)


def _labels(value: Any, field: str) -> Mapping[str, str]:
    return {name: _text(text, f"{field}.{name}") for name, text in _object(value, field).items()}


PARAMETERS: Mapping[str, Any] = {
    "method": _text, "method_parameters": _object, "target": _target, "baseline": _text, "seed": _whole, "lane": _text,
    "deadline": _seconds, "max_evaluations": _whole, "cache": _text, "request_id": _text, "labels": _labels,
    "curves": _truth, "wait": _seconds, "overlay": _size,
}  # fmt: skip
"""Parameters of a request, with the function that checks each."""
