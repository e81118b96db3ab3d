"""Weights from the operator's stores, through fsspec: fetched once, checked, and cached by their checksum."""

import hashlib
import os
import re
import secrets
from pathlib import Path
from typing import IO, Any

import structlog

from sagittal.models.sources.access import MIB, Access, Store
from sagittal.models.sources.source import ModelUnavailable, need

log = structlog.get_logger(__name__)

_PATH = re.compile(r"[A-Za-z0-9._=+@-]+(/[A-Za-z0-9._=+@-]+)*")
"""Valid paths in a store: plain names that neither URLs nor file systems interpret."""

_CHUNK = MIB
"""Bytes per read."""


def fetch(name: str, path: str, sha256: str, access: Access) -> Path:
    """Returns the cached path of a file in a store, and fetches it if necessary. Raises ModelUnavailable."""
    store = access.stores.get(name)
    if store is None:
        known = ", ".join(sorted(access.stores)) or "none"
        raise ModelUnavailable(f"there is no store {name!r}; SAGITTAL_SOURCES__STORES lists: {known}")
    if not _PATH.fullmatch(path) or ".." in path.split("/"):
        raise ModelUnavailable(f"the path {path!r} is invalid in a store: give names separated by /, such as a/b.pt")
    if not sha256:
        raise ModelUnavailable(f"the file {path} of store {name} requires sha256: files from a network are checked")
    _own_directory(access.cache_directory)
    kept = access.cache_directory / f"{sha256}{Path(path).suffix}"
    if kept.is_file() and _digest(kept) == sha256:
        return kept
    _download(store, name, path, sha256, kept, access)
    return kept


def _own_directory(directory: Path) -> None:
    """Creates the cache, and raises ModelUnavailable if other users may write to it."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = directory.stat()
    except OSError as error:
        raise ModelUnavailable(
            f"the cache {directory} cannot be created: {error.strerror}; set SAGITTAL_SOURCES__CACHE"
        ) from error
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise ModelUnavailable(
            f"the cache {directory} is writable by other users; set SAGITTAL_SOURCES__CACHE to a directory of your own"
        )


def _download(store: Store, name: str, path: str, sha256: str, kept: Path, access: Access) -> None:
    partial = kept.with_name(f".{kept.name}.{secrets.token_hex(8)}")
    try:
        with _open(store, name, path) as source, partial.open("xb") as target:
            found, size = _copy(source, target, f"{path} of store {name}", access)
        if found != sha256:
            raise ModelUnavailable(
                f"the file {path} of store {name} has the wrong checksum: SHA-256 {found}, expected {sha256}"
            )
        partial.replace(kept)
        log.info("weights-fetched", store=name, path=path, bytes=size)
    except ModelUnavailable:
        raise
    except Exception as error:  # each file system raises its own errors
        raise ModelUnavailable(
            f"the file {path} of store {name} cannot be fetched: {type(error).__name__}: {_first_line(error)}"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def _open(store: Store, name: str, path: str) -> IO[bytes]:
    fsspec: Any = need("fsspec", extra="stores")
    try:
        system: Any = fsspec.filesystem(store.url.partition("://")[0], **store.options)
    except ImportError as error:
        raise ModelUnavailable(f"store {name} cannot be opened: {error}; run pip install 'sagittal[stores]'") from error
    file: IO[bytes] = system.open(f"{store.url}/{path}", "rb")
    return file


def _copy(source: IO[bytes], target: IO[bytes], what: str, access: Access) -> tuple[str, int]:
    """Returns the checksum and the size of the copied data."""
    digest, size = hashlib.sha256(), 0
    while chunk := source.read(_CHUNK):
        size += len(chunk)
        if size > access.max_bytes:
            raise ModelUnavailable(
                f"the file {what} has more than {access.max_mib} MiB; SAGITTAL_SOURCES__MAX_MIB allows no more"
            )
        digest.update(chunk)
        target.write(chunk)
    return digest.hexdigest(), size


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else "no message"
