"""The images of a fit, read and decoded on a separate thread, so that the device never waits for a file.

Also their annotated parts, uploaded or from a dataset.
"""

import hashlib
import json
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from google.protobuf.message import DecodeError

from sagittal.core.annotated_parts import attachment_of, check_parts
from sagittal.core.decoding import decoders
from sagittal.core.errors import FailedPrecondition, InvalidRequest
from sagittal.core.images import ImageLimits
from sagittal.explain.concepts import Box, Read
from sagittal.imaging.fitting import visible_box
from sagittal.models.loaded import LoadedModel
from sagittal.v1 import concept_service_pb2, tensor_pb2
from sagittal.worker.execution.requests import read_image

#: Images per batch, and number of batches that are read ahead.
BATCH, AHEAD = 8, 3

#: Extensions of image files in a dataset.
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})

#: Annotation file of a dataset: `{"bird.jpg": {"beak": [left, top, right, bottom]}}`, edges relative to the image's
#: size.
ANNOTATIONS = "parts.json"

_EDGES = 4

Part = concept_service_pb2.AnnotatedPart
Annotations = Callable[[int], Sequence[Part]]


def no_annotations(_index: int) -> Sequence[concept_service_pb2.AnnotatedPart]:
    """Returns no annotations."""
    return ()


class ReadImages:
    """An `ImageSet` of serialized `sagittal.v1.Image` messages that are fetched one by one."""

    def __init__(
        self,
        fetch: Callable[[int], bytes],
        count: int,
        digest: str,
        loaded: LoadedModel,
        limits: ImageLimits,
        annotations: Annotations = no_annotations,
    ) -> None:
        """Constructs the set; reading starts with the first use.

        Args:
            fetch: Returns an image by its index in the set.
            count: Number of images.
            digest: Identifies the set.
            loaded: The model whose preprocessing is applied.
            limits: Limits of each image.
            annotations: Returns the annotated parts of an image by its index in the set.
        """
        self.digest = digest
        self._fetch = fetch
        self._count = count
        self._loaded = loaded
        self._limits = limits
        self._annotations = annotations
        self._ahead: queue.Queue[Sequence[Read] | Exception] = queue.Queue(AHEAD)
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def __len__(self) -> int:
        """Number of images."""
        return self._count

    def ready(self) -> bool:
        """Whether a batch is ready; the first call starts the reading."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._read_all, name="concept-images", daemon=True)
            self._thread.start()
        return not self._ahead.empty()

    def take(self) -> Sequence[Read]:
        """Returns the next batch; none at the end."""
        batch = self._ahead.get()
        if isinstance(batch, Exception):
            raise batch
        return batch

    def read(self, index: int) -> Read:
        """Reads one image."""
        try:
            return Read(index, read_image(self._fetch(index), self._loaded, self._limits, f"image {index}"))
        except InvalidRequest as error:
            return Read(index, fault=error.message)
        except DecodeError:
            return Read(index, fault="is no image message")
        except OSError as error:
            return Read(index, fault=f"cannot be read: {error.strerror}")

    def parts(self, index: int) -> Mapping[str, Box]:
        """Returns the boxes of an image's annotated parts in the model's input, without parts outside it."""
        annotated = self._annotations(index)
        if not annotated or (seen := self._seen(index)) is None:
            return {}
        boxes = {part.name: _within(part, seen) for part in annotated}
        return {name: box for name, box in boxes.items() if box[0] < box[2] and box[1] < box[3]}

    def _seen(self, index: int) -> Box | None:
        """Returns the part of an image that the model sees, relative to its size; None if the image is unreadable."""
        image = tensor_pb2.Image()
        try:
            image.ParseFromString(self._fetch(index))
            if image.WhichOneof("source") == "model_input":
                return 0.0, 0.0, 1.0, 1.0
            shape = decoders(self._limits, 1)[0].decode(image, field=f"image {index}").shape[:2]
        except (InvalidRequest, DecodeError, OSError):
            return None  # it is listed among the skipped images
        left, top, right, bottom = visible_box(shape, self._loaded.entry.preprocessing)
        height, width = shape
        return left / width, top / height, right / width, bottom / height

    def close(self) -> None:
        """Stops reading ahead."""
        self._closed.set()

    def _read_all(self) -> None:
        try:
            for start in range(0, self._count, BATCH):
                batch = [self.read(index) for index in range(start, min(start + BATCH, self._count))]
                if not self._put(batch):
                    return
            self._put([])
        except Exception as error:  # noqa: BLE001 - raised again when the batch is taken
            self._put(error)

    def _put(self, batch: Sequence[Read] | Exception) -> bool:
        while not self._closed.is_set():
            try:
                self._ahead.put(batch, timeout=0.2)
            except queue.Full:
                continue
            return True
        return False


def _within(part: concept_service_pb2.AnnotatedPart, seen: Box) -> Box:
    """Returns the box of a part in the model's input, cut at its edges."""
    left, top, right, bottom = seen

    def across(edge: float) -> float:
        return min(1.0, max(0.0, (edge - left) / (right - left)))

    def down(edge: float) -> float:
        return min(1.0, max(0.0, (edge - top) / (bottom - top)))

    return across(part.left), down(part.top), across(part.right), down(part.bottom)


def files_of(directory: Path) -> Sequence[Path]:
    """Returns the images under a directory, by name."""
    return sorted(path for path in directory.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())


def file_message(path: Path) -> bytes:
    """Returns a file as a serialized image message."""
    return tensor_pb2.Image(encoded=path.read_bytes()).SerializeToString()


def digest_of(files: Sequence[Path], directory: Path) -> str:
    """Returns a digest of a directory's images, by name, size and modification time."""
    digest = hashlib.sha256()
    for path in files:
        stat = path.stat()
        digest.update(f"{path.relative_to(directory)}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def sent_annotations(attachment: Callable[[str, str], bytes | None], job_id: str) -> Annotations:
    """Returns the annotations that were attached to a job."""

    def of(index: int) -> Sequence[Part]:
        stored = attachment(job_id, attachment_of(index))
        return () if stored is None else concept_service_pb2.FitConceptsRequest.FromString(stored).annotated_parts

    return of


def annotations_of(directory: Path, files: Sequence[str]) -> Annotations:
    """Returns the annotations of a dataset's files. Raises FailedPrecondition if they are invalid."""
    path = directory / ANNOTATIONS
    listed = _read(path) if path.is_file() else {}
    unknown = sorted(set(listed) - set(files))
    if unknown:
        raise _wrong(f"it names {unknown[0]!r}, which is not an image of the dataset")
    found = {name: _parts(name, parts) for name, parts in listed.items()}

    def of(index: int) -> Sequence[Part]:
        return found.get(files[index], ())

    return of


def _read(path: Path) -> Mapping[str, object]:
    try:
        listed = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise _wrong(str(error)) from error
    if not isinstance(listed, dict):
        raise _wrong("it must be an object that maps each image's file to its parts")
    return listed


def _parts(name: str, parts: object) -> Sequence[Part]:
    if not isinstance(parts, dict) or not all(map(_is_box, parts.values())):
        raise _wrong(f"{name!r} must map to an object of parts by name, each [left, top, right, bottom] from 0 to 1")
    found = [
        Part(name=part, left=left, top=top, right=right, bottom=bottom)
        for part, (left, top, right, bottom) in parts.items()
    ]
    try:
        check_parts(found, repr(name))
    except InvalidRequest as error:
        raise _wrong(error.message) from error
    return found


def _is_box(box: object) -> bool:
    return isinstance(box, list) and len(box) == _EDGES and all(isinstance(edge, int | float) for edge in box)


def _wrong(why: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"the annotations of the dataset ({ANNOTATIONS}) are invalid: {why}", field="settings.dataset"
    )
