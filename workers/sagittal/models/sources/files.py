"""Files that models are made of: inside the operator's bounds, of bounded size, with the right checksum."""

import hashlib
import stat
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from sagittal.models.sources.access import MIB, Access
from sagittal.models.sources.source import ModelUnavailable
from sagittal.models.sources.stores import fetch

_CHUNK = MIB
"""Bytes that are read at once."""


class FileReference(BaseModel):
    """A file as a model file names it: a path alone, or a table with `path`, `store` and `sha256`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str = Field(min_length=1)
    """In a store, or on this machine: absolute, or relative to one of the operator's directories."""
    store: str = ""
    """Name of the store that it is fetched from; empty for a file on this machine."""
    sha256: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")
    """SHA-256 of the file in hexadecimal. Required with a store."""


def path_alone(value: object) -> object:
    """Returns a path that stands alone as the table that it is short for."""
    return {"path": value} if isinstance(value, str) else value


Reference = Annotated[FileReference, BeforeValidator(path_alone)]
"""The type of a setting that names a file."""


def open_weights(reference: FileReference, access: Access) -> Path:
    """Returns where a file of weights lies on this machine, fetched and checked. Raises ModelUnavailable."""
    return _checked(reference, access, access.directories, "SAGITTAL_SOURCES__DIRECTORIES")


def open_code(reference: FileReference, access: Access) -> Path:
    """Returns where a file lies that can run code when it is loaded. Raises ModelUnavailable.

    It comes from the directories for such files, or from a store with its checksum where the operator lists the cache
    among those directories.
    """
    return _checked(reference, access, access.code_directories, "SAGITTAL_SOURCES__CODE_DIRECTORIES")


def _checked(reference: FileReference, access: Access, directories: Sequence[Path], setting: str) -> Path:
    if reference.store:
        path = fetch(reference.store, reference.path, reference.sha256, access)
        if setting.endswith("CODE_DIRECTORIES"):
            path = find_inside(str(path), directories, setting)
        return path
    path = find_inside(reference.path, directories, setting)
    check_size(path, access)
    if reference.sha256:
        check_sum(path, reference.sha256)
    return path


def find_inside(name: str, directories: Sequence[Path], setting: str) -> Path:
    """Returns the regular file of a name, links resolved, if it lies in one of the directories.

    Whether a file exists elsewhere is not told.
    """
    roots = [directory.resolve() for directory in directories]
    for root in roots:
        try:
            path = (root / name).resolve()
        except (OSError, RuntimeError, ValueError) as error:
            raise ModelUnavailable(f"the path {name!r} cannot be followed: {error}") from error
        if path.is_relative_to(root) and path.exists():
            if not stat.S_ISREG(path.stat().st_mode):
                raise ModelUnavailable(f"{name} is no regular file")
            return path
    if not roots:
        raise ModelUnavailable(f"{name} may not be loaded: {setting} names no directory")
    listed = ", ".join(map(str, directories))
    if any((root / name).resolve().is_relative_to(root) for root in roots):
        raise ModelUnavailable(f"the file {name} does not exist in {listed}")
    raise ModelUnavailable(f"{name} lies outside the directories that may be read, {listed}; {setting} lists them")


def check_size(path: Path, access: Access) -> None:
    """Raises ModelUnavailable where a file is larger than allowed."""
    size = path.stat().st_size
    if size > access.max_bytes:
        raise ModelUnavailable(
            f"{path} has {size / MIB:.1f} MiB; at most {access.max_mib} MiB are read (SAGITTAL_SOURCES__MAX_MIB)"
        )


def check_sum(path: Path, expected: str) -> None:
    """Raises ModelUnavailable where the SHA-256 of a file does not begin with what is expected."""
    found = file_digest(path)
    if not found.startswith(expected):
        raise ModelUnavailable(
            f"{path} has the wrong checksum: SHA-256 {found}, expected {expected}; it is another file, or a damaged one"
        )


def file_digest(path: Path) -> str:
    """Returns the SHA-256 of a file in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def check_archive(path: Path, *, code_bytes: int = 0) -> None:
    """Raises ModelUnavailable where a zip archive would unpack to more than itself.

    PyTorch stores tensors as they are, so what is compressed, or counted twice, is there to exhaust memory.

    Args:
        path: The file; one that is no archive passes.
        code_bytes: Most bytes that compressed members may unpack to: TorchScript compresses its code.
    """
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError, ValueError) as error:
        raise ModelUnavailable(f"{path} is a damaged archive: {error}") from error
    compressed = [member for member in members if member.compress_type != zipfile.ZIP_STORED]
    if sum(member.file_size for member in compressed) > code_bytes:
        first = max(compressed, key=lambda member: member.file_size)
        raise ModelUnavailable(
            f"{path} holds {first.filename} compressed, {first.compress_size} bytes for {first.file_size}; "
            "PyTorch stores tensors as they are, so this archive is not its work"
        )
    stored = sum(member.file_size for member in members) - sum(member.file_size for member in compressed)
    if stored > path.stat().st_size:
        raise ModelUnavailable(f"{path} would unpack to {stored} bytes, more than it has: it is made to fill memory")
