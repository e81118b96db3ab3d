"""Model files: within the operator's directories, of limited size, with the expected checksum."""

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
"""Bytes per read."""


class FileReference(BaseModel):
    """A file as a model file names it: a path, or a table with `path`, `store` and `sha256`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str = Field(min_length=1)
    """Path in a store, or on this machine: absolute, or relative to one of the operator's directories."""
    store: str = ""
    """Name of the store; empty for a file on this machine."""
    sha256: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")
    """SHA-256 of the file in hexadecimal. Required with a store."""


def path_alone(value: object) -> object:
    """Returns the table that a plain path stands for."""
    return {"path": value} if isinstance(value, str) else value


Reference = Annotated[FileReference, BeforeValidator(path_alone)]
"""The type of a setting that names a file."""


def open_weights(reference: FileReference, access: Access) -> Path:
    """Returns the local path of a file of weights, fetched and checked. Raises ModelUnavailable."""
    return _checked(reference, access, access.directories, "SAGITTAL_SOURCES__DIRECTORIES")


def open_code(reference: FileReference, access: Access) -> Path:
    """Returns the local path of a file that can run code when it is loaded. Raises ModelUnavailable.

    It must be in a directory for such files, or come from a store with a checksum if the operator lists the cache among
    those directories.
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
    """Returns the regular file of a name, with links resolved, if it is in one of the directories.

    The errors do not reveal whether a file exists elsewhere.
    """
    roots = [directory.resolve() for directory in directories]
    for root in roots:
        try:
            path = (root / name).resolve()
        except (OSError, RuntimeError, ValueError) as error:
            raise ModelUnavailable(f"the path {name!r} cannot be resolved: {error}") from error
        if path.is_relative_to(root) and path.exists():
            if not stat.S_ISREG(path.stat().st_mode):
                raise ModelUnavailable(f"{name} is not a regular file")
            return path
    if not roots:
        raise ModelUnavailable(f"{name} may not be loaded: {setting} lists no directory")
    listed = ", ".join(map(str, directories))
    if any((root / name).resolve().is_relative_to(root) for root in roots):
        raise ModelUnavailable(f"the file {name} does not exist in {listed}")
    raise ModelUnavailable(f"{name} is outside the allowed directories, {listed}; {setting} lists them")


def check_size(path: Path, access: Access) -> None:
    """Raises ModelUnavailable if a file is larger than allowed."""
    size = path.stat().st_size
    if size > access.max_bytes:
        raise ModelUnavailable(
            f"{path} has {size / MIB:.1f} MiB; at most {access.max_mib} MiB are read (SAGITTAL_SOURCES__MAX_MIB)"
        )


def check_sum(path: Path, expected: str) -> None:
    """Raises ModelUnavailable if the SHA-256 of a file does not begin with the expected digits."""
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
    """Raises ModelUnavailable if a zip archive would unpack to more than its size.

    PyTorch stores tensors uncompressed. Compressed or overlapping members are an attempt to exhaust memory.

    Args:
        path: The file; a file that is no archive passes.
        code_bytes: Maximum unpacked size of compressed members: TorchScript compresses its code.
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
            f"{path} has the compressed member {first.filename}, {first.compress_size} bytes for {first.file_size}; "
            "PyTorch stores tensors uncompressed, so that it did not write this archive"
        )
    stored = sum(member.file_size for member in members) - sum(member.file_size for member in compressed)
    if stored > path.stat().st_size:
        raise ModelUnavailable(f"{path} would unpack to {stored} bytes, more than its size: it would exhaust memory")
