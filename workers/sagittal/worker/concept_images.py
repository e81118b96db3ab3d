"""The images of a fit, read and decoded on a thread of their own so that the device never waits for a file."""

import hashlib
import queue
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from google.protobuf.message import DecodeError

from sagittal.core.errors import InvalidRequest
from sagittal.core.images import ImageLimits
from sagittal.explain.concepts import Read
from sagittal.models.loaded import LoadedModel
from sagittal.v1 import tensor_pb2
from sagittal.worker.questions import read_image

#: Images of a batch, and batches that are read ahead.
BATCH, AHEAD = 8, 3

#: Files that count as images in a dataset.
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})


class ReadImages:
    """An `ImageSet` of serialized `sagittal.v1.Image` messages that are fetched one by one."""

    def __init__(
        self,
        fetch: Callable[[int], bytes],
        count: int,
        digest: str,
        loaded: LoadedModel,
        limits: ImageLimits,
    ) -> None:
        """Reads nothing yet.

        Args:
            fetch: Returns an image by its place in the set.
            count: Number of images.
            digest: Tells this set from others.
            loaded: The model whose preprocessing they pass through.
            limits: Of each picture.
        """
        self.digest = digest
        self._fetch = fetch
        self._count = count
        self._loaded = loaded
        self._limits = limits
        self._ahead: queue.Queue[Sequence[Read] | Exception] = queue.Queue(AHEAD)
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def __len__(self) -> int:
        """Number of images."""
        return self._count

    def ready(self) -> bool:
        """Whether a batch is read; the first look begins the reading."""
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
        except Exception as error:  # noqa: BLE001 - raised again where the batch is taken
            self._put(error)

    def _put(self, batch: Sequence[Read] | Exception) -> bool:
        while not self._closed.is_set():
            try:
                self._ahead.put(batch, timeout=0.2)
            except queue.Full:
                continue
            return True
        return False


def files_of(directory: Path) -> Sequence[Path]:
    """Returns the pictures under a directory, by name."""
    return sorted(path for path in directory.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())


def file_message(path: Path) -> bytes:
    """Returns a file as a serialized image message."""
    return tensor_pb2.Image(encoded=path.read_bytes()).SerializeToString()


def digest_of(files: Sequence[Path], directory: Path) -> str:
    """Tells a directory's pictures from others, by name, size and time of change."""
    digest = hashlib.sha256()
    for path in files:
        stat = path.stat()
        digest.update(f"{path.relative_to(directory)}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()
