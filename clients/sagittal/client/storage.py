"""Explanations as files: a zip archive of JSON, arrays and the image as it was sent. Nothing in it is ever executed.

The JSON document is the tree of dataclasses, so that new fields are stored automatically.
"""

import dataclasses
import io
import json
import os
import types
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np
from google.protobuf.message import DecodeError

from sagittal.client import errors
from sagittal.client.errors import InvalidRequest, SagittalError
from sagittal.client.explained_image import ExplainedImage
from sagittal.client.explanation import Explanation
from sagittal.client.requests import shown
from sagittal.v1 import tensor_pb2

#: Version of the format; a reader refuses later versions.
FORMAT = 1

_DOCUMENT, _IMAGE, _BASELINE = "explanation.json", "image.pb", "baseline.pb"

#: Errors of reading a file that is damaged or has other content; RuntimeError is of an encrypted or unknown archive.
_DAMAGED = (
    OSError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, DecodeError, AttributeError, KeyError, TypeError,
    ValueError,
)  # fmt: skip

#: Maximum unpacked size of one part, in bytes.
_MAX_PART = 512 * 2**20


def save_explanation(explanation: Explanation, path: str | os.PathLike[str]) -> Path:
    """Writes an explanation, with its image if it has one, into one file.

    Raises:
        InvalidRequest: the file cannot be written.
    """
    arrays: list[np.ndarray] = []
    document = {"format": FORMAT, "explanation": _encoded(explanation, arrays)}
    target = checked_path(path)
    try:
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(_DOCUMENT, json.dumps(document))
            for number, array in enumerate(arrays):
                buffer = io.BytesIO()
                np.save(buffer, array, allow_pickle=False)
                archive.writestr(_array_name(number), buffer.getvalue())
            for name, image in _images(explanation.image):
                archive.writestr(name, image.SerializeToString())
    except OSError as error:
        raise InvalidRequest(f"cannot write {target}: {error.strerror}", field="path") from error
    return target


def load_explanation(path: str | os.PathLike[str]) -> Explanation:
    """Returns an explanation that `save_explanation` wrote.

    Raises:
        InvalidRequest: the file cannot be read, or is no such file.
    """
    source = checked_path(path)
    try:
        with zipfile.ZipFile(source) as archive:
            return _Reader(archive).explanation()
    except _DAMAGED as error:
        raise InvalidRequest(f"{source} is no file that Explanation.save wrote: {error}", field="path") from error


def checked_path(path: object) -> Path:
    """Returns a path. Raises InvalidRequest for anything else."""
    if not isinstance(path, str | os.PathLike):
        raise InvalidRequest(f"got {shown(path)}; expected the path of a file", field="path")
    return Path(path)


def _images(image: ExplainedImage | None) -> Iterable[tuple[str, tensor_pb2.Image]]:
    if image is not None:
        yield _IMAGE, image.source
        if image.baseline is not None:
            yield _BASELINE, image.baseline


def _array_name(number: int) -> str:
    return f"arrays/{number}.npy"


def _encoded(value: Any, arrays: list[np.ndarray]) -> Any:
    """Returns the JSON form of a value; arrays are appended to `arrays` and represented by their position."""
    match value:
        case np.ndarray():
            arrays.append(value)
            found: Any = len(arrays) - 1
        case ExplainedImage():
            found = {"preprocessing": _encoded(value.preprocessing, arrays)}
        case SagittalError():
            found = {"class": type(value).__name__} | vars(value)
        case tuple():
            found = [_encoded(each, arrays) for each in value]
        case datetime():
            found = value.isoformat()
        case Mapping():
            found = dict(value)
        case _ if dataclasses.is_dataclass(value):
            found = {each.name: _encoded(getattr(value, each.name), arrays) for each in dataclasses.fields(value)}
        case _:
            found = value
    return found


class _Reader:
    """Reads the parts of an archive."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self._readers: Mapping[Any, Callable[[Any], Any]] = {
            np.ndarray: self._array,
            ExplainedImage: self._image,
            SagittalError: _error,
            datetime: datetime.fromisoformat,
        }

    def explanation(self) -> Explanation:
        document = json.loads(self._part(_DOCUMENT))
        if document["format"] != FORMAT:
            raise ValueError(f"it has format {document['format']}, and this client reads {FORMAT}: update it")
        found = self._decoded(Explanation, document["explanation"])
        if not isinstance(found, Explanation):
            raise TypeError("it has no explanation")
        return found

    def _part(self, name: str) -> bytes:
        info = self._archive.getinfo(name)
        if info.file_size > _MAX_PART:
            raise ValueError(f"{name} has {info.file_size:,} bytes; at most {_MAX_PART:,} are read")
        return self._archive.read(info)

    def _decoded(self, kind: Any, value: Any) -> Any:
        """Returns a value of a type annotation."""
        if value is None:
            return None
        origin, arguments = get_origin(kind), get_args(kind)
        if origin is types.UnionType:
            return self._decoded(next(each for each in arguments if each is not type(None)), value)
        if origin is tuple:
            return tuple(self._decoded(arguments[0], each) for each in value)
        if dataclasses.is_dataclass(kind) and kind is not ExplainedImage:
            return self._fields(kind, value)
        read = self._readers.get(kind if origin is None else origin)
        return value if read is None else read(value)

    def _array(self, number: int) -> np.ndarray:
        return np.asarray(np.load(io.BytesIO(self._part(_array_name(number))), allow_pickle=False))

    def _fields(self, kind: Any, value: Mapping[str, Any]) -> Any:
        hints = get_type_hints(kind)
        known = [each.name for each in dataclasses.fields(kind) if each.name in value]
        return kind(**{name: self._decoded(hints[name], value[name]) for name in known})

    def _image(self, value: Mapping[str, Any]) -> ExplainedImage:
        hints, names = get_type_hints(ExplainedImage), self._archive.namelist()
        baseline = tensor_pb2.Image.FromString(self._part(_BASELINE)) if _BASELINE in names else None
        preprocessing = self._decoded(hints["preprocessing"], value["preprocessing"])
        return ExplainedImage(tensor_pb2.Image.FromString(self._part(_IMAGE)), preprocessing, baseline)


def _error(value: Mapping[str, Any]) -> SagittalError:
    """Returns an error of the stored class, or of the base class if this version does not know it."""
    found = getattr(errors, value["class"], SagittalError)
    kind = found if isinstance(found, type) and issubclass(found, SagittalError) else SagittalError
    error = kind(value["message"])
    for name in ("field", "retry_after", "job_id", "reason"):
        if name in value:
            setattr(error, name, value[name])
    return error
