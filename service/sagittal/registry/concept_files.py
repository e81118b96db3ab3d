"""Files of concept sets (weights and examples), in a directory or object store shared by service and workers.

A file is named by the SHA-256 of its content and never changes. So a reader can verify it, and a set that is fitted
again gets other files. The set's document in Redis names its files.
"""

import hashlib
import os
import re
import secrets
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field, field_validator

from sagittal.core.errors import FailedPrecondition, NotFound, Unavailable

MIB = 2**20  # bytes

#: Name of a file: optionally the digest of the set's weights, then the SHA-256 of the content, and the kind of content.
_NAME = re.compile(r"(?:[0-9a-f]{64}\.)?(?P<digest>[0-9a-f]{64})\.(?:safetensors|examples)")

#: Folder of the files within the directory. Directories of tenants from an older release are one level deeper.
_FOLDER = "files"

#: Retry delay if the store cannot be reached, in seconds.
_AWAY_SECONDS = 5.0

Result = TypeVar("Result")


class ConceptStorage(BaseModel):
    """Storage of the files of concept sets."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    directory: Path | None = None
    """Directory for the files of concept sets (weights and examples), shared and writable by the service and all
    workers. With `url` it only holds extracted features. If neither is set, sets cannot be fitted, used or returned."""
    url: str = ""
    """Object store for the files instead of the directory, in fsspec's notation, such as `s3://bucket/concepts`; the
    same for the service and all workers. Requires `sagittal[stores]`."""
    options: dict[str, Any] = {}
    """Options of the store's fsspec file system, as JSON, such as `{"endpoint_url": "https://minio:9000"}`."""
    max_tenant_bytes: Annotated[int, Field(ge=MIB, le=2**53)] = 1024 * MIB
    """Bytes of one tenant's concept sets, including files and documents; beyond it, fits are refused."""

    @field_validator("url")
    @classmethod
    def _has_a_scheme(cls, url: str) -> str:
        if url and ("://" not in url or "::" in url):
            raise ValueError("the URL must have exactly one scheme, such as s3://bucket/concepts")
        return url.rstrip("/")

    @field_validator("directory", mode="before")
    @classmethod
    def _no_directory(cls, value: object) -> object:
        return None if value == "" else value


class Place(Protocol):
    """A store for files. Its methods block, and raise the errors of the underlying library."""

    def write(self, name: str, content: bytes) -> None:
        """Writes a file atomically."""
        ...

    def read(self, name: str) -> bytes:
        """Returns a file. Raises FileNotFoundError."""
        ...

    def delete(self, name: str) -> None:
        """Deletes a file. Raises FileNotFoundError."""
        ...


class Directory:
    """A directory as a `Place`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory / _FOLDER

    def write(self, name: str, content: bytes) -> None:
        """Writes a temporary file, syncs it to disk, and renames it."""
        self._directory.mkdir(parents=True, exist_ok=True)
        partial = self._directory / f".{name}.{secrets.token_hex(8)}"
        try:
            with partial.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self._directory / name)
        finally:
            partial.unlink(missing_ok=True)

    def read(self, name: str) -> bytes:
        """Returns a file."""
        return (self._directory / name).read_bytes()

    def delete(self, name: str) -> None:
        """Deletes a file."""
        (self._directory / name).unlink()


class ObjectStore:
    """An fsspec file system as a `Place`, opened on first use."""

    def __init__(self, url: str, options: dict[str, Any]) -> None:
        self._url = url
        self._options = options
        self._opened: Any = None

    def write(self, name: str, content: bytes) -> None:
        """Writes a file; object stores show it only when it is complete."""
        self._system().pipe_file(f"{self._url}/{name}", content)

    def read(self, name: str) -> bytes:
        """Returns a file."""
        return bytes(self._system().cat_file(f"{self._url}/{name}"))

    def delete(self, name: str) -> None:
        """Deletes a file."""
        self._system().rm_file(f"{self._url}/{name}")

    def _system(self) -> Any:
        if self._opened is None:
            try:
                fsspec: Any = import_module("fsspec")  # optional dependency
                self._opened = fsspec.filesystem(self._url.partition("://")[0], **self._options)
            except ImportError as error:
                text = f"the store of concept sets cannot be opened: {error}; pip install 'sagittal[stores]'"
                raise FailedPrecondition(text) from error
        return self._opened


class ConceptFiles:
    """The files of concept sets. All methods except `check` block."""

    def __init__(self, storage: ConceptStorage) -> None:
        """Stores the settings; opens nothing yet."""
        self._place: Place | None = None
        if storage.url:
            self._place = ObjectStore(storage.url, storage.options)
        elif storage.directory is not None:
            self._place = Directory(storage.directory)

    @property
    def configured(self) -> bool:
        """True if a directory or object store is configured."""
        return self._place is not None

    def check(self, whose: str) -> None:
        """Raises FailedPrecondition if no storage is configured; `whose` names the program."""
        if self._place is None:
            raise FailedPrecondition(
                f"this {whose} has no storage for concept sets: set SAGITTAL_CONCEPTS__DIRECTORY or "
                "SAGITTAL_CONCEPTS__URL to one that the service and all workers share"
            )

    def write(self, name: str, content: bytes) -> None:
        """Writes a file. Raises Unavailable."""
        self._try(lambda place: place.write(name, content))

    def read(self, name: str) -> bytes:
        """Returns a file.

        Raises:
            NotFound: the file does not exist.
            FailedPrecondition: the file is damaged.
            Unavailable: the storage cannot be reached or read.
        """
        match = _NAME.fullmatch(name)
        if match is None:
            raise FailedPrecondition(f"{name[:80]!r} is not the name of a concept set's file: fit the set again")
        try:
            content = self._try(lambda place: place.read(name))
        except FileNotFoundError as error:
            raise NotFound(f"the file {name} of the concept set does not exist: fit the set again") from error
        if hashlib.sha256(content).hexdigest() != match["digest"]:
            raise FailedPrecondition(f"the file {name} of the concept set is damaged: fit the set again")
        return content

    def delete(self, name: str) -> None:
        """Deletes a file if it exists. Raises Unavailable."""
        if _NAME.fullmatch(name) is None:
            return
        try:
            self._try(lambda place: place.delete(name))
        except FileNotFoundError:
            return

    def _try(self, operation: Callable[[Place], Result]) -> Result:
        if self._place is None:
            raise RuntimeError("no storage is configured, and `check` was not called")
        try:
            return operation(self._place)
        except (FileNotFoundError, FailedPrecondition):
            raise
        except Exception as error:  # each file system raises errors of its own
            text = f"{type(error).__name__}: {error}".splitlines()[0]
            raise Unavailable(
                f"the store of concept sets cannot be used ({text}): try again, or check SAGITTAL_CONCEPTS__DIRECTORY "
                "and SAGITTAL_CONCEPTS__URL",
                retry_after=_AWAY_SECONDS,
            ) from error


def weights_file(content: bytes) -> str:
    """Returns the name of a weights file; the content must be different for each set."""
    return f"{hashlib.sha256(content).hexdigest()}.safetensors"


def examples_file(content: bytes, weights: str) -> str:
    """Returns the name of an examples file; `weights` is the name of the set's weights file."""
    return f"{weights.partition('.')[0]}.{hashlib.sha256(content).hexdigest()}.examples"
