"""The files of concept sets, weights and examples, in a directory or an object store that service and workers share.

A file is named by the SHA-256 of its content and never changes: whoever reads one finds out whether it is whole, and a
set that is fitted again has other files. Which files a set has, its document in Redis says.
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

#: The file of a set: what tells it from others of the same content, if anything does, its SHA-256, and what is in it.
_NAME = re.compile(r"(?:[0-9a-f]{64}\.)?(?P<digest>[0-9a-f]{64})\.(?:safetensors|examples)")

#: The folder of the files in the directory. No tenant's is there: its own directory of an older release is one deeper.
_FOLDER = "files"

#: When to try again where a store is away, in seconds.
_AWAY_SECONDS = 5.0

Result = TypeVar("Result")


class ConceptStorage(BaseModel):
    """Where the files of concept sets are."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    directory: Path | None = None
    """Directory for the files of concept sets, weights and examples, which the service and all workers share and can
    write. With `url`, extracted features alone. Neither set: no set can be fitted, explained by or returned whole."""
    url: str = ""
    """Object store for the files in place of the directory, as fsspec names it, such as `s3://bucket/concepts`; the
    same for the service and all workers. It needs `sagittal[stores]`."""
    options: dict[str, Any] = {}
    """What the store's fsspec file system takes, such as `{"endpoint_url": "https://minio:9000"}`, as JSON."""
    max_tenant_bytes: Annotated[int, Field(ge=MIB, le=2**53)] = 1024 * MIB
    """Bytes of one tenant's concept sets, files and documents together; beyond them a fit is refused."""

    @field_validator("url")
    @classmethod
    def _has_a_scheme(cls, url: str) -> str:
        if url and ("://" not in url or "::" in url):
            raise ValueError("the URL of the store of concept sets begins with its scheme, such as s3://")
        return url.rstrip("/")

    @field_validator("directory", mode="before")
    @classmethod
    def _no_directory(cls, value: object) -> object:
        return None if value == "" else value


class Place(Protocol):
    """Where files are kept. Methods block, and raise what the library beneath raises."""

    def write(self, name: str, content: bytes) -> None:
        """Writes a file, whole or not at all."""
        ...

    def read(self, name: str) -> bytes:
        """Returns a file. Raises FileNotFoundError."""
        ...

    def delete(self, name: str) -> None:
        """Deletes a file. Raises FileNotFoundError."""
        ...


class Directory:
    """A directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory / _FOLDER

    def write(self, name: str, content: bytes) -> None:
        """Writes a file beside its place, and puts it there when it is on the disk."""
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
    """An fsspec file system, opened when it is first used."""

    def __init__(self, url: str, options: dict[str, Any]) -> None:
        self._url = url
        self._options = options
        self._opened: Any = None

    def write(self, name: str, content: bytes) -> None:
        """Writes a file; object stores show none before it is whole."""
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
                fsspec: Any = import_module("fsspec")  # of an extra
                self._opened = fsspec.filesystem(self._url.partition("://")[0], **self._options)
            except ImportError as error:
                text = f"the store of concept sets cannot be opened: {error}; pip install 'sagittal[stores]'"
                raise FailedPrecondition(text) from error
        return self._opened


class ConceptFiles:
    """The files of concept sets. All methods but `check` block."""

    def __init__(self, storage: ConceptStorage) -> None:
        """Opens nothing yet."""
        self._place: Place | None = None
        if storage.url:
            self._place = ObjectStore(storage.url, storage.options)
        elif storage.directory is not None:
            self._place = Directory(storage.directory)

    @property
    def configured(self) -> bool:
        """Whether there is a place for them."""
        return self._place is not None

    def check(self, whose: str) -> None:
        """Raises FailedPrecondition where there is no place for files; `whose` is the program that lacks it."""
        if self._place is None:
            raise FailedPrecondition(
                f"this {whose} has no place for concept sets: set SAGITTAL_CONCEPTS__DIRECTORY or "
                "SAGITTAL_CONCEPTS__URL to one that the service and all workers share"
            )

    def write(self, name: str, content: bytes) -> None:
        """Writes a file. Raises Unavailable."""
        self._try(lambda place: place.write(name, content))

    def read(self, name: str) -> bytes:
        """Returns a file.

        Raises:
            NotFound: it is not there.
            FailedPrecondition: it is not what was written.
            Unavailable: the place cannot be reached, or not be read.
        """
        match = _NAME.fullmatch(name)
        if match is None:
            raise FailedPrecondition(f"{name[:80]!r} names no file of a concept set: fit the set again")
        try:
            content = self._try(lambda place: place.read(name))
        except FileNotFoundError as error:
            raise NotFound(f"the file {name} of the concept set is gone: fit the set again") from error
        if hashlib.sha256(content).hexdigest() != match["digest"]:
            raise FailedPrecondition(f"the file {name} of the concept set is damaged: fit the set again")
        return content

    def delete(self, name: str) -> None:
        """Deletes a file, which may be gone. Raises Unavailable."""
        if _NAME.fullmatch(name) is None:
            return
        try:
            self._try(lambda place: place.delete(name))
        except FileNotFoundError:
            return

    def _try(self, operation: Callable[[Place], Result]) -> Result:
        if self._place is None:
            raise RuntimeError("there is no place for files; `check` was not called")
        try:
            return operation(self._place)
        except (FileNotFoundError, FailedPrecondition):
            raise
        except Exception as error:  # each file system raises errors of its own
            text = f"{type(error).__name__}: {error}".splitlines()[0]
            raise Unavailable(
                f"the store of concept sets cannot be used ({text}): try again, or see SAGITTAL_CONCEPTS__DIRECTORY "
                "and SAGITTAL_CONCEPTS__URL",
                retry_after=_AWAY_SECONDS,
            ) from error


def weights_file(content: bytes) -> str:
    """Returns the name of the file with these weights, whose content must differ from set to set."""
    return f"{hashlib.sha256(content).hexdigest()}.safetensors"


def examples_file(content: bytes, weights: str) -> str:
    """Returns the name of the file with these examples, of the set whose weights are in another."""
    return f"{weights.partition('.')[0]}.{hashlib.sha256(content).hexdigest()}.examples"
